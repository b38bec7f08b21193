"""What the Scratch models share, and the functions that take any of them.

Names are imported when first used, so that ``import scratch_core`` costs little. It only switches off a fault of
jaxlib 0.10.2 (``compiler.py``), which has to happen before JAX's backend starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from scratch_core.compiler import avoid_faulty_fusions

if TYPE_CHECKING:
    from scratch_core.errors import CheckpointError, ConfigError, DataError, ScratchError
    from scratch_core.generation import generate, stream
    from scratch_core.models import ModelSpec, PretrainedModel
    from scratch_core.weights import Rule, load, save, to_hf

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ModelSpec",
    "PretrainedModel",
    "Rule",
    "ScratchError",
    "generate",
    "load",
    "save",
    "stream",
    "to_hf",
]

_HOME = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ModelSpec": "models",
    "PretrainedModel": "models",
    "Rule": "weights",
    "ScratchError": "errors",
    "generate": "generation",
    "load": "weights",
    "save": "weights",
    "stream": "generation",
    "to_hf": "weights",
}

avoid_faulty_fusions()


def __getattr__(name: str):
    """Import ``scratch_core.name`` from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'scratch_core' has no attribute {name!r}")
    return getattr(import_module(f"scratch_core.{_HOME[name]}"), name)
