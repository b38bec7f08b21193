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
)

__all__ = ["SPEC", "Llama", "LlamaConfig"]

__getattr__ = lazy(__name__, Llama="model", LlamaConfig="config")
