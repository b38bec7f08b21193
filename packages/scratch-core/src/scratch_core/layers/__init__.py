"""Layers that two models use unchanged. A variant lives, written out, in the package of its model."""

from scratch_core.layers.attention import GroupedQueryAttention, MultiHeadAttention, MultiQueryAttention, attend
from scratch_core.layers.cache import DecoderCache, KeyValueCache
from scratch_core.layers.dropout import DropPath, drop_path_rates, dropout
from scratch_core.layers.feed_forward import MLP, GatedMLP, gelu
from scratch_core.layers.linear import Linear
from scratch_core.layers.masks import causal_mask, padding_mask, positions_from_mask
from scratch_core.layers.norm import LayerNorm, RMSNorm
from scratch_core.layers.patches import PatchEmbedding
from scratch_core.layers.positions import LearnedPositions
from scratch_core.layers.rope import (
    LinearScaling,
    Llama3Scaling,
    Rope,
    interleaved_to_half_split,
    read_rope,
    rope_to_hf,
)

__all__ = [
    "MLP",
    "DecoderCache",
    "DropPath",
    "GatedMLP",
    "GroupedQueryAttention",
    "KeyValueCache",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearScaling",
    "Llama3Scaling",
    "MultiHeadAttention",
    "MultiQueryAttention",
    "PatchEmbedding",
    "RMSNorm",
    "Rope",
    "attend",
    "causal_mask",
    "drop_path_rates",
    "dropout",
    "gelu",
    "interleaved_to_half_split",
    "padding_mask",
    "positions_from_mask",
    "read_rope",
    "rope_to_hf",
]
