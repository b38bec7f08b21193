"""Swin Transformer V2 in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_swin.config import SwinConfig
from scratch_swin.model import Swin

SPEC = ModelSpec(
    name="swin",
    models=(Swin,),
    presets=(
        "tiny",
        "t_w8",
        "t_w16",
        "s_w8",
        "s_w16",
        "b_w8",
        "b_w16",
        "b_w12",
        "b_w12to16",
        "b_w12to24",
        "l_w12",
        "l_w12to16",
        "l_w12to24",
    ),
    task="image_classification",
)

__all__ = ["SPEC", "Swin", "SwinConfig"]
