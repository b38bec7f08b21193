r"""Swin Transformer V2: attention within windows, and windows that shift.

Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883 (V2), and 2021, https://arxiv.org/abs/2103.14030 (V1).
A block attends within windows of M x M positions. Every second block shifts the windows by half a window, so that they
connect positions that the previous block kept apart (V1, section 3.2). Norms follow the branches (V2, 3.2):

$$ z' = z + \mathrm{LN}(\mathrm{WindowAttention}(z)), \qquad z'' = z' + \mathrm{LN}(\mathrm{MLP}(z')) \tag{1} $$

Scores are cosines (V2, eq. 2). Each head has a learned temperature $\tau$, never below 0.01, and a bias that a small
network $\mathcal G$ computes from the distance of two positions, on a logarithmic scale (V2, eq. 3 and 4; eq. 1 of
windows.py):

$$ \mathrm{Sim}(q_i, k_j) = \cos(q_i, k_j) / \tau + B_{ij}, \qquad
   B_{ij} = 16\, \sigma\left(\mathcal G(\widehat{\Delta x}, \widehat{\Delta y})\right) \tag{2} $$

The paper leaves out $16\, \sigma$; the released models have it. Between stages, four neighbours become one position of
twice the width:

    images -> patches -> [block, shifted block] x depth / 2 -> merge -> ... 4 stages -> norm -> mean -> linear

Attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928) shows where the model looked: the share $r$
of each position in the mean over the last map. It starts at the last map, where all shares are equal, and goes back
through merges and blocks, with $A_l$ the weights of block $l$, averaged over heads:

$$ r \leftarrow \tfrac12 (r A_l + r) \tag{3} $$

Shapes: B batch, Y rows, X columns of a map, D its width; W windows; T query positions and S key positions of a window;
N heads, H head width; P rows, Q columns, C channels of the image; M classes.
"""

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from scratch_core.layers import MLP, DropPath, LayerNorm, Linear, PatchEmbedding, drop_path_rates, dropout, gelu
from scratch_core.vision import VisionModel, pair

from scratch_swin import convert
from scratch_swin.config import SwinConfig
from scratch_swin.windows import (
    distance_index,
    from_windows,
    log_distances,
    pad_to_multiple,
    shift_mask,
    to_windows,
)

BLOCKED = -1e30


def unit(x: jax.Array) -> jax.Array:
    """Return vectors of length 1 along the last axis, in float32 (a zero vector stays zero)."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


class WindowAttention(nnx.Module):
    """Eq. 2 within each window."""

    def __init__(self, config: SwinConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        D, N = config.width(stage), config.num_heads[stage]
        H = D // N
        self.query = Linear(D, (N, H), use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.key = Linear(D, (N, H), use_bias=False, dtype=dtype, rngs=rngs)
        self.value = Linear(D, (N, H), use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), D, dtype=dtype, rngs=rngs)
        self.log_scale = nnx.Param(jnp.full((N, 1, 1), np.log(10.0)))  # log 1 / tau
        self.distance_hidden = Linear(2, 512, rngs=rngs)
        self.distance_bias = Linear(512, N, use_bias=False, rngs=rngs)
        self.window, self.pretrained = config.window(stage), config.pretrained_window_sizes[stage]
        self.dropout = dropout(config.attention_dropout, rngs)

    def bias(self) -> jax.Array:
        """Return B of eq. 2 for each head: bias_NTS, float32."""
        hidden = jax.nn.relu(self.distance_hidden(jnp.asarray(log_distances(self.window, self.pretrained))))
        per_distance = 16 * jax.nn.sigmoid(self.distance_bias(hidden).astype(jnp.float32))
        bias_TSN = per_distance[distance_index(self.window)]
        return bias_TSN.transpose(2, 0, 1)

    def weights(self, x_BWSD: jax.Array, mask_WTS: np.ndarray | None) -> jax.Array:
        """Return the attention of each position to its window's positions: weights_BWNTS, float32; rows sum to 1."""
        scale_N11 = jnp.exp(jnp.minimum(self.log_scale[...].astype(jnp.float32), np.log(100.0)))
        query_BWTNH = unit(self.query(x_BWSD)) * scale_N11[:, :, 0]
        key_BWSNH = unit(self.key(x_BWSD))
        scores_BWNTS = jnp.einsum("BWTNH,BWSNH->BWNTS", query_BWTNH, key_BWSNH) + self.bias()  # eq. 2
        if mask_WTS is not None:
            scores_BWNTS = jnp.where(mask_WTS[:, None], scores_BWNTS, BLOCKED)
        return jax.nn.softmax(scores_BWNTS, axis=-1)

    def __call__(self, x_BWSD: jax.Array, mask_WTS: np.ndarray | None) -> jax.Array:
        """Return y_BWSD in ``dtype``; mask_WTS is True where position t may read position s (None: everywhere)."""
        value_BWSNH = self.value(x_BWSD)
        weights_BWNTS = self.dropout(self.weights(x_BWSD, mask_WTS).astype(value_BWSNH.dtype))
        y_BWTNH = jnp.matmul(weights_BWNTS, value_BWSNH.swapaxes(2, 3)).swapaxes(2, 3)
        return self.dropout(self.out(y_BWTNH))


