"""The options of a training run, as the command line shows them; a task adds its own in a derived class."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import tyro

from scratch_core.errors import ConfigError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from scratch_core.data.rows import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that every task has. Each value is a str, int, float, bool or None, so that run.json can hold it.

    ``paths`` names the options that are file paths. ``steps`` and ``learning_rate`` have no default here: they come
    from the recipe of the preset or from the command line.
    """

    paths: ClassVar[tuple[str, ...]] = ("start",)

    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """The task to train the model for; `scratch models` lists the tasks of each model. The default is the first."""
    preset: str = "tiny"
    """Size of the model; `scratch models` lists the presets."""
    steps: int
    """Number of updates in total."""
    batch_size: int = 32
    """Examples per update."""
    learning_rate: float
    """Peak learning rate, reached after the warm-up and before the decay."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] | None = None
    """How the learning rate falls: with a cosine, linearly, only in the last tenth of the steps, or not at all.
    The default depends on the optimizer; for most it is cosine."""
    average: float = 0.0
    """Evaluate and save the moving average of the parameters with this decay, such as 0.999. 0: no averaging."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type in which the layers compute; the parameters stay float32."""
    optimizer: str = "adamw"
    """The optimizer; installed packages may add others."""
    weight_decay: float = 0.1
    """Weight decay of the weight matrices; each step multiplies it by the learning rate."""
    accumulate: int = 1
    """Split each batch into this many parts to use less memory; the result is the same."""
    seed: int = 0
    """Seed of the initial parameters and the order of the data."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints to keep."""
    evaluate_every: int | None = None
    """Steps between evaluations on the held-out data; 0: only one at the end. The default is a tenth of the steps,
    or more if evaluations would take more than about a twentieth of the time."""
    patience: int = 0
    """Stop after this many evaluations in a row without a lower held-out loss; 0: never. It may be changed when
    resuming."""
    keep_best: int = 0
    """Save after each evaluation, and keep this many checkpoints with the lowest held-out loss beside the newest. The
    run then ends with the best model."""
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint instead of random parameters; --preset is then ignored."""
    norms: bool = False
    """Log the norms of gradients and parameters of each part of the model."""
    profile: bool = False
    """Write a profiler's trace of three steps into the run's folder."""
    log: Literal["file", "tensorboard", "wandb"] = "file"
    """Where to log metrics besides the run's metrics.jsonl: nowhere, to TensorBoard files in its folder, or wandb."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXES")] = None
    """Split the work over devices, such as "fsdp=4,tensor=2"; the axes are data, fsdp, expert and tensor.
    It may be changed when resuming."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """For several processes: the address of process 0, or "auto" to take it from SLURM or Kubernetes."""
    processes: int | None = None
    """The number of processes, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """The number of this process, from 0, with --coordinator HOST:PORT."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A new folder for the run. The default is a new folder under runs/."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume this run with its own options; without a value, the newest run of this model under runs/.
    Only --steps, --patience and --mesh may be changed."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Start a new run with the options in this file, the run.json of another run. Options on the command line take
    precedence."""

    @property
    def checkpoint(self) -> str | None:
        """The folder or Hub id to read the model from, None for a new model. A resumed run reads its own copy."""
        return None if self.start is None else self.start if self.resume is None else str(Path(self.resume, "start"))

    def absolute(self) -> Self:
        """Return the same options with absolute paths in ``paths``, so that the run can be resumed from anywhere.

        A path that does not exist stays unchanged, because it may be a Hub id.
        """
        found = {name: getattr(self, name) for name in self.paths}
        absolute = {name: str(Path(path).absolute()) for name, path in found.items() if path and Path(path).exists()}
        return dataclasses.replace(self, **absolute)

    def device_mesh(self) -> "Mesh | None":
        """Return the device mesh of ``mesh``. Raises ConfigError if there are too few devices, or some are left out."""
        if self.mesh is None:
            return None
        from scratch_core.parallel import make_mesh, parse_mesh

        return make_mesh(devices=None, **parse_mesh(self.mesh))

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        for name in ("steps", "batch_size", "accumulate", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least 1")
        for name in ("evaluate_every", "patience", "keep_best"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least 0")
        for name in ("patience", "keep_best"):
            if getattr(self, name) and self.evaluate_every == 0:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} needs --evaluate-every N with N above 0")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"--learning-rate {self.learning_rate} must be above 0 and finite")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"--weight-decay {self.weight_decay} must be at least 0 and finite")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed} must be in 0 .. 2**32 - 1")
        if self.mesh is not None:
            from scratch_core.parallel import parse_mesh

            parse_mesh(self.mesh)
        given = [flag(name) for name in ("processes", "process_id") if getattr(self, name) is not None]
        if self.coordinator is None and given:
            raise ConfigError(f"{given[0]} needs a --coordinator HOST:PORT")
        if self.coordinator not in (None, "auto") and len(given) < 2:
            raise ConfigError(f"--coordinator {self.coordinator} needs --processes and --process-id")
        if self.coordinator == "auto" and given:
            raise ConfigError(f"--coordinator auto finds the number of processes itself: leave {given[0]} out")
        if self.coordinator is not None and self.mesh is None:
            raise ConfigError("--coordinator needs a --mesh over all devices of all processes, such as fsdp=8")
        if self.coordinator is not None and self.out is None and self.resume is None:
            raise ConfigError("--coordinator needs an --out: a folder that all processes see under this name")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(RunOptions):
    """Options of every task that reads data from files."""

    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a bad row or a broken image: end the run, or skip and count it."""

    def reading(self) -> "Reading":
        """Return how rows are read. The object counts the rows that are skipped."""
        from scratch_core.data.rows import Reading

        return Reading(self.on_error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions(DataOptions):
    """Options of every task that reads rows."""

    columns: Annotated[str | None, tyro.conf.arg(metavar="FIELD=COLUMN,...")] = None
    """The columns that hold the fields, where their names differ from those of the fields, such as
    "text=review,label=stars"."""

    def reading(self) -> "Reading":
        """Return how rows are read. Raises ConfigError if ``columns`` is malformed."""
        from scratch_core.data.rows import Reading, parse_columns

        return Reading(self.on_error, parse_columns(self.columns))


def flag(name: str) -> str:
    """Return an option's name as on the command line."""
    return "--" + name.replace("_", "-")
