"""ResNet v1.5 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_resnet.config import ResNetConfig
    from scratch_resnet.model import ResNet

SPEC = ModelSpec(
    name="resnet",
    models={"image_classification": "scratch_resnet:ResNet"},
    presets={
        "tiny": 78_570,
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
    },
    recipes={
        "tiny": {"steps": 1200, "learning_rate": 3e-3, "batch_size": 64},
    },
)

__all__ = ["SPEC", "ResNet", "ResNetConfig"]

__getattr__ = lazy(__name__, ResNet="model", ResNetConfig="config")
