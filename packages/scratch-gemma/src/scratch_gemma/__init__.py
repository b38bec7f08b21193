"""Gemma 1 and Gemma 2 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_gemma.chat import encode_chat
    from scratch_gemma.config import Gemma2Config, GemmaConfig
    from scratch_gemma.model import Gemma, Gemma2

# Neither report gives a learning rate, so the released sizes have no recipe.
SPEC = ModelSpec(
    name="gemma",
    models={"causal_lm": "scratch_gemma:Gemma"},
    presets={"tiny": 870_528, "gemma_2b": 2_506_172_416, "gemma_7b": 8_537_680_896},
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

SPEC_2 = ModelSpec(
    name="gemma2",
    models={"causal_lm": "scratch_gemma:Gemma2"},
    presets={
        "tiny": 920_704,
        "gemma2_2b": 2_614_341_888,
        "gemma2_9b": 9_241_705_984,
        "gemma2_27b": 27_227_128_320,
    },
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "SPEC_2", "Gemma", "Gemma2", "Gemma2Config", "GemmaConfig", "encode_chat"]

__getattr__ = lazy(
    __name__, Gemma="model", Gemma2="model", Gemma2Config="config", GemmaConfig="config", encode_chat="chat"
)
