"""Template in JAX and Flax NNX."""

from scratch_core import ModelSpec

from scratch_template.config import TemplateConfig
from scratch_template.model import Template

SPEC = ModelSpec(name="template", models=(Template,), presets=("tiny",), task="causal_lm")

__all__ = ["SPEC", "Template", "TemplateConfig"]
