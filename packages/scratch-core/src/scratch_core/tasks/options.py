"""The options of a training run, as the command line shows them; a task adds its own in a derived class."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import tyro

from scratch_core.errors import ConfigError


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
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint instead of from random parameters; --preset is not used then."""
    norms: bool = False
    """Log the norms of gradients and parameters of each part of the model."""
    profile: bool = False
    """Write a profiler's trace of three steps into the run's folder."""
    log: Literal["file", "tensorboard", "wandb"] = "file"
    """Where metrics go beside the run's metrics.jsonl: nowhere, into its folder for TensorBoard, or to wandb."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the run goes: a new folder. The default is a new one under runs/."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume this run with its own options; without a value, the newest run of this model under runs/.
    Only --steps may be changed."""

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

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        for name in ("steps", "batch_size", "accumulate", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"--learning-rate {self.learning_rate} must be above 0 and finite")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"--weight-decay {self.weight_decay} must be at least 0 and finite")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed} must be in 0 .. 2**32 - 1")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}")


def flag(name: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + name.replace("_", "-")
