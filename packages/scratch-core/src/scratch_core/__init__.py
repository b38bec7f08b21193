"""What the Scratch models share, and the functions that work with any of them.

Names are imported when first used, so that ``import scratch_core`` costs little. The import only switches off a fault
of jaxlib (``compiler.py``), which has to happen before JAX's backend starts.
"""

from typing import TYPE_CHECKING

from scratch_core.compiler import avoid_faulty_fusions
from scratch_core.lazy import lazy

if TYPE_CHECKING:
    from scratch_core.decoder import CausalLM
    from scratch_core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MissingExtraError,
        ScratchError,
        TrainingError,
    )
    from scratch_core.generation import beam_search, generate, stream
    from scratch_core.pretrained import PretrainedModel
    from scratch_core.registry import ModelSpec, load
    from scratch_core.weights import Rule, save, to_hf

__all__ = [
    "CausalLM",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "ModelSpec",
    "PretrainedModel",
    "Rule",
    "ScratchError",
    "TrainingError",
    "beam_search",
    "generate",
    "lazy",
    "load",
    "save",
    "stream",
    "to_hf",
]

avoid_faulty_fusions()

__getattr__ = lazy(
    __name__,
    CausalLM="decoder",
    CheckpointError="errors",
    ConfigError="errors",
    DataError="errors",
    MissingExtraError="errors",
    ModelSpec="registry",
    PretrainedModel="pretrained",
    Rule="weights",
    ScratchError="errors",
    TrainingError="errors",
    beam_search="generation",
    generate="generation",
    load="registry",
    save="weights",
    stream="generation",
    to_hf="weights",
)
