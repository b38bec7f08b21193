"""LeNet-5 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_cnn.config import LeNet5Config
    from scratch_cnn.model import LeNet5

SPEC = ModelSpec(
    name="cnn",
    models={"image_classification": "scratch_cnn:LeNet5"},
    presets={
        "tiny": 61_706,
        "modern": 61_706,
        "paper": 60_000,
    },
    recipes={
        "tiny": {"steps": 1200, "learning_rate": 3e-3, "batch_size": 64},
        "modern": {"steps": 1200, "learning_rate": 3e-3, "batch_size": 64},
    },
)

__all__ = ["SPEC", "LeNet5", "LeNet5Config"]

__getattr__ = lazy(__name__, LeNet5="model", LeNet5Config="config")
