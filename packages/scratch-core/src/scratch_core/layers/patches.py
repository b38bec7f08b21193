r"""Patch embedding: each patch of an image, a rectangle of pixels, becomes one vector.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, eq. 1, without class token and positions.
Patches do not overlap, so the convolution with kernel and stride P is one matrix product:

$$ z_{yx} = E\, \mathrm{vec}(\mathrm{patch}_{yx}) + b \tag{1} $$

Shapes: B batch, Y rows, X columns, C channels of the image; R rows and S columns of patches; P rows and
Q columns in a patch; D model width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core.errors import DataError
from scratch_core.layers.linear import dot_rows


class PatchEmbedding(nnx.Module):
    """Eq. 1: images [B, Y, X, C] to patches [B, Y // P, X // Q, D] in ``dtype``.

    patch_size is (P, Q). Pixels beyond the last whole patch are not read, as in a convolution without padding.
    """

    def __init__(
        self, patch_size: tuple[int, int], num_channels: int, d_model: int, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        shape = (*patch_size, num_channels, d_model)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(d_model))
        self.dtype = dtype

    def __call__(self, images_BYXC: jax.Array) -> jax.Array:
        """Return patches_BRSD. Raises DataError for a wrong number of channels or an image smaller than a patch."""
        P, Q, channels, _ = self.kernel.shape
        shape = images_BYXC.shape
        if len(shape) != 4 or shape[-1] != channels or shape[1] < P or shape[2] < Q:
            raise DataError(
                f"images of shape {shape} must be [batch, rows >= {P}, columns >= {Q}, channels = {channels}]"
            )
        B, R, S = shape[0], shape[1] // P, shape[2] // Q
        pixels = images_BYXC[:, : R * P, : S * Q].astype(self.dtype).reshape(B, R, P, S, Q, channels)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5)  # [B, R, S, P, Q, C]
        return dot_rows(pixels, self.kernel[...].astype(self.dtype), 3) + self.bias[...].astype(self.dtype)  # eq. 1
