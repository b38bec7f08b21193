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
    """Options that every task has. Each is a str, int, float or bool, or None: run.json must be able to hold it.

    ``paths`` names the options that are paths of files. ``steps`` and ``learning_rate`` have no default here: the
    recipe of the preset gives them, or the person who trains.
    """

    paths: ClassVar[tuple[str, ...]] = ("start",)

    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """What to train the model for; `scratch models` lists the tasks of each model. The default is its first."""
    preset: str = "tiny"
    """Size of the model; `scratch models` lists them."""
    steps: int
    """Number of updates in total."""
    batch_size: int = 32
    """Examples per update."""
    learning_rate: float
    """The peak: after the warm-up, before the decay."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] | None = None
    """How the learning rate falls: with a cosine, linearly, only in the last tenth of the steps, or not at all.
    The default is the optimizer's own, a cosine for most."""
    average: float = 0.0
    """Evaluate and save the moving average of the parameters with this decay, such as 0.999; 0: the last ones."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; the parameters stay float32."""
    optimizer: str = "adamw"
    """The optimizer; installed packages may add others."""
    weight_decay: float = 0.1
    """Of the matrices that multiply, per step, times the learning rate."""
    accumulate: int = 1
    """Split each batch into this many parts, which needs less memory; the result is the same."""
    seed: int = 0
    """Of the parameters and the order of the data."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the newest checkpoints to keep."""
    evaluate_every: int | None = None
    """Steps between evaluations on the held-out data; 0: only one at the end. The default is a tenth of the steps,
    or so many that evaluations take about a twentieth of the time."""
    patience: int = 0
    """Stop after this many evaluations in a row without a lower held-out loss; 0: never. A resumed run may have
    another one."""
    keep_best: int = 0
    """Save after each evaluation, and keep this many checkpoints of lowest held-out loss beside the newest; the run
    then ends with the model of the best."""
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint instead of from random parameters; --preset is not used then."""
    norms: bool = False
    """Log the norms of gradients and parameters of each part of the model."""
    profile: bool = False
    """Write a profiler's trace of three steps into the run's folder."""
    log: Literal["file", "tensorboard", "wandb"] = "file"
    """Where metrics go beside the run's metrics.jsonl: nowhere, into its folder for TensorBoard, or to wandb."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXES")] = None
    """Split the work over devices, such as "fsdp=4,tensor=2"; the axes are data, fsdp, expert and tensor.
    A resumed run may have another one."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """For several processes: where process 0 listens, or "auto" for what SLURM or Kubernetes set."""
    processes: int | None = None
    """How many processes there are, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the run goes: a new folder. The default is a new one under runs/."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume this run with its own options; without a value, the newest run of this model under runs/.
    Only --steps, --patience and --mesh may be changed."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Start a new run with the options in this file, the run.json of another run; those given here take precedence."""

    @property
    def checkpoint(self) -> str | None:
        """The folder or Hub id that the model is read from, None for a new one; a run has a copy of its own."""
        return None if self.start is None else self.start if self.resume is None else str(Path(self.resume, "start"))

    def absolute(self) -> Self:
        """Return the same options with absolute paths in ``paths``, so that the run can be resumed from anywhere.

        A path that does not exist stays as it was written: it may be a Hub id.
        """
        found = {name: getattr(self, name) for name in self.paths}
        there = {name: str(Path(path).absolute()) for name, path in found.items() if path and Path(path).exists()}
        return dataclasses.replace(self, **there)

    def device_mesh(self) -> "Mesh | None":
        """Return the mesh of ``mesh``. Raises ConfigError if there are not enough devices, or some are left out."""
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
    """What a bad row or a broken image does: end the run, or be left out and counted."""

    def reading(self) -> "Reading":
        """Return how rows are read; it counts those that it skips."""
        from scratch_core.data.rows import Reading

        return Reading(self.on_error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions(DataOptions):
    """Options of every task that reads rows."""

    columns: Annotated[str | None, tyro.conf.arg(metavar="FIELD=COLUMN,...")] = None
    """Which columns of a file with rows hold the fields, where they have other names, such as
    "text=review,label=stars"."""

    def reading(self) -> "Reading":
        """Return how rows are read. Raises ConfigError if ``columns`` cannot be understood."""
        from scratch_core.data.rows import Reading, parse_columns

        return Reading(self.on_error, parse_columns(self.columns))


def flag(name: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + name.replace("_", "-")
