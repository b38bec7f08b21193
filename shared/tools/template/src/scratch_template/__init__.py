"""Template in JAX and Flax NNX."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_template.config import TemplateConfig
    from scratch_template.model import Template

SPEC = ModelSpec(
    name="template",
    models={"causal_lm": "scratch_template:Template"},
    presets={"tiny": 140_608},
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}},
)

__all__ = ["SPEC", "Template", "TemplateConfig"]

__getattr__ = lazy(__name__, Template="model", TemplateConfig="config")
