"""Layers that at least two models use unchanged. A variant is written out in the package of its model."""

from scratch_core.layers.attention import GroupedQueryAttention, MultiHeadAttention, MultiQueryAttention, attend
from scratch_core.layers.blocks import ScannedBlocks, run_blocks, scan_layers, unscan_layers
from scratch_core.layers.cache import DecoderCache, KeyValueCache
from scratch_core.layers.dropout import DropPath, drop_path_rates, dropout
from scratch_core.layers.feed_forward import MLP, GatedMLP, gelu
from scratch_core.layers.linear import Linear
from scratch_core.layers.lora import LoRALinear, LoRAParam
from scratch_core.layers.masks import causal_mask, padding_mask, places, positions_from_mask
from scratch_core.layers.moe import (
    ExpertChoice,
    Experts,
    TokenChoice,
    expert_capacity,
    expert_choice_routing,
    load_balancing_loss,
    switch_routing,
    top_k_routing,
)
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
from scratch_core.layers.tied_head import tied_logits

__all__ = [
    "MLP",
    "DecoderCache",
    "DropPath",
    "ExpertChoice",
    "Experts",
    "GatedMLP",
    "GroupedQueryAttention",
    "KeyValueCache",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "LinearScaling",
    "Llama3Scaling",
    "LoRALinear",
    "LoRAParam",
    "MultiHeadAttention",
    "MultiQueryAttention",
    "PatchEmbedding",
    "RMSNorm",
    "Rope",
    "ScannedBlocks",
    "TokenChoice",
    "attend",
    "causal_mask",
    "drop_path_rates",
    "dropout",
    "expert_capacity",
    "expert_choice_routing",
    "gelu",
    "interleaved_to_half_split",
    "load_balancing_loss",
    "padding_mask",
    "places",
    "positions_from_mask",
    "read_rope",
    "rope_to_hf",
    "run_blocks",
    "scan_layers",
    "switch_routing",
    "tied_logits",
    "top_k_routing",
    "unscan_layers",
]
