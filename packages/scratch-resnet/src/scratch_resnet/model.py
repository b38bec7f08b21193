r"""ResNet, version 1.5: convolutions that learn what to add to their input.

Source: He et al. 2015, https://arxiv.org/abs/1512.03385. A block with branch $F$ computes

$$ y = \mathrm{relu}\left(F(x) + W_s x\right) \tag{1} $$

where $W_s$ is the identity if the shapes agree, and otherwise a strided 1x1 convolution (eq. 2 and option B of the
paper). $F$ is two 3x3 convolutions (figure 5, left) or a bottleneck of 1x1, 3x3 and 1x1 (right). Version 1.5
halves the resolution in the 3x3 convolution of the bottleneck; the paper does so in the first 1x1.
Batch normalisation follows each convolution.

    images -> 7x7/2, 64 -> max 3x3/2 -> [block x depth] x 4 stages, /2 at each but the first -> mean -> linear

Shapes: B batch, Y rows, X columns, C channels; R rows, S columns, O channels of a later map; M classes.
"""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.errors import DataError
from scratch_core.layers import Linear
from scratch_core.vision import VisionModel, grad_cam

from scratch_resnet import convert
from scratch_resnet.batch_norm import BatchNorm
from scratch_resnet.config import ResNetConfig
from scratch_resnet.convolution import Convolution, max_pool


class ConvNorm(nnx.Module):
    """Convolution and batch norm, then ReLU unless the layer is the last of its branch."""

    def __init__(self, c_in, c_out, size, stride=1, *, relu=True, zero_init=False, dtype, rngs: nnx.Rngs):
        self.conv = Convolution(c_in, c_out, size, stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(c_out, zero_init=zero_init)
        self.relu = relu

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        y_BRSO = self.norm(self.conv(x_BYXC))
        return jax.nn.relu(y_BRSO) if self.relu else y_BRSO


class Block(nnx.Module):
    """Eq. 1 for a branch of ``layers``; ``shortcut`` is None if it is the identity."""

    layers: nnx.List
    shortcut: ConvNorm | None

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """Return y_BRSO, of Y / stride rows and X / stride columns."""
        y_BRSO = x_BYXC
        for layer in self.layers:
            y_BRSO = layer(y_BRSO)
        kept_BRSO = x_BYXC if self.shortcut is None else self.shortcut(x_BYXC)
        return jax.nn.relu(y_BRSO + kept_BRSO)  # eq. 1


class Basic(Block):
    """Two 3x3 convolutions (figure 5, left)."""

    def __init__(self, config: ResNetConfig, c_in: int, c_out: int, stride: int, *, dtype, rngs: nnx.Rngs):
        layer = partial(ConvNorm, dtype=dtype, rngs=rngs)
        first = layer(c_in, c_out, 3, stride)
        last = layer(c_out, c_out, 3, relu=False, zero_init=config.zero_init_last)
        self.layers = nnx.List([first, last])
        self.shortcut = _shortcut(c_in, c_out, stride, dtype=dtype, rngs=rngs)


class Bottleneck(Block):
    """1x1 to a quarter of the channels, 3x3, and 1x1 back (figure 5, right)."""

    def __init__(self, config: ResNetConfig, c_in: int, c_out: int, stride: int, *, dtype, rngs: nnx.Rngs):
        layer, c_mid = partial(ConvNorm, dtype=dtype, rngs=rngs), c_out // 4
        stride_1x1, stride_3x3 = (stride, 1) if config.stride_in_1x1 else (1, stride)  # v1, v1.5
        down = layer(c_in, c_mid, 1, stride_1x1)
        middle = layer(c_mid, c_mid, 3, stride_3x3)
        up = layer(c_mid, c_out, 1, relu=False, zero_init=config.zero_init_last)
        self.layers = nnx.List([down, middle, up])
        self.shortcut = _shortcut(c_in, c_out, stride, dtype=dtype, rngs=rngs)


def _shortcut(c_in: int, c_out: int, stride: int, *, dtype, rngs: nnx.Rngs) -> ConvNorm | None:
    """Return W_s of eq. 1, None for the identity."""
    if c_in == c_out and stride == 1:
        return None
    return ConvNorm(c_in, c_out, 1, stride, relu=False, dtype=dtype, rngs=rngs)


class ResNet(VisionModel):
    """The classifier. Call it on images [B, Y, X, C]; see :class:`ResNetConfig` for the depths."""

    Config = ResNetConfig
    architectures = ("ResNetForImageClassification",)
    trunks: ClassVar = {"ResNetModel": "resnet."}
    rules = staticmethod(convert.rules)
    recognises = classmethod(convert.recognises)
    axes = convert.AXES

    def __init__(self, config: ResNetConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.stem = ConvNorm(config.num_channels, config.stem_width, 7, 2, dtype=dtype, rngs=rngs)
        block = {"basic": Basic, "bottleneck": Bottleneck}[config.block]
        self.stages = nnx.List()
        c_in = config.stem_width
        for i, (c_out, depth) in enumerate(zip(config.widths, config.depths)):
            stride = 2 if i > 0 or config.stride_in_first_stage else 1
            blocks = nnx.List([block(config, c_in, c_out, stride, dtype=dtype, rngs=rngs)])
            for _ in range(depth - 1):
                blocks.append(block(config, c_out, c_out, 1, dtype=dtype, rngs=rngs))
            self.stages.append(blocks)
            c_in = c_out
        self.classifier = Linear(c_in, config.num_classes, dtype=dtype, rngs=rngs)

    def hidden(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the last feature map [B, ceil(Y / 32), ceil(X / 32), C]. Raises DataError for a wrong shape."""
        if images_BYXC.ndim != 4 or images_BYXC.shape[-1] != self.config.num_channels:
            raise DataError(
                f"images of shape {images_BYXC.shape} must be [batch, rows, columns, {self.config.num_channels}]"
            )
        x_BRSO = max_pool(self.stem(images_BYXC))
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
