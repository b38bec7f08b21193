r"""Batch normalisation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167), with a cheaper derivative.

$$ \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta \tag{1} $$
$$ \bar\mu \leftarrow (1 - m)\, \bar\mu + m\, \mu, \qquad
   \bar\sigma^2 \leftarrow (1 - m)\, \bar\sigma^2 + m\, \tfrac{n}{n - 1}\, \sigma^2 \tag{2} $$

Without a momentum m, the running statistics start at 0 and are those of this batch and the $k$ batches before it:

$$ \bar\sigma^2 \leftarrow
   \frac{(kn - 1)\, \bar\sigma^2 + n \sigma^2 + \tfrac{kn}{k + 1} (\mu - \bar\mu)^2}{(k + 1) n - 1}, \qquad
   \bar\mu \leftarrow \bar\mu + \frac{\mu - \bar\mu}{k + 1} \tag{3} $$

In training, $\mu, \sigma^2$ are the mean and variance of a channel's $n$ values in the batch. Evaluation uses the
running $\bar\mu, \bar\sigma^2$, so that an image does not depend on its neighbours.

Shapes: B batch, Y rows, X columns, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from scratch_core.errors import DataError


@jax.custom_jvp
def variance(x_BYXC: jax.Array, mean_C: jax.Array) -> jax.Array:
    """Return the variance of each channel, given its mean.

    The mean square distance is minimal at the mean, so its derivative with respect to the mean is zero. The custom JVP
    drops that term and saves one reduction over the map.
    """
    return jnp.mean(jnp.square(x_BYXC - mean_C), axis=(0, 1, 2))


@variance.defjvp
def _variance_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x_BYXC, mean_C), (x_dot_BYXC, _) = primals, tangents
    return variance(x_BYXC, mean_C), jnp.mean(2 * (x_BYXC - mean_C) * x_dot_BYXC, axis=(0, 1, 2))


class BatchNorm(nnx.Module):
    """Eq. 1 and 2 over all axes but the last, statistics in float32; the result has the input's dtype.

    Momentum m is the weight of the new batch, as in PyTorch (in flax it is the weight of the old average). None gives
    all batches the same weight (eq. 3). It needs batches of equal size, and statistics and a count that start at 0, as
    `scratch_core.train.recompute_statistics` sets them.
    """

    def __init__(
        self, num_channels: int, *, momentum: float | None = 0.1, epsilon: float = 1e-5, zero_init: bool = False
    ):
        self.scale = nnx.Param(jnp.zeros(num_channels) if zero_init else jnp.ones(num_channels))
        self.bias = nnx.Param(jnp.zeros(num_channels))
        self.mean = nnx.BatchStat(jnp.zeros(num_channels))
        self.var = nnx.BatchStat(jnp.ones(num_channels))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))  # batches seen: k of eq. 3, and kept in checkpoints
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = False  # set by model.train() and model.eval()
        self.frozen = False  # set by scratch_core.fine_tuning.freeze

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """Return x normalised; in training, also update the running statistics.

        Raises DataError in training if a channel has a single value, which has no variance.
        """
        if self.use_running_average or self.frozen:
            mean_C, var_C = self.mean[...], self.var[...]
        else:
            mean_C, var_C = self._batch_statistics(x_BYXC)
        gain_C = self.scale[...] * lax.rsqrt(var_C.astype(jnp.float32) + self.epsilon)
        return (x_BYXC * gain_C + (self.bias[...] - mean_C * gain_C)).astype(x_BYXC.dtype)  # eq. 1

    def _batch_statistics(self, x_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and variance of each channel, and update the running ones."""
        n = x_BYXC.size // x_BYXC.shape[-1]
        if n < 2:
            raise DataError(f"batch statistics need 2 values per channel, got shape {x_BYXC.shape}: use more images")
        x_BYXC = x_BYXC.astype(jnp.float32)
        mean_C = jnp.mean(x_BYXC, axis=(0, 1, 2))
        var_C = variance(x_BYXC, mean_C)
        self._move(lax.stop_gradient(mean_C), lax.stop_gradient(var_C), n)
        return mean_C, var_C

    def _move(self, mean_C: jax.Array, var_C: jax.Array, n: int) -> None:
        """Update the running statistics with those of a batch of n values per channel."""
        m, old_mean_C, old_var_C = self.momentum, self.mean[...], self.var[...]
        if m is None:  # eq. 3
            k = self.count[...].astype(jnp.float32)
            m = 1 / (k + 1)
            squares_C = (k * n - 1) * old_var_C + n * var_C + k * n * m * jnp.square(mean_C - old_mean_C)
            new_var_C = squares_C / ((k + 1) * n - 1)
        else:
            new_var_C = (1 - m) * old_var_C + m * n / (n - 1) * var_C  # eq. 2
        self.mean[...] = ((1 - m) * old_mean_C + m * mean_C).astype(self.mean.dtype)
        self.var[...] = new_var_C.astype(self.var.dtype)
        self.count[...] = self.count[...] + 1
