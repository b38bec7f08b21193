"""OLMo and OLMo 2 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_olmo.config import Olmo2Config, OlmoConfig
    from scratch_olmo.model import Olmo, Olmo2

SPEC = ModelSpec(
    name="olmo",
    models={"causal_lm": "scratch_olmo:Olmo"},
    presets={
        "tiny": 885_760,
        "olmo_1b": 1_176_764_416,
        "olmo_7b": 6_888_095_744,
        "olmo_7b_0424": 6_888_095_744,
    },
    recipes={
        "tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16},
        # https://arxiv.org/abs/2402.00838, section 3.3.
        "olmo_1b": {"learning_rate": 4e-4},
        "olmo_7b": {"learning_rate": 3e-4},
    },
)

SPEC_2 = ModelSpec(
    name="olmo2",
    models={"causal_lm": "scratch_olmo:Olmo2"},
    presets={
        "tiny": 921_728,
        "olmo2_1b": 1_484_916_736,
        "olmo2_7b": 7_298_617_344,
        "olmo2_13b": 13_716_198_400,
        "olmo2_32b": 32_234_279_936,
    },
    recipes={
        "tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16},
        # https://arxiv.org/abs/2501.00656, section 2.
        "olmo2_7b": {"learning_rate": 3e-4},
        "olmo2_13b": {"learning_rate": 9e-4},
    },
)

__all__ = ["SPEC", "SPEC_2", "Olmo", "Olmo2", "Olmo2Config", "OlmoConfig"]

__getattr__ = lazy(__name__, Olmo="model", Olmo2="model", Olmo2Config="config", OlmoConfig="config")
