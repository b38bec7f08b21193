"""Metrics for services that people use: TensorBoard and Weights & Biases, each an extra of scratch-core."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from scratch_core.errors import MissingExtraError
from scratch_core.weights.key_table import flatten


class Logger(Protocol):
    """What gets each line of metrics.jsonl as it is written."""

    def append(self, record: dict[str, Any]) -> None:
        """Take the numbers of one logged step, with its "step"."""
        ...


class TensorBoard:
    """Writes event files for `tensorboard --logdir FOLDER`. Raises MissingExtraError without the extra."""

    def __init__(self, folder: Path):
        try:
            writers = import_module("tensorboardX")
        except ImportError:
            raise MissingExtraError("tensorboard", "--log tensorboard") from None
        self._writer = writers.SummaryWriter(str(folder / "tensorboard"))

    def append(self, record: dict[str, Any]) -> None:
        """Write each number of the record as a scalar."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()


class WeightsAndBiases:
    """Sends metrics to a run of wandb, named after the folder. Raises MissingExtraError without the extra."""

    def __init__(self, folder: Path):
        try:
            wandb = import_module("wandb")
        except ImportError:
            raise MissingExtraError("wandb", "--log wandb") from None
        self._run = wandb.init(project="scratch", name=folder.name, dir=str(folder), resume="allow")

    def append(self, record: dict[str, Any]) -> None:
        """Send the record."""
        self._run.log(_numbers(record), step=record["step"])


def open_loggers(name: str, folder: Path) -> list[Logger]:
    """Return what ``--log`` names beside metrics.jsonl. Raises MissingExtraError."""
    kinds: Mapping[str, list[type[TensorBoard] | type[WeightsAndBiases]]] = {
        "file": [],
        "tensorboard": [TensorBoard],
        "wandb": [WeightsAndBiases],
    }
    return [kind(folder) for kind in kinds[name]]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in flatten(record).items() if name != "step"}
