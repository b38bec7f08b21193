r"""ViT: an image is a sequence of patches, and a Transformer encoder reads it.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, section 3.1. With the embedded patches
$x_p E$, a learned class token and learned positions,

$$ z_0 = [x_\mathrm{class};\, x_p^1 E;\, \dots;\, x_p^T E] + E_\mathrm{pos} \tag{1} $$
$$ z'_l = \mathrm{MSA}(\mathrm{LN}(z_{l-1})) + z_{l-1} \tag{2} $$
$$ z_l = \mathrm{MLP}(\mathrm{LN}(z'_l)) + z'_l \tag{3} $$
$$ y = \mathrm{LN}(z_L^0) \tag{4} $$

and a linear layer reads the classes from $y$. MSA is multi-head self-attention (appendix A), MLP two layers
with the exact (erf) GELU. An image of another size than the checkpoint's gets its positions by bicubic
interpolation between the learned ones (section 3.2).

Where it looked is attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928, section 3): with
$A_l$ the weights of layer $l$, averaged over heads, the class token's row of

$$ R = \tfrac12 (A_L + I)\, \tfrac12 (A_{L-1} + I) \cdots \tfrac12 (A_1 + I) \tag{5} $$

Shapes: B batch, Y rows, X columns, C channels; T tokens to read for S tokens (the class token first);
D model width, N heads, H head width, M classes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core.layers import MLP, LayerNorm, gelu
from scratch_core.layers.drop_path import DropPath, drop_path_rates
from scratch_core.layers.patches import PatchEmbedding
from scratch_core.layers.products import dot_rows
from scratch_core.vision import VisionModel, pair

from scratch_vit import convert
from scratch_vit.config import ViTConfig


def dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Return dropout with a random stream of its own, or without one where nothing is dropped."""
    return nnx.Dropout(rate, rngs=rngs if rate else None)


