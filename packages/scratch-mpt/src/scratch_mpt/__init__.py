"""MPT in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_mpt.config import MPTConfig
    from scratch_mpt.model import MPT

SPEC = ModelSpec(
    name="mpt",
    models={"causal_lm": "scratch_mpt:MPT"},
    presets={
        "tiny": 821_376,
        "mpt_7b": 6_649_286_656,
        "mpt_30b": 29_957_200_896,
    },
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["MPT", "SPEC", "MPTConfig"]

__getattr__ = lazy(__name__, MPT="model", MPTConfig="config")
