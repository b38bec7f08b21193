"""Mamba-2 (state-space duality) in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_mamba2.config import Mamba2Config
from scratch_mamba2.model import Mamba2, Mamba2Cache

SPEC = ModelSpec(
    name="mamba2",
    models=(Mamba2,),
    presets=("tiny", "mamba2_130m", "mamba2_370m", "mamba2_780m", "mamba2_1_3b", "mamba2_2_7b"),
    task="causal_lm",
)

__all__ = ["SPEC", "Mamba2", "Mamba2Cache", "Mamba2Config"]
