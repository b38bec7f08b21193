"""Mixture-of-Depths in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_mod.config import MixtureOfDepthsConfig
    from scratch_mod.model import MixtureOfDepths

SPEC = ModelSpec(
    name="mod",
    models={"causal_lm": "scratch_mod:MixtureOfDepths"},
    presets={"tiny": 838_274, "mod_125m": 109_830_150},
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "MixtureOfDepths", "MixtureOfDepthsConfig"]

__getattr__ = lazy(__name__, MixtureOfDepths="model", MixtureOfDepthsConfig="config")
