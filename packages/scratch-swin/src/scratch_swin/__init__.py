"""Swin Transformer V2 in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_swin.config import SwinConfig
    from scratch_swin.model import Swin

SPEC = ModelSpec(
    name="swin",
    models={"image_classification": "scratch_swin:Swin"},
    presets={
        "tiny": 105_462,
        "t_w8": 28_347_154,
        "t_w16": 28_347_154,
        "s_w8": 49_728_418,
        "s_w16": 49_728_418,
        "b_w8": 87_918_816,
        "b_w16": 87_918_816,
        "b_w12": 109_280_841,
        "b_w12to16": 87_918_816,
        "b_w12to24": 87_918_816,
        "l_w12": 228_772_549,
        "l_w12to16": 196_739_932,
        "l_w12to24": 196_739_932,
    },
    recipes={
        "tiny": {"steps": 1200, "learning_rate": 3e-3, "batch_size": 64},
    },
)

__all__ = ["SPEC", "Swin", "SwinConfig"]

__getattr__ = lazy(__name__, Swin="model", SwinConfig="config")
