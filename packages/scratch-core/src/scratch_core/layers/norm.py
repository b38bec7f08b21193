r"""Normalisation over the features of each position, computed in float32.

RMSNorm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4) divides by the root mean square;
LayerNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4) subtracts the mean first:

$$ \mathrm{RMSNorm}(x) = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \odot g \tag{1} $$
$$ \mathrm{LayerNorm}(x) = \frac{x - \bar x}{\sqrt{\overline{(x - \bar x)^2} + \epsilon}} \odot g + b \tag{2} $$

Shapes: D features.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """Eq. 1 over the last axis of any array of width D; the result has the input's dtype."""

    def __init__(self, d_model: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs | None = None):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised; the scale is applied after rounding to x's dtype, as in the reference."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * x32.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Eq. 2 over the last axis of any array of width D; the result has the input's dtype."""

    def __init__(self, d_model: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs | None = None):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x normalised."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * self.scale[...] + self.bias[...]).astype(x.dtype)
