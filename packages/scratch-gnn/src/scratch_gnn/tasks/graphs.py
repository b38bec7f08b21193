"""Graph classification: many graphs, each with a label."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
from scratch_core.data import training_batches
from scratch_core.losses import IGNORED
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Job, RunOptions

from scratch_gnn.batching import batch_graphs
from scratch_gnn.data import GraphSet, open_graphs
from scratch_gnn.graph import Graph
from scratch_gnn.tasks.common import (
    GraphTask,
    PredictOptions,
    accuracy,
    build,
    check_fits,
    forward,
    most_frequent,
    write_predictions,
)
from scratch_gnn.tasks.nodes import readable, ring


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions(RunOptions):
    """Train a model to predict the class of a graph."""

    paths: ClassVar[tuple[str, ...]] = ("data", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """trees (the default: predict the package of a function), or a folder of TUDataset or OGB."""
    batch_size: int = 32
    """Graphs per update."""
    weight_decay: float = 0.05
    """Of the kernels of linear layers, per step, times the learning rate."""


class GraphClassification(GraphTask):
    """A class for each graph."""

    name: ClassVar[str] = "graph_classification"
    unit: ClassVar[str] = "graphs"
    Options: ClassVar[type[RunOptions]] = GraphOptions

    def prepare(self, spec: ModelSpec, options: GraphOptions) -> "GraphJob":
        """Return the job of a run. Raises ConfigError or DataError if model and data do not fit."""
        data = open_graphs(options.data)
        width, edge_attr = data.graphs[0].x.shape[1], data.graphs[0].edge_attr
        edge_dim = None if edge_attr is None else edge_attr.shape[1]
        model = build(spec, self.name, options, lambda c: c.with_data(width, data.classes, edge_dim), width)
        graphs = [readable(graph, model.config.conv) for graph in data.graphs]
        return GraphJob(
            model=model,
            batches=Collated(graphs, data.train, options.batch_size, options.seed),
            held_out=in_order([graphs[number] for number in data.test], options.batch_size),
            description=data.description,
            fingerprint=data.fingerprint,
            update=f"{options.batch_size} graphs",
            metrics={"accuracy": accuracy},
            data=data,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return rings of three to six nodes with random features and labels."""
        rng = np.random.default_rng(0)
        graphs = [ring(rng, config, 3 + i % 4, int(rng.integers(config.out_channels))) for i in range(batch_size)]
        return batch_graphs(graphs)

    def predict(self, folder: Path, model_class: Any, options: PredictOptions) -> None:
        """Write the class of each graph and its logits."""
        model, data = model_class.from_pretrained(folder), open_graphs(options.data)
        check_fits(model, data.graphs[0].x.shape[1], data.classes, folder)
        graphs = [readable(graph, model.config.conv) for graph in data.graphs]
        logits = np.concatenate([forward(model, "answers", batch) for batch in in_order(graphs, 64)])[: len(graphs)]
        answers, held_out = logits.argmax(axis=-1), set(data.test.tolist())
        rows = (
            (
                number,
                "" if graph.labels == IGNORED else data.classes[graph.labels],
                data.classes[answer],
                "test" if number in held_out else "train",
            )
            for number, (graph, answer) in enumerate(zip(graphs, answers))
        )
        out = folder if options.out is None else Path(options.out)
        write_predictions(out, ("graph", "label", "answer", "part"), rows, logits)


TASK = GraphClassification()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GraphJob(Job):
    """A run on graphs: ends with the accuracy."""

    data: GraphSet

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the accuracy beside that of the most frequent class."""
        labels = np.array([graph.labels for graph in self.data.graphs])  # every graph of the split has a label
        share, number = results["accuracy"], len(self.data.test)
        print(f"held-out accuracy {100 * share:.2f} % ({round(share * number)} of {number})")
        base = most_frequent(labels[self.data.train], labels[self.data.test])
        print(f"  always predicting the most frequent class: {100 * base:.2f} %", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that writes the class of each graph."""
        return "predict", str(folder)


class Collated:
    """Batch k: graphs drawn without replacement in each epoch, as their disjoint union, padded to a bucket."""

    def __init__(self, graphs: list[Graph], numbers: np.ndarray, batch_size: int, seed: int):
        self.graphs, self.batch_size = graphs, batch_size
        self.order: Any = training_batches(numbers, batch_size, seed=seed)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Return batch k."""
        return batch_graphs([self.graphs[int(number)] for number in self.order[k]], self.batch_size)


def in_order(graphs: list[Graph], batch_size: int) -> list[dict[str, np.ndarray]]:
    """Return all graphs in batches of ``batch_size``; the last one is filled up with empty graphs."""
    return [batch_graphs(graphs[i : i + batch_size], batch_size) for i in range(0, len(graphs), batch_size)]
