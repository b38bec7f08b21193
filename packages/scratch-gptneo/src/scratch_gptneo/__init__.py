"""GPT-Neo in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_gptneo.config import GPTNeoConfig
    from scratch_gptneo.model import GPTNeo

SPEC = ModelSpec(
    name="gptneo",
    models={"causal_lm": "scratch_gptneo:GPTNeo"},
    presets={
        "tiny": 956_672,
        "neo_125m": 125_198_592,
        "neo_1_3b": 1_315_575_808,
        "neo_2_7b": 2_651_307_520,
    },
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "GPTNeo", "GPTNeoConfig"]

__getattr__ = lazy(__name__, GPTNeo="model", GPTNeoConfig="config")
