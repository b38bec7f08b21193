"""Vision Transformer in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_vit.config import ViTConfig
    from scratch_vit.model import ViT

SPEC = ModelSpec(
    name="vit",
    models={"image_classification": "scratch_vit:ViT"},
    presets={
        "tiny": 136_138,
        "ti16": 5_717_416,
        "ti32": 6_131_560,
        "s16": 22_050_664,
        "s32": 22_878_952,
        "b16": 86_567_656,
        "b32": 88_224_232,
        "l16": 304_326_632,
        "l32": 306_535_400,
    },
    recipes={
        "tiny": {"steps": 1200, "learning_rate": 3e-3, "batch_size": 64},
    },
)

__all__ = ["SPEC", "ViT", "ViTConfig"]

__getattr__ = lazy(__name__, ViT="model", ViTConfig="config")
