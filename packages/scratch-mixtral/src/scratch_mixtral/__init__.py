"""Mixtral in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_mixtral.config import MixtralConfig
    from scratch_mixtral.model import Mixtral

SPEC = ModelSpec(
    name="mixtral",
    models={"causal_lm": "scratch_mixtral:Mixtral"},
    presets={
        "tiny": 1_808_512,
        "mixtral_8x7b": 46_702_792_704,
        "mixtral_8x22b": 140_620_634_112,
    },
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "Mixtral", "MixtralConfig"]

__getattr__ = lazy(__name__, Mixtral="model", MixtralConfig="config")
