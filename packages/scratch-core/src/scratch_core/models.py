"""What every model is, and how the installed ones are found.

A model package registers a :class:`ModelSpec` under the entry point group ``scratch.models``. Core never
imports a model by name.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core.errors import ConfigError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from scratch_core.weights import Copy, Rule

GROUP = "scratch.models"

# Model types whose package carries the name of their family; every other package is named as its type.
FAMILY = {"gemma2": "gemma", "gpt_neo": "gptneo", "olmo2": "olmo", "swinv2": "swin"}


class PretrainedModel(nnx.Module):
    """Base of every model that has a checkpoint format: ``Model(config, *, dtype, rngs)``.

    ``dtype`` is what the layers compute in; parameters are created float32.
    """

    Config: ClassVar[Any]
    """Frozen dataclass with ``from_hf(fields) -> Config`` and ``to_hf() -> dict`` (with "model_type")."""
    architectures: ClassVar[tuple[str, ...]]
    """Names in config.json's "architectures" that mean this class; the first one is written."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of their keys that hold nothing learned, such as tables computed from the config."""
    axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    """Rows that the sharding table of :mod:`scratch_core.parallel` lacks: parameter path -> logical axes."""

    def __init__(self, config: Any, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        raise NotImplementedError(f"{type(self).__name__} must define __init__(config, *, dtype, rngs)")

    config: Any
    checkpoint_dtype: str | None = None
    """Dtype that :func:`scratch_core.save` writes, such as "bfloat16"; None: what the parameters have."""

    @staticmethod
    def rules(config: Any) -> "list[Rule | Copy]":
        """Return the key table of this configuration: the model package's ``convert.rules``."""
        raise NotImplementedError

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key that older checkpoints spell otherwise."""
        return key

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """Return whether a config.json with these fields describes this class."""
        return any(name in cls.architectures for name in architectures(fields))

    def read_companions(self, folder: Path) -> None:
        """Read what a folder holds beside config and weights, such as preprocessing; by default nothing."""

    def write_companions(self, folder: Path) -> None:
        """Write what :meth:`read_companions` reads."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: Any = None, mesh: "Mesh | None" = None) -> Self:
        """Return this class with the weights of a folder or Hub id, in evaluation mode; see :func:`scratch_core.load`.

        Raises CheckpointError or ConfigError.
        """
        from scratch_core import weights

        return weights.load(folder, dtype=dtype, mesh=mesh, model_class=cls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; see :func:`scratch_core.save`."""
        from scratch_core import weights

        weights.save(self, folder)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model package offers: its classes, its presets (classmethods of their Config) and its training task."""

    name: str
    models: tuple[type[PretrainedModel], ...]
    presets: tuple[str, ...]
    task: str

    def config(self, preset: str) -> Any:
        """Return the configuration of a preset. Raises ConfigError that lists the known ones."""
        if preset not in self.presets:
            raise ConfigError(f"unknown preset {preset!r} of {self.name}; known presets: {', '.join(self.presets)}")
        return getattr(self.models[0].Config, preset)()


@cache
def installed() -> dict[str, ModelSpec]:
    """Return the specs of all installed model packages, by name; one that cannot be imported is warned of."""
    specs = {}
    for point in sorted(metadata.entry_points(group=GROUP)):
        try:
            specs[point.name] = point.load()
        except Exception as error:  # someone else's package: whatever it raises must not take the others down
            warnings.warn(f"model package {point.value} cannot be imported: {error!r}", stacklevel=2)
    return specs


def find(name: str) -> ModelSpec:
    """Return the spec of one model. Raises ConfigError that lists the installed ones and how to install another."""
    names = sorted(point.name for point in metadata.entry_points(group=GROUP))
    if name in names:
        return next(iter(metadata.entry_points(group=GROUP, name=name))).load()
    raise ConfigError(f"model {name!r} is not installed (installed: {', '.join(names) or 'none'}). {_install(name)}")


def find_class(fields: Mapping[str, Any]) -> type[PretrainedModel]:
    """Return the class that a config.json describes. Raises ConfigError that names the package to install."""
    for spec in installed().values():
        for model in spec.models:
            if model.recognises(fields):
                return model
    known = sorted({name for spec in installed().values() for model in spec.models for name in model.architectures})
    kind = str(fields.get("model_type") or "")
    wanted = ", ".join(architectures(fields)) or kind or "none named"
    package = FAMILY.get(kind, re.sub(r"[^a-z0-9]", "", kind.lower()))
    raise ConfigError(
        f"config.json's architecture ({wanted}) is of no installed package; installed: {', '.join(known) or 'none'}. "
        + (_install(package) if package else 'Name one of these under "architectures"')
    )


def architectures(fields: Mapping[str, Any]) -> list[str]:
    """Return config.json's "architectures". Raises ConfigError if that is not a list of names."""
    names = fields.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"config.json: architectures={names!r} must be a list of names")
    return names


def _install(name: str) -> str:
    return (
        f"If scratch-{name} provides it, install it: `uv pip install scratch-{name}`, or here `uv sync --all-packages`"
    )


class _StillStream(nnx.RngStream):
    """A random stream that does not count: under tracing, counting takes time quadratic in the number of draws."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def count_parameters(model_class: type[PretrainedModel], config: Any) -> int:
    """Return the number of parameters of a configuration, without allocating them.

    A stack of alike layers is counted from its first three: tracing eighty takes many seconds.
    """

    def create(config: Any) -> PretrainedModel:
        rngs: Any = nnx.Rngs(0)
        rngs.default = _StillStream(0, tag="default")
        return model_class(config, rngs=rngs)

    def count(config: Any) -> int:
        abstract = nnx.eval_shape(lambda: create(config))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))

    layers = getattr(config, "num_layers", 0)
    if layers > 3:
        try:
            one, two, three = (count(dataclasses.replace(config, num_layers=n)) for n in (1, 2, 3))
        except ConfigError:  # this configuration cannot be built with fewer layers
            return count(config)
        if three - two == two - one:
            return one + (layers - 1) * (two - one)
    return count(config)
