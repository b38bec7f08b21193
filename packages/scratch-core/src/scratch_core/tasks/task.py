"""The base class of tasks, and the lookup of installed tasks.

A package that provides a task registers one object in its pyproject.toml, under the name that its model classes give as
``task``:

    [project.entry-points."scratch.tasks"]
    causal_lm = "scratch_core.tasks.causal_lm:TASK"
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.pretrained import PretrainedModel
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RunOptions
from scratch_core.train.batches import BatchHandling

if TYPE_CHECKING:
    from scratch_core.train.step import LossFunction

TASKS = "scratch.tasks"
Rows = Sequence[Mapping[str, Any]]
"""The rows of a file, each with the fields of its columns."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """The model and data of one run, and what the run prints and saves. :meth:`Task.prepare` returns it.

    ``batches[k]`` is the batch of step k. ``held_out`` gives the batches of the evaluation. ``description`` is one
    line about the data; a resumed run must have data of the same ``fingerprint``. ``update`` describes the input of
    one update, such as "64 images". ``trainable`` is the nnx filter of the parameters to learn. ``metrics`` are
    measured on the held-out data beside the loss. ``example`` is one example of a batch; the memory of a step is
    estimated from it.
    """

    model: PretrainedModel
    batches: Any
    held_out: Iterable[Any]
    description: str
    fingerprint: str
    update: str
    trainable: Any = nnx.Param
    example: Any = None
    metrics: "Mapping[str, LossFunction]" = dataclasses.field(default_factory=dict)

    def loss(self, model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the training loss; by default the model's own loss."""
        return model.loss(batch)

    def save(self, folder: Path) -> None:
        """Write the model, and the files that it needs, into a folder."""
        self.model.save_pretrained(folder)

    def show_before(self) -> None:
        """Print what the model does before the first step; by default nothing."""

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print what the trained model does. ``results`` has the loss and the metrics on the held-out data."""
        for name, value in results.items():
            print(f"held-out {name} {value:.4f}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the words after `scratch` of a command that uses the trained model."""
        return "inspect", str(folder)


class Task(BatchHandling):
    """Base class of tasks: the options of a run, its preparation, and the handling of batches.

    A task has no state, so that one instance serves all runs.
    """

    name: ClassVar[str]
    """The name of the entry point, and the ``task`` of the model classes."""
    Options: ClassVar[type[RunOptions]] = RunOptions
    """The options of `scratch train`."""
    fine_tuning: ClassVar[Mapping[str, Any]] = {}
    """Default options of a run that starts from a checkpoint, for which the preset's recipe does not apply."""
    contract: ClassVar[str]
    """The test class that the tests of a package inherit for its model, as "scratch_core.testing:CausalLMContract"."""
    PredictOptions: ClassVar[type | None] = None
    """A dataclass of the arguments after the folder in `scratch predict FOLDER ...`; None: the task has no predict."""
    row_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of a row for :meth:`predict_rows`. The first is also the first field of ``PredictOptions``, which then
    needs a field ``out``: the file that `scratch predict FOLDER INPUT.jsonl --out FILE` writes."""
    instead_of_predict: ClassVar[str] = ""
    """A hint at the command to use instead, for a task without `scratch predict`."""

    def prepare(self, spec: ModelSpec, options: Any) -> Job:
        """Return the job of a run; ``options`` are of the class ``Options``. Raises ConfigError or DataError."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare(spec, options)")

    def noise(self, config: Any, batch_size: int) -> Any:
        """Return a random batch, always the same, on which a model of this configuration can be trained."""
        raise NotImplementedError(f"{type(self).__name__} must define noise(config, batch_size)")

    def shapes(self, config: Any, batch_size: int, length: int) -> Any:
        """Return the shapes of a training batch. Examples of a task on tokens have ``length`` tokens each.

        Raises ConfigError if the task has no fixed shapes; `scratch plan` cannot serve it then.
        """
        raise ConfigError(
            f"the batches of {self.name} have no shape that is known beforehand, so that no step can be planned: plan "
            "a model of another task"
        )

    def predict(self, folder: Path, model_class: type[PretrainedModel], options: Any) -> None:
        """Print the predictions of the model in a folder. ``options`` is a ``PredictOptions``."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(folder, model_class, options)")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: Any) -> list[Any]:
        """Return the model's prediction for each row, as a value that JSON can hold.

        Raises DataError for a row that the model cannot read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict_rows(folder, model, rows, options)")


def find_task(name: str) -> Task:
    """Return an installed task. Raises ConfigError that lists the installed ones."""
    for point in metadata.entry_points(group=TASKS, name=name):
        return point.load()
    names = ", ".join(sorted(point.name for point in metadata.entry_points(group=TASKS))) or "none"
    raise ConfigError(
        f"no installed package provides the task {name!r} (installed: {names}): install the package that does, "
        f"or name another task with --task"
    )
