r"""ResNet, version 1.5: convolutions that learn what to add to their input.

Source: He et al. 2015, https://arxiv.org/abs/1512.03385. A block with branch $F$ computes

$$ y = \mathrm{relu}\left(F(x) + W_s x\right) \tag{1} $$

where $W_s$ is the identity where shapes agree, and else a strided 1x1 convolution (eq. 2 and option B of the
paper). $F$ is two 3x3 convolutions (figure 5, left) or a bottleneck of 1x1, 3x3 and 1x1 (right). Version 1.5
halves the resolution in the 3x3 convolution of the bottleneck, where the paper does in the first 1x1.
After each convolution comes batch normalisation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167):

$$ \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta \tag{2} $$
$$ \bar\mu \leftarrow (1 - m)\, \bar\mu + m\, \mu, \qquad
   \bar\sigma^2 \leftarrow (1 - m)\, \bar\sigma^2 + m\, \tfrac{n}{n - 1}\, \sigma^2 \tag{3} $$

In training $\mu, \sigma^2$ are of the batch, over the $n$ values of a channel; evaluation uses the running
$\bar\mu, \bar\sigma^2$, so that an image does not depend on its neighbours.

    images -> 7x7/2, 64 -> max 3x3/2 -> [block x depth] x 4 stages, /2 at each but the first -> mean -> linear

Shapes: B batch, Y rows, X columns, C channels; R, S, O those of a later map; M classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from scratch_core.errors import DataError
from scratch_core.layers.products import dot_rows
from scratch_core.vision import VisionModel, grad_cam

from scratch_resnet import convert
from scratch_resnet.config import ResNetConfig
from scratch_resnet.winograd import pays, winograd


@jax.custom_jvp
def variance(x_BYXC: jax.Array, mean_C: jax.Array) -> jax.Array:
    """Return the mean square distance of each channel's values from their mean_C.

    It is least about the mean, so that to first order it does not move with it: the gradient is told, and spares a sum.
    """
    return jnp.mean(jnp.square(x_BYXC - mean_C), axis=(0, 1, 2))


@variance.defjvp
def _variance_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x_BYXC, mean_C), (x_dot_BYXC, _) = primals, tangents
    return variance(x_BYXC, mean_C), jnp.mean(2 * (x_BYXC - mean_C) * x_dot_BYXC, axis=(0, 1, 2))


class BatchNorm(nnx.Module):
    """Eq. 2 and 3 over all axes but the last, statistics in float32; the result has the input's dtype.

    Momentum m counts the new batch, as in PyTorch (flax counts the old average).
    """

    def __init__(self, num_channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5, zero_init: bool = False):
        self.scale = nnx.Param(jnp.zeros(num_channels) if zero_init else jnp.ones(num_channels))
        self.bias = nnx.Param(jnp.zeros(num_channels))
        self.mean = nnx.BatchStat(jnp.zeros(num_channels))
        self.var = nnx.BatchStat(jnp.ones(num_channels))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))  # batches seen: kept for the checkpoint, read by nobody
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = False  # what model.train() and model.eval() set
        self.frozen = False  # what model.freeze_trunk() sets

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """Return x normalised; in training, also move the running statistics.

        Raises DataError in training if a channel has a single value, which has no variance.
        """
        if self.use_running_average or self.frozen:
            mean, var = self.mean[...], self.var[...]
        else:
            n = x_BYXC.size // x_BYXC.shape[-1]
            if n < 2:
                raise DataError(
                    f"batch statistics need 2 values per channel, got shape {x_BYXC.shape}: use more images"
                )
            x32_BYXC = x_BYXC.astype(jnp.float32)
            mean = jnp.mean(x32_BYXC, axis=(0, 1, 2))
            var = variance(x32_BYXC, mean)
            m = self.momentum
            kept = self.mean.dtype
            self.mean[...] = ((1 - m) * self.mean[...] + m * lax.stop_gradient(mean)).astype(kept)  # eq. 3
            self.var[...] = ((1 - m) * self.var[...] + m * n / (n - 1) * lax.stop_gradient(var)).astype(kept)
            self.count[...] = self.count[...] + 1
        gain = self.scale[...] * lax.rsqrt(var.astype(jnp.float32) + self.epsilon)
        return (x_BYXC * gain + (self.bias[...] - mean * gain)).astype(x_BYXC.dtype)  # eq. 2


class Convolution(nnx.Module):
    """A convolution without bias, K x K, padded by K // 2 on every side, so that stride 2 starts at the first pixel.

    ("SAME" padding would start at the second one for even sizes.) Written as a matrix product where K = 1, and with
    fewer products (winograd.py) where K = 3 and that is faster.
    """

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, *, dtype, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, 1502.01852
        self.kernel = nnx.Param(init(rngs.params(), (size, size, c_in, c_out)))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """Return the convolution in ``dtype``; its sizes are ceil(Y / stride), ceil(X / stride)."""
        kernel, s = self.kernel[...].astype(self.dtype), self.stride
        x_BYXC = x_BYXC.astype(self.dtype)
        if kernel.shape[0] == 1:
            return dot_rows(x_BYXC[:, ::s, ::s], kernel[0, 0])
        if pays(kernel, s):
            return winograd(x_BYXC, kernel)
        p = kernel.shape[0] // 2
        return lax.conv_general_dilated(
            x_BYXC, kernel, (s, s), [(p, p), (p, p)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class ConvNorm(nnx.Module):
    """Convolution and batch norm, then ReLU where the layer is not the last of its branch."""

    def __init__(self, c_in, c_out, size, stride=1, *, relu=True, zero_init=False, dtype, rngs: nnx.Rngs):
        self.conv = Convolution(c_in, c_out, size, stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(c_out, zero_init=zero_init)
        self.relu = relu

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        y_BRSO = self.norm(self.conv(x_BYXC))
        return jax.nn.relu(y_BRSO) if self.relu else y_BRSO


class Block(nnx.Module):
    """Eq. 1 around the layers of one branch; the shortcut is None where it is the identity."""

    def __init__(self, layers: Sequence[ConvNorm], shortcut: ConvNorm | None):
        self.layers = nnx.List(layers)
        self.shortcut = shortcut

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        y_BRSO = x_BYXC
        for layer in self.layers:
            y_BRSO = layer(y_BRSO)
        kept_BRSO = x_BYXC if self.shortcut is None else self.shortcut(x_BYXC)
        return jax.nn.relu(y_BRSO + kept_BRSO)  # eq. 1


def make_block(config: ResNetConfig, c_in: int, c_out: int, stride: int, *, dtype, rngs: nnx.Rngs) -> Block:
    """Return the basic or the bottleneck block of the config (figure 5)."""

    def conv(*shape: int, relu: bool = True, zero_init: bool = False) -> ConvNorm:
        return ConvNorm(*shape, relu=relu, zero_init=zero_init, dtype=dtype, rngs=rngs)

    last = {"relu": False, "zero_init": config.zero_init_last}
    if config.block == "basic":
        layers = [conv(c_in, c_out, 3, stride), conv(c_out, c_out, 3, **last)]
    else:
        c_mid = c_out // 4
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)  # v1, v1.5
        layers = [conv(c_in, c_mid, 1, first), conv(c_mid, c_mid, 3, second), conv(c_mid, c_out, 1, **last)]
    same = c_in == c_out and stride == 1
    return Block(layers, None if same else conv(c_in, c_out, 1, stride, relu=False))


def max_pool(x: jax.Array, axis: int) -> jax.Array:
    """Return the largest of each three neighbours along an axis, every second one, with one of padding before it.

    The first of equals gets the gradient, as in PyTorch.
    """
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 2)
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    first, second, third = (lax.slice_in_dim(x, i, i + size, 2, axis) for i in range(3))
    largest = jnp.where(first >= second, first, second)
    return jnp.where(largest >= third, largest, third)


class ResNet(VisionModel):
    """The classifier. Call it on images [B, Y, X, C]; see :class:`ResNetConfig` for the depths."""

    Config = ResNetConfig
    architectures = ("ResNetForImageClassification",)
    rules = staticmethod(convert.rules)
    recognises = classmethod(convert.recognises)
    axes = convert.AXES

    def __init__(self, config: ResNetConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.stem = ConvNorm(config.num_channels, config.stem_width, 7, 2, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        c_in = config.stem_width
        for i, (c_out, depth) in enumerate(zip(config.widths, config.depths)):
            stride = 2 if i > 0 or config.stride_in_first_stage else 1
            blocks = nnx.List()
            for j in range(depth):
                blocks.append(make_block(config, c_in, c_out, stride if j == 0 else 1, dtype=dtype, rngs=rngs))
                c_in = c_out
            self.stages.append(blocks)
        self.classifier = nnx.Linear(c_in, config.num_classes, dtype=dtype, rngs=rngs)

    def hidden(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the last feature map [B, ceil(Y / 32), ceil(X / 32), C]. Raises DataError for other channels."""
        if images_BYXC.ndim != 4 or images_BYXC.shape[-1] != self.config.num_channels:
            raise DataError(
                f"images of shape {images_BYXC.shape} must be [batch, rows, columns, {self.config.num_channels}]"
            )
        x_BRSO = self.stem(images_BYXC)
        x_BRSO = max_pool(max_pool(x_BRSO, axis=2), axis=1)
        for blocks in self.stages:
            for block in blocks:
                x_BRSO = block(x_BRSO)
        return x_BRSO

    def head(self, hidden_BYXC: jax.Array) -> jax.Array:
        """Return logits_BM of the mean over rows and columns."""
        pooled_BC = jnp.mean(hidden_BYXC, axis=(1, 2), dtype=jnp.float32).astype(hidden_BYXC.dtype)
        return self.classifier(pooled_BC)

    def __call__(self, images_BYXC: jax.Array) -> jax.Array:
        """Return logits [B, num_classes]."""
        return self.head(self.hidden(images_BYXC))

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return Grad-CAM of the last feature map for each image's class: heat [B, Y / 32, X / 32] >= 0."""
        return grad_cam(self.head, self.hidden(images), classes_B)
