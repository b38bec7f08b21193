"""Mistral in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_mistral.config import MistralConfig
    from scratch_mistral.model import Mistral

SPEC = ModelSpec(
    name="mistral",
    models={"causal_lm": "scratch_mistral:Mistral"},
    presets={
        "tiny": 821_376,
        "mistral_7b_v0_1": 7_241_732_096,
        "mistral_7b_v0_2": 7_241_732_096,
        "mistral_7b_v0_3": 7_248_023_552,
        "nemo_12b": 12_247_782_400,
    },
    # The paper gives no hyperparameters of training; those of tiny are ours.
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "Mistral", "MistralConfig"]

__getattr__ = lazy(__name__, Mistral="model", MistralConfig="config")
