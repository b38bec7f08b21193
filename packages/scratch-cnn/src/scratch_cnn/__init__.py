"""LeNet-5 in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_cnn.config import LeNet5Config
from scratch_cnn.model import LeNet5

SPEC = ModelSpec(name="cnn", models=(LeNet5,), presets=("tiny", "modern", "paper"), task="image_classification")

__all__ = ["SPEC", "LeNet5", "LeNet5Config"]
