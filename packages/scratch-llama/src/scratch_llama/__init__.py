"""Llama 2 and Llama 3 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_llama.config import LlamaConfig
    from scratch_llama.model import Llama

SPEC = ModelSpec(
    name="llama",
    models={"causal_lm": "scratch_llama:Llama"},
    presets={
        "tiny": 821_376,
        "llama2_7b": 6_738_415_616,
        "llama2_13b": 13_015_864_320,
        "llama2_70b": 68_976_648_192,
        "llama3_8b": 8_030_261_248,
        "llama3_70b": 70_553_706_496,
        "llama3_1_8b": 8_030_261_248,
        "llama3_2_1b": 1_235_814_400,
        "llama3_2_3b": 3_212_749_824,
    },
    recipes={
        "tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16},
        # Llama 2: https://arxiv.org/abs/2307.09288, table 1. Llama 3: https://arxiv.org/abs/2407.21783, table 3.
        "llama2_7b": {"learning_rate": 3e-4},
        "llama2_13b": {"learning_rate": 3e-4},
        "llama2_70b": {"learning_rate": 1.5e-4},
        "llama3_8b": {"learning_rate": 3e-4},
        "llama3_70b": {"learning_rate": 1.5e-4},
        "llama3_1_8b": {"learning_rate": 3e-4},
    },
)

__all__ = ["SPEC", "Llama", "LlamaConfig"]

__getattr__ = lazy(__name__, Llama="model", LlamaConfig="config")
