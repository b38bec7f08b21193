"""The installed models, found by entry points. Core never imports a model by name.

A model package registers, in its pyproject.toml:

* ``scratch.models``: ``llama = "scratch_llama:SPEC"``, a :class:`ModelSpec`. Listing models imports no model.
* ``scratch.architectures``: ``LlamaForCausalLM = "scratch_llama:Llama"`` for each name that a config.json may have
  under "architectures", so that loading a checkpoint imports one package.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_core.config import architectures, read_json
from scratch_core.errors import ConfigError

if TYPE_CHECKING:
    from flax import nnx
    from jax.sharding import Mesh

    from scratch_core.pretrained import PretrainedModel

MODELS, ARCHITECTURES = "scratch.models", "scratch.architectures"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model package offers. Reading it does not import JAX.

    ``models`` names the class of each task, as {"causal_lm": "scratch_llama:Llama"}; the first task is the default.
    ``presets`` are classmethods of the configuration with their number of parameters, as {"llama2_7b": 6738415616}.
    ``recipes`` give, for some presets, defaults of training options, as {"llama2_7b": {"learning_rate": 3e-4}}.
    """

    name: str
    models: Mapping[str, str]
    presets: Mapping[str, int]
    recipes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> str:
        """The default task."""
        return next(iter(self.models))

    def model(self, task: str | None = None) -> "type[PretrainedModel]":
        """Return the class for a task (None: the default). Raises ConfigError that lists the tasks."""
        task = self.task if task is None else task
        if task not in self.models:
            raise ConfigError(f"{self.name} has no task {task!r}; choose one of: {', '.join(self.models)}")
        module, _, name = self.models[task].partition(":")
        return getattr(import_module(module), name)

    def config(self, preset: str) -> Any:
        """Return the configuration of a preset. Raises ConfigError that lists the known ones."""
        self._check_preset(preset)
        return getattr(self.model().Config, preset)()

    def recipe(self, preset: str) -> Mapping[str, Any]:
        """Return the defaults of training options of a preset, {} if it has none; errors as for :meth:`config`."""
        self._check_preset(preset)
        return self.recipes.get(preset, {})

    def _check_preset(self, preset: str) -> None:
        if preset not in self.presets:
            raise ConfigError(f"unknown preset {preset!r} of {self.name}; known presets: {', '.join(self.presets)}")


def installed() -> dict[str, ModelSpec]:
    """Return the specs of all installed model packages, by name; one that cannot be imported gives a warning."""
    specs = {}
    for point in sorted(metadata.entry_points(group=MODELS)):
        try:
            specs[point.name] = point.load()
        except Exception as error:  # an error in one package must not hide the others
            warnings.warn(f"model package {point.value} cannot be imported: {error!r}", stacklevel=2)
    return specs


def find(name: str) -> ModelSpec:
    """Return the spec of one model. Raises ConfigError that lists the installed ones and how to install another."""
    for point in metadata.entry_points(group=MODELS, name=name):
        return point.load()
    names = ", ".join(sorted(point.name for point in metadata.entry_points(group=MODELS))) or "none"
    raise ConfigError(
        f"model {name!r} is not installed (installed: {names}). If scratch-{name} provides it, install it: "
        f"`uv pip install scratch-{name}`, or in a clone `uv sync --all-packages`"
    )


def find_class(fields: Mapping[str, Any]) -> "type[PretrainedModel]":
    """Return the class that a config.json describes.

    Its "architectures" name an entry point. Without them, it is the installed class that recognises the fields. Raises
    ConfigError that lists the installed architectures.
    """
    names = architectures(fields)
    for name in names:
        for point in metadata.entry_points(group=ARCHITECTURES, name=name):
            return point.load()
    if not names:
        for spec in installed().values():
            for task in spec.models:
                if spec.model(task).recognises(fields):
                    return spec.model(task)
    known = sorted(point.name for point in metadata.entry_points(group=ARCHITECTURES))
    wanted = ", ".join(names) or f"none is named; model_type is {fields.get('model_type')!r}"
    raise ConfigError(
        f"no installed package provides config.json's architecture ({wanted}); "
        f"installed: {', '.join(known) or 'none'}. Install the package that provides it "
        "(in a clone: `uv sync --all-packages`), or name one of these under "
        '"architectures"'
    )


def load(
    folder: str | Path,
    dtype: Any = None,
    mesh: "Mesh | None" = None,
    *,
    model_class: "type[PretrainedModel] | None" = None,
    config: Any = None,
    fresh: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    rngs: "nnx.Rngs | None" = None,
    allow_nonfinite: bool = False,
) -> Any:
    """Return the model of a Hugging Face folder or Hub id, in evaluation mode.

    model_class: the class to load; None: the one that config.json's "architectures" names. All other arguments are
    those of :func:`scratch_core.weights.load`. Raises CheckpointError or ConfigError.
    """
    from scratch_core import weights

    folder = weights.resolve(folder)
    model_class = model_class or find_class(read_json(folder / "config.json"))
    return weights.load(
        folder,
        model_class,
        dtype=dtype,
        mesh=mesh,
        config=config,
        fresh=fresh,
        ignore=ignore,
        rngs=rngs,
        allow_nonfinite=allow_nonfinite,
    )
