r"""ViT: a Transformer encoder that reads an image as a sequence of patches.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, section 3.1. With the embedded patches
$x_p E$, a learned class token and learned positions,

$$ z_0 = [x_\mathrm{class};\, x_p^1 E;\, \dots;\, x_p^T E] + E_\mathrm{pos} \tag{1} $$
$$ z'_l = \mathrm{MSA}(\mathrm{LN}(z_{l-1})) + z_{l-1} \tag{2} $$
$$ z_l = \mathrm{MLP}(\mathrm{LN}(z'_l)) + z'_l \tag{3} $$
$$ y = \mathrm{LN}(z_L^0) \tag{4} $$

and a linear layer computes the logits from $y$. MSA is multi-head self-attention (appendix A), MLP two layers
with the exact (erf) GELU. For an image of another size than the checkpoint's, positions are interpolated from the
learned ones, bicubically (section 3.2).

Attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928, section 3) shows where the model looked.
With $A_l$ the weights of layer $l$, averaged over heads, it is the class token's row of

$$ R = \tfrac12 (A_L + I)\, \tfrac12 (A_{L-1} + I) \cdots \tfrac12 (A_1 + I) \tag{5} $$

Shapes: B batch, Y rows, X columns, C channels; T query tokens and S key tokens (the class token first);
D model width, N heads, H head width, M classes.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core.layers import MLP, DropPath, LayerNorm, Linear, PatchEmbedding, drop_path_rates, dropout, gelu
from scratch_core.vision import VisionModel, pair

from scratch_vit import convert
from scratch_vit.config import ViTConfig


class Attention(nnx.Module):
    """Multi-head attention of the tokens x_BTD to the tokens z_BSD. Scores and softmax are float32."""

    def __init__(self, config: ViTConfig, *, dtype, rngs: nnx.Rngs):
        D, N, H = config.d_model, config.num_heads, config.d_model // config.num_heads
        self.query = Linear(D, (N, H), use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.key = Linear(D, (N, H), use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(D, (N, H), use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), D, dtype=dtype, rngs=rngs)
        self.dropout = dropout(config.attention_dropout, rngs)

    def weights(self, x_BTD: jax.Array, z_BSD: jax.Array) -> jax.Array:
        """Return the attention of each token t to each token s: weights_BNTS, float32; rows sum to 1."""
        query_BTNH, key_BSNH = self.query(x_BTD), self.key(z_BSD)
        query_BTNH = query_BTNH * query_BTNH.shape[-1] ** -0.5
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", query_BTNH, key_BSNH, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores_BNTS, axis=-1)

    def __call__(self, x_BTD: jax.Array, z_BSD: jax.Array) -> jax.Array:
        """Return y_BTD in ``dtype``."""
        value_BSNH = self.value(z_BSD)
        weights_BNTS = self.dropout(self.weights(x_BTD, z_BSD).astype(value_BSNH.dtype))
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

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return the sequence after both branches."""
        z_BTD = self.attention_norm(x_BTD)
        return self.add_branches(x_BTD, self.attention(z_BTD, z_BTD))

    def class_token(self, x_BSD: jax.Array) -> jax.Array:
        """Return the first token of the call's result, [B, 1, D], without computing the others."""
        z_BSD = self.attention_norm(x_BSD)
        return self.add_branches(x_BSD[:, :1], self.attention(z_BSD[:, :1], z_BSD))

    def add_branches(self, x_BTD: jax.Array, attended_BTD: jax.Array) -> jax.Array:
        """Return x_BTD plus the attention that was computed from it, plus the MLP of their sum."""
        x_BTD = x_BTD + self.drop_path(self.dropout(attended_BTD))  # eq. 2
        return x_BTD + self.drop_path(self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))))  # eq. 3


class ViT(VisionModel):
    """The classifier. Call it on images [B, Y, X, C] of any size that holds a patch."""

    Config = ViTConfig
    architectures = ("ViTForImageClassification",)
    trunks: ClassVar = {"ViTModel": "vit."}
    unread = ("vit.pooler.*",)
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
        self.classifier = Linear(D, config.num_classes, dtype=dtype, rngs=rngs)

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

    def hidden(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the normalised last sequence [B, 1 + patches, D], the class token first."""
        x_BTD, _ = self.embed(images_BYXC)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return self.norm(x_BTD)

    def __call__(self, images_BYXC: jax.Array) -> jax.Array:
        """Return logits [B, num_classes]. The last layer computes only the class token, which the head reads."""
        x_BTD, _ = self.embed(images_BYXC)
        for layer in self.layers[:-1]:
            x_BTD = layer(x_BTD)
        class_BD = self.norm(self.layers[-1].class_token(x_BTD))[:, 0]  # eq. 4
        return self.classifier(class_BD)

    def rollout(self, images_BYXC: jax.Array) -> jax.Array:
        """Return the class token's row of eq. 5 at the patches: heat [B, rows, columns], its sum at most 1."""
        x_BTD, (rows, columns) = self.embed(images_BYXC)
        weights = []
        for layer in self.layers:
            z_BTD = layer.attention_norm(x_BTD)
            weights.append(layer.attention.weights(z_BTD, z_BTD).mean(axis=1))
            x_BTD = layer(x_BTD)
        share_BT = jnp.zeros(x_BTD.shape[:2]).at[:, 0].set(1.0)
        for weights_BTS in reversed(weights):
            share_BT = 0.5 * (jnp.einsum("BT,BTS->BS", share_BT, weights_BTS) + share_BT)  # eq. 5, only one row
        return share_BT[:, 1:].reshape(-1, rows, columns)

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return attention rollout, which is the same for every class."""
        return self.rollout(images)


def resize_positions(positions: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Return positions [1, 1 + new rows * columns, D] for another grid; the class token's position is kept."""
    D = positions.shape[-1]
    grid = positions[:, 1:].reshape(*old, D)
    grid = jnp.einsum("ya,xb,abd->yxd", _bicubic(old[0], new[0]), _bicubic(old[1], new[1]), grid.astype(jnp.float32))
    return jnp.concatenate([positions[:, :1], grid.reshape(1, -1, D).astype(positions.dtype)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Return the [new, old] matrix of cubic interpolation (Keys 1981, eq. 4) with a = -0.75, as in PyTorch.

    Pixel centres are at half-integers; positions beyond an edge take the value at the edge.
    """
    a, matrix = -0.75, np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += near if d <= 1 else far
    return matrix.astype(np.float32)
