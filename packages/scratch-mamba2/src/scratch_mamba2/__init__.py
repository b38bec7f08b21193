"""Mamba-2 (state-space duality) in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_mamba2.config import Mamba2Config
    from scratch_mamba2.model import Mamba2

SPEC = ModelSpec(
    name="mamba2",
    models={"causal_lm": "scratch_mamba2:Mamba2"},
    presets={
        "tiny": 469_936,
        "mamba2_130m": 128_989_632,
        "mamba2_370m": 368_346_624,
        "mamba2_780m": 780_161_280,
        "mamba2_1_3b": 1_343_757_312,
        "mamba2_2_7b": 2_702_599_680,
    },
    recipes={
        "tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16},
    },
)

__all__ = ["SPEC", "Mamba2", "Mamba2Config"]

__getattr__ = lazy(__name__, Mamba2="model", Mamba2Config="config")