class Block(nnx.Module):
    """Eq. 1, with the windows of its stage, shifted or not."""

    def __init__(self, config: SwinConfig, stage: int, index: int, drop_path: float, *, dtype, rngs: nnx.Rngs):
        D = config.width(stage)
        self.window, self.shift = config.window(stage), config.shift(stage, index)
        self.attention = WindowAttention(config, stage, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.feed_forward = MLP(D, int(config.mlp_ratio * D), activation=gelu, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.dropout = dropout(config.dropout, rngs)
        self.drop_path = DropPath(drop_path, 4, rngs=rngs)

    def windows(self, x_BYXD: jax.Array) -> tuple[jax.Array, np.ndarray | None]:
        """Return the windows [B, W, T, D] of a map, and the mask of shifted ones (None: not shifted)."""
        _, Y, X, _ = x_BYXD.shape
        mask_WTS = shift_mask(Y, X, self.window, self.shift) if self.shift else None
        return to_windows(x_BYXD, self.window, self.shift), mask_WTS

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """Return the map after both branches."""
        _, Y, X, _ = x_BYXD.shape
        y_BWTD = self.attention(*self.windows(x_BYXD))
        y_BYXD = from_windows(y_BWTD, self.window, self.shift, Y, X)
        x_BYXD = x_BYXD + self.drop_path(self.attention_norm(y_BYXD))  # eq. 1, left
        y_BYXD = self.dropout(self.feed_forward(x_BYXD))
        return x_BYXD + self.drop_path(self.feed_forward_norm(y_BYXD))  # eq. 1, right

    def rollout(self, share_BYX: jax.Array, x_BYXD: jax.Array) -> jax.Array:
        """Return eq. 3: the share of each position before the block, from the shares after it and its input."""
        _, Y, X = share_BYX.shape
        weights_BWTS = self.attention.weights(*self.windows(x_BYXD)).mean(axis=2)
        share_BWT = to_windows(share_BYX[..., None], self.window, self.shift)[..., 0]
        share_BWS = jnp.einsum("BWT,BWTS->BWS", share_BWT, weights_BWTS)
        return 0.5 * (from_windows(share_BWS[..., None], self.window, self.shift, Y, X)[..., 0] + share_BYX)  # eq. 3


class PatchMerging(nnx.Module):
    """Four neighbours become one position of twice the width; V2's norm comes after the product."""

    def __init__(self, d_model: int, *, dtype, rngs: nnx.Rngs):
        self.reduction = Linear(4 * d_model, 2 * d_model, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(2 * d_model)

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """Return a map of half the rows and columns, rounded up."""
        x_BYXD = pad_to_multiple(x_BYXD, 2, 2)
        B, Y, X, D = x_BYXD.shape
        x = x_BYXD.reshape(B, Y // 2, 2, X // 2, 2, D)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(B, Y // 2, X // 2, 4 * D)  # down first, then right
        return self.norm(self.reduction(x))

    def rollout(self, share_BRS: jax.Array, x_BYXD: jax.Array) -> jax.Array:
        """Return the share of each position before the merge: a quarter of its merged position's share."""
        _, Y, X, _ = x_BYXD.shape
        return share_BRS.repeat(2, axis=1).repeat(2, axis=2)[:, :Y, :X] / 4


class Stage(nnx.Module):
    """Blocks on one resolution, then the merge to the next (none after the last stage)."""

    def __init__(self, config: SwinConfig, stage: int, rates: list[float], *, dtype, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(config, stage, i, rate, dtype=dtype, rngs=rngs) for i, rate in enumerate(rates)])
        last = stage == len(config.depths) - 1
        self.merge = None if last else PatchMerging(config.width(stage), dtype=dtype, rngs=rngs)


class Swin(VisionModel):
    """The classifier. Call it on images [B, P, Q, C] of any size; its windows are those of the config."""

    Config = SwinConfig
    architectures = ("Swinv2ForImageClassification",)
    trunks: ClassVar = {"Swinv2Model": "swinv2."}
    rules = staticmethod(convert.rules)
    buffers = convert.BUFFERS
    axes = convert.AXES

    def __init__(self, config: SwinConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.patches = PatchEmbedding(
            pair(config.patch_size), config.num_channels, config.d_model, dtype=dtype, rngs=rngs
        )
        self.patch_norm = LayerNorm(config.d_model)
        self.dropout = dropout(config.dropout, rngs)
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        self.stages = nnx.List()
        for stage, depth in enumerate(config.depths):
            start = sum(config.depths[:stage])
            self.stages.append(Stage(config, stage, rates[start : start + depth], dtype=dtype, rngs=rngs))
        width = config.width(len(config.depths) - 1)
        self.norm = LayerNorm(width, epsilon=config.norm_epsilon)
        self.classifier = Linear(width, config.num_classes, dtype=dtype, rngs=rngs)

    def embed(self, images_BPQC: jax.Array) -> jax.Array:
        """Return the first map; an image is padded to whole patches."""
        images_BPQC = pad_to_multiple(images_BPQC, *pair(self.config.patch_size))
        return self.dropout(self.patch_norm(self.patches(images_BPQC)))

    def steps(self) -> Iterator[Block | PatchMerging]:
        """Yield blocks and merges in the order in which the map passes through them."""
        for stage in self.stages:
            yield from stage.blocks
            if stage.merge is not None:
                yield stage.merge

    def hidden(self, images_BPQC: jax.Array) -> jax.Array:
        """Return the normalised last map as a sequence [B, rows * columns, D]."""
        x_BYXD = self.embed(images_BPQC)
        for step in self.steps():
            x_BYXD = step(x_BYXD)
        B, Y, X, D = x_BYXD.shape
        return self.norm(x_BYXD.reshape(B, Y * X, D))

    def __call__(self, images_BPQC: jax.Array) -> jax.Array:
        """Return logits [B, num_classes]."""
        hidden_BTD = self.hidden(images_BPQC)
        return self.classifier(jnp.mean(hidden_BTD, axis=1, dtype=jnp.float32).astype(hidden_BTD.dtype))

    def rollout(self, images_BPQC: jax.Array) -> jax.Array:
        """Return each patch's share in the mean over the last map: heat [B, rows, columns], its sum at most 1."""
        x_BYXD, path = self.embed(images_BPQC), []
        for step in self.steps():
            path.append((step, x_BYXD))
            x_BYXD = step(x_BYXD)
        share = jnp.full(x_BYXD.shape[:3], 1.0 / (x_BYXD.shape[1] * x_BYXD.shape[2]))
        for step, x_BYXD in reversed(path):
            share = step.rollout(share, x_BYXD)
        return share

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return attention rollout, which is the same for every class."""
        return self.rollout(images)
