"""GPT-2 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_gpt2.config import GPT2Config
    from scratch_gpt2.model import GPT2

SPEC = ModelSpec(
    name="gpt2",
    models={"causal_lm": "scratch_gpt2:GPT2"},
    presets={
        "tiny": 958_208,
        "small": 124_439_808,
        "medium": 354_823_168,
        "large": 774_030_080,
        "xl": 1_557_611_200,
    },
    # The paper gives no learning rate: it was "manually tuned for the best perplexity" on held-out text.
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["GPT2", "SPEC", "GPT2Config"]

__getattr__ = lazy(__name__, GPT2="model", GPT2Config="config")