class Attention(nnx.Module):
    """Multi-head self-attention whose weights can be looked at, and dropped. Scores and softmax are float32."""

    def __init__(self, config: ViTConfig, *, dtype, rngs: nnx.Rngs):
        D, N = config.d_model, config.num_heads
        linear = partial(nnx.LinearGeneral, dtype=dtype, dot_general=dot_rows, rngs=rngs)
        project = partial(linear, D, (N, D // N), use_bias=config.qkv_bias)
        self.query, self.key, self.value = project(), project(), project()
        self.out = linear((N, D // N), D, axis=(-2, -1))
        self.dropout = dropout(config.attention_dropout, rngs)

    def weights(self, x_BSD: jax.Array, first: int | None = None) -> jax.Array:
        """Return how much each of the first tokens (None: each token) reads of each: weights_BNTS, rows sum to 1."""
        query_BTNH, key_BSNH = self.query(x_BSD[:, :first]), self.key(x_BSD)
        query_BTNH = query_BTNH * query_BTNH.shape[-1] ** -0.5
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", query_BTNH, key_BSNH, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores_BNTS, axis=-1)

    def __call__(self, x_BSD: jax.Array, first: int | None = None) -> jax.Array:
        """Return y_BTD in ``dtype``, of the first tokens (None: of all)."""
        value_BSNH = self.value(x_BSD)
        weights_BNTS = self.dropout(self.weights(x_BSD, first).astype(value_BSNH.dtype))
        return self.out(jnp.matmul(weights_BNTS, value_BSNH.swapaxes(1, 2)).swapaxes(1, 2))


class Block(nnx.Module):
    """Eq. 2 and 3: norms before the branches, dropout after them."""

    def __init__(self, config: ViTConfig, drop_path: float, *, dtype, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config.d_model, epsilon=config.norm_epsilon)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = LayerNorm(config.d_model, epsilon=config.norm_epsilon)
        self.feed_forward = MLP(config.d_model, config.d_ff, activation=gelu, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.dropout, rngs)
        self.drop_path = DropPath(drop_path, 3, rngs=rngs)

    def __call__(self, x_BSD: jax.Array, first: int | None = None) -> jax.Array:
        """Return the sequence after both branches, or only its first tokens, which read all the same."""
        read_BTD = self.attention(self.attention_norm(x_BSD), first)
        x_BTD = x_BSD[:, :first] + self.drop_path(self.dropout(read_BTD))  # eq. 2
        return x_BTD + self.drop_path(self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))))  # eq. 3


class ViT(VisionModel):
    """The classifier. Call it on images [B, Y, X, C] of any size that holds a patch."""

    Config = ViTConfig
    architectures = ("ViTForImageClassification",)
    rules = staticmethod(convert.rules)
    axes = convert.AXES

    def __init__(self, config: ViTConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        D, (rows, columns) = config.d_model, config.grid
        small = nnx.initializers.truncated_normal(0.02)
        self.patches = PatchEmbedding(pair(config.patch_size), config.num_channels, D, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(small(rngs.params(), (1, 1, D)))
        self.positions = nnx.Param(small(rngs.params(), (1, 1 + rows * columns, D)))
        self.dropout = dropout(config.dropout, rngs)
        rates = drop_path_rates(config.drop_path, config.num_layers)
        self.layers = nnx.List([Block(config, rate, dtype=dtype, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.classifier = nnx.Linear(D, config.num_classes, dtype=dtype, rngs=rngs)

    def embed(self, images_BYXC: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        """Return z_BTD of eq. 1, and the rows and columns of patches in it."""
        patches = self.patches(images_BYXC)
        B, rows, columns, D = patches.shape
        class_B1D = jnp.broadcast_to(self.class_token[...].astype(patches.dtype), (B, 1, D))
        z_BTD = jnp.concatenate([class_B1D, patches.reshape(B, rows * columns, D)], axis=1)
        positions = self.positions[...]
        if self.config.grid != (rows, columns):
            positions = resize_positions(positions, self.config.grid, (rows, columns))
        return self.dropout(z_BTD + positions.astype(z_BTD.dtype)), (rows, columns)

    def hidden(self, images_BYXC: jax.Array, first: int | None = None) -> jax.Array:
        """Return the normalised last sequence [B, 1 + patches, D], the class token first; or its first tokens alone."""
        x_BTD, _ = self.embed(images_BYXC)
        for layer in self.layers[:-1]:
            x_BTD = layer(x_BTD)
        return self.norm(self.layers[-1](x_BTD, first))

    def __call__(self, images_BYXC: jax.Array) -> jax.Array:
        """Return logits [B, num_classes]. The last layer computes only the class token, which is all that is read."""
        return self.classifier(self.hidden(images_BYXC, 1)[:, 0])  # eq. 4

    def rollout(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the class token's row of eq. 5 at the patches: heat [B, rows, columns], its sum at most 1."""
        x_BTD, (rows, columns) = self.embed(images_BYXC)
        weights = []
        for layer in self.layers:
            weights.append(layer.attention.weights(layer.attention_norm(x_BTD)).mean(axis=1))
            x_BTD = layer(x_BTD)
        read_BT = jnp.zeros(x_BTD.shape[:2]).at[:, 0].set(1.0)
        for weights_BTS in reversed(weights):
            read_BT = 0.5 * (jnp.einsum("BT,BTS->BS", read_BT, weights_BTS) + read_BT)  # eq. 5, a row at a time
        return read_BT[:, 1:].reshape(-1, rows, columns)

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return attention rollout, which is the same for every class."""
        return self.rollout(images)


def resize_positions(positions: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Return positions [1, 1 + new rows * columns, D] for another grid; the class token's stays."""
    D = positions.shape[-1]
    grid = positions[:, 1:].reshape(*old, D)
    grid = jnp.einsum("ya,xb,abd->yxd", _bicubic(old[0], new[0]), _bicubic(old[1], new[1]), grid.astype(jnp.float32))
    return jnp.concatenate([positions[:, :1], grid.reshape(1, -1, D).astype(positions.dtype)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Return the [new, old] matrix of cubic interpolation (Keys 1981, eq. 4) with a = -0.75, as in PyTorch.

    Pixel centres are at half numbers, and what lies beyond an edge repeats the edge.
    """
    a, matrix = -0.75, np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += near if d <= 1 else far
    return matrix.astype(np.float32)
