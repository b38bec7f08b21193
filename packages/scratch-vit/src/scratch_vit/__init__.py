"""Vision Transformer in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_vit.config import ViTConfig
from scratch_vit.model import ViT

SPEC = ModelSpec(
    name="vit",
    models=(ViT,),
    presets=("tiny", "ti16", "ti32", "s16", "s32", "b16", "b32", "l16", "l32"),
    task="image_classification",
)

__all__ = ["SPEC", "ViT", "ViTConfig"]
