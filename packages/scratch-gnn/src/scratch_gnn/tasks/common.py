"""Code that the three tasks share: options, how a batch is counted, split and placed, and the files of predictions."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scratch_core.errors import ConfigError
from scratch_core.losses import IGNORED
from scratch_core.parallel import BATCH
from scratch_core.registry import ModelSpec
from scratch_core.tasks import RunOptions, Task

EDGES = {"edge_index": 1, "edge_weight": 0, "edge_attr": 0}
"""The arrays of a batch that have an axis of edges, and the number of that axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Write the model's predictions, and the vector of each node or graph."""

    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """As for training; the default is the task's."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where predictions.csv and embeddings.npy go; the default is the model's folder."""


class GraphTask(Task):
    """Base of the tasks: a batch is one graph, and its "labels" are counted."""

    PredictOptions: ClassVar[type | None] = PredictOptions
    contract: ClassVar[str] = "scratch_core.testing:ModelContract"
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 100, "learning_rate": 1e-3}

    def count(self, batch: Any) -> int:
        """Return the number of labels, without -100."""
        return int((np.asarray(batch["labels"]) != IGNORED).sum())

    def place(self, batch: Any, mesh: jax.sharding.Mesh) -> Any:
        """Return the batch on a mesh: each device gets its part of the edges, and all the nodes.

        A device sums the messages of its own edges, and the compiler adds the sums of all devices. If the number of
        devices does not divide the number of edges, each device gets all of them.
        """
        parts = int(np.prod([mesh.shape[axis] for axis in BATCH]))

        def spec(name: str, value: Any) -> PartitionSpec:
            axis = EDGES.get(name)
            if axis is None or value.shape[axis] % parts:
                return PartitionSpec()
            return PartitionSpec(*(None,) * axis, BATCH)

        return {
            name: jax.device_put(jnp.asarray(value), NamedSharding(mesh, spec(name, value)))
            for name, value in batch.items()
        }

    def split(self, batch: Any, parts: int) -> Any:
        """Return micro-batches, each with the whole graph and a part of the labels."""
        labels = batch["labels"]
        turn = jnp.arange(labels.shape[0]) % parts
        mine = jnp.stack([jnp.where(turn == part, labels, IGNORED) for part in range(parts)])
        return {name: jnp.stack([value] * parts) for name, value in batch.items()} | {"labels": mine}


def build(spec: ModelSpec, task: str, options: RunOptions, config_of: Any, in_channels: int) -> Any:
    """Return the model: ``config_of(preset)`` with random parameters, or the checkpoint of --start.

    Raises ConfigError if the checkpoint is for other features, or for other classes.
    """
    model_class = spec.model(task)
    if options.checkpoint is None:
        return model_class(config_of(spec.config(options.preset)), rngs=nnx.Rngs(options.seed))
    model = model_class.from_pretrained(options.checkpoint)
    check_fits(model, in_channels, config_of(model.config).labels, options.checkpoint)
    return model


def check_fits(model: Any, in_channels: int, labels: tuple[str, ...], folder: Any) -> None:
    """Raise ConfigError unless the model reads these features and knows these classes."""
    config = model.config
    if config.in_channels != in_channels:
        raise ConfigError(f"{folder} reads {config.in_channels} features of a node, the data has {in_channels}")
    if config.labels and labels and config.labels != labels:
        raise ConfigError(f"{folder} knows the classes {', '.join(config.labels)}; the data has {', '.join(labels)}")


def accuracy(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return how many labels the model predicts correctly, and how many there are."""
    counted = batch["labels"] != IGNORED
    return ((model.answers(batch).argmax(axis=-1) == batch["labels"]) & counted).sum(), counted.sum()


def most_frequent(labels: np.ndarray, among: np.ndarray) -> float:
    """Return the accuracy on ``among`` of always predicting the most frequent of ``labels``."""
    return float((among == np.argmax(np.bincount(labels))).mean())


def write_predictions(folder: Path, header: Sequence[str], rows: Any, embeddings: np.ndarray) -> None:
    """Write predictions.csv and embeddings.npy. Raises ConfigError if they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        np.save(folder / "embeddings.npy", embeddings)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    print(f"predictions in {folder / 'predictions.csv'}, vectors in {folder / 'embeddings.npy'}")


def forward(model: Any, method: str, batch: Any) -> np.ndarray:
    """Return the result of a method of the model for a batch, as one compiled function."""
    return np.asarray(nnx.jit(lambda model, batch: getattr(model, method)(batch))(model, batch))


@dataclasses.dataclass(frozen=True)
class Always:
    """Every step has the same batch."""

    batch: Any

    def __getitem__(self, k: int) -> Any:
        """Return the batch."""
        return self.batch
