"""Llama 2 and Llama 3 in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_llama.config import LlamaConfig
from scratch_llama.model import Llama

SPEC = ModelSpec(
    name="llama",
    models=(Llama,),
    presets=(
        "tiny",
        "llama2_7b",
        "llama2_13b",
        "llama2_70b",
        "llama3_8b",
        "llama3_70b",
        "llama3_1_8b",
        "llama3_2_1b",
        "llama3_2_3b",
    ),
    task="causal_lm",
)

__all__ = ["SPEC", "Llama", "LlamaConfig"]
