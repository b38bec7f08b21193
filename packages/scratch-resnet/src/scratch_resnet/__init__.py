"""ResNet v1.5 in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_resnet.config import ResNetConfig
from scratch_resnet.model import ResNet

SPEC = ModelSpec(
    name="resnet",
    models=(ResNet,),
    presets=("tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    task="image_classification",
)

__all__ = ["SPEC", "ResNet", "ResNetConfig"]
