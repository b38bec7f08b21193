"""T5 (v1.0, v1.1, Flan) in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_t5.config import T5Config
    from scratch_t5.model import T5

SPEC = ModelSpec(
    name="t5",
    models={"seq2seq": "scratch_t5:T5"},
    presets={
        "tiny": 548_992,
        "t5_small": 60_506_624,
        "t5_base": 222_903_552,
        "t5_large": 737_668_096,
        "t5_3b": 2_851_598_336,
        "t5_11b": 11_307_321_344,
        "v1_1_small": 76_961_152,
        "v1_1_base": 247_577_856,
        "v1_1_large": 783_150_080,
        "v1_1_xl": 2_849_757_184,
        "v1_1_xxl": 11_135_332_352,
    },
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "T5", "T5Config"]

__getattr__ = lazy(__name__, T5="model", T5Config="config")
