"""Node classification: one graph, of which some nodes are labelled."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
from scratch_core.errors import ConfigError, DataError
from scratch_core.losses import IGNORED
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Job, RunOptions

from scratch_gnn.batching import pad_graph
from scratch_gnn.data import NodeSet, open_nodes
from scratch_gnn.graph import Graph, both_ways
from scratch_gnn.inference import InBlocks, blocks
from scratch_gnn.pictures import LARGEST, draw_graph
from scratch_gnn.sampling import NeighbourSampler, sampled_batches
from scratch_gnn.tasks.common import (
    Always,
    GraphTask,
    PredictOptions,
    accuracy,
    build,
    check_fits,
    forward,
    most_frequent,
    write_predictions,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeOptions(RunOptions):
    """Train a model to predict the class of each node of a graph."""

    paths: ClassVar[tuple[str, ...]] = ("data", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """karate (the default), imports (modules of the standard library), or a folder of Planetoid or OGB."""
    fanout: Annotated[str | None, tyro.conf.arg(metavar="N,N")] = None
    """Sample neighbours: how many each node keeps, for each layer, such as 10,10. None: all of them."""
    batch_size: int = 32
    """With --fanout: labelled nodes per update."""
    weight_decay: float = 0.05
    """Of the kernels of linear layers, per step, times the learning rate."""

    @property
    def fanouts(self) -> tuple[int, ...]:
        """The numbers in ``fanout``; () if it is None. Raises ConfigError if one is not a number."""
        if self.fanout is None:
            return ()
        try:
            return tuple(int(number) for number in self.fanout.split(","))
        except ValueError:
            raise ConfigError(
                f"--fanout {self.fanout} must be numbers with commas between them, such as 10,10"
            ) from None


class NodeClassification(GraphTask):
    """A class for each node."""

    name: ClassVar[str] = "node_classification"
    unit: ClassVar[str] = "nodes"
    Options: ClassVar[type[RunOptions]] = NodeOptions

    def prepare(self, spec: ModelSpec, options: NodeOptions) -> "NodeJob":
        """Return the job of a run. Raises ConfigError or DataError if model and data do not fit."""
        nodes = open_nodes(options.data)
        for name, numbers in (("train on", nodes.train), ("test on", nodes.test)):
            if not len(numbers):
                raise DataError(f"{nodes.description}: no labelled node to {name}")
        width, edge_dim = nodes.graph.x.shape[1], _width(nodes.graph.edge_attr)
        model = build(spec, self.name, options, lambda c: c.with_data(width, nodes.classes, edge_dim), width)
        graph = readable(nodes.graph, model.config.conv)
        batches: Any
        held_out: Any
        if fanouts := options.fanouts:  # neither training nor evaluation holds a message for each edge of the graph
            if len(fanouts) != model.config.num_layers:
                raise ConfigError(
                    f"--fanout {options.fanout} must have a number for each of {model.config.num_layers} layers"
                )
            batches = sampled_batches(
                NeighbourSampler(graph, fanouts), nodes.train, options.batch_size, seed=options.seed
            )
            held_out = InBlocks(labelled(graph, nodes.test))
            update = f"{options.batch_size} nodes and up to {' x '.join(map(str, fanouts))} neighbours"
        else:
            batches, held_out = (
                Always(pad_graph(labelled(graph, nodes.train))),
                [pad_graph(labelled(graph, nodes.test))],
            )
            update = f"a graph of {graph.num_nodes:,} nodes"
        return NodeJob(
            model=model,
            batches=batches,
            held_out=held_out,
            description=nodes.description,
            fingerprint=nodes.fingerprint,
            update=update,
            metrics={"accuracy": accuracy},
            nodes=nodes,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return a ring of nodes with random features and labels."""
        rng = np.random.default_rng(0)
        graph = ring(rng, config, batch_size, rng.integers(0, config.out_channels, batch_size).astype(np.int32))
        return pad_graph(graph)

    def predict(self, folder: Path, model_class: Any, options: PredictOptions) -> None:
        """Write the class and the vector of each node, and a picture if the graph is small."""
        model, nodes = model_class.from_pretrained(folder), open_nodes(options.data)
        check_fits(model, nodes.graph.x.shape[1], nodes.classes, folder)
        out = folder if options.out is None else Path(options.out)
        logits = _logits(model, nodes)
        answers, shares = logits.argmax(axis=-1), _softmax(logits).max(axis=-1)
        named = [nodes.classes[label] if label >= 0 else "" for label in nodes.graph.labels]
        rows = zip(nodes.names, named, [nodes.classes[answer] for answer in answers], np.round(shares, 4))
        write_predictions(out, ("node", "label", "answer", "probability"), rows, logits)
        draw(model, nodes, out)


TASK = NodeClassification()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NodeJob(Job):
    """A run on one graph: ends with the accuracy and a picture."""

    nodes: NodeSet

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the accuracy beside that of the most frequent class, and draw the graph if it is small."""
        labels, test = self.nodes.graph.labels, self.nodes.test
        share = results["accuracy"]
        print(f"held-out accuracy {100 * share:.2f} % ({round(share * len(test))} of {len(test)})")
        base = most_frequent(labels[self.nodes.train], labels[test])
        print(f"  always predicting the most frequent class: {100 * base:.2f} %", flush=True)
        draw(self.model, self.nodes, folder)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that writes the class of each node."""
        return "predict", str(folder)


def labelled(graph: Graph, numbers: np.ndarray) -> Graph:
    """Return the graph with the labels of only the nodes ``numbers``."""
    labels = np.full(graph.num_nodes, IGNORED, np.int32)
    labels[numbers] = graph.labels[numbers]
    return dataclasses.replace(graph, labels=labels)


def readable(graph: Graph, conv: str) -> Graph:
    """Return the graph without the weights and features of edges that layers of this kind do not read."""
    weight = graph.edge_weight if conv == "gcn" else None
    return dataclasses.replace(graph, edge_weight=weight, edge_attr=graph.edge_attr if conv == "gine" else None)


def ring(rng: np.random.Generator, config: Any, nodes: int, labels: Any) -> Graph:
    """Return a ring with random features that suits a configuration."""
    edges = both_ways(np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes], axis=1))
    x = rng.normal(size=(nodes, config.in_channels)).astype(np.float32)
    attributes = None
    if config.conv == "gine":
        attributes = rng.normal(size=(edges.shape[1], config.edge_dim)).astype(np.float32)
    return Graph(x, edges, labels, edge_attr=attributes)


def draw(model: Any, nodes: NodeSet, folder: Path) -> None:
    """Draw a small graph, coloured by predicted class; with attention, also the edges by weight in the first layer."""
    graph = nodes.graph
    if graph.num_nodes > LARGEST:
        return
    answers = _logits(model, nodes).argmax(axis=-1)
    wrong = (graph.labels != IGNORED) & (answers != graph.labels)
    pictures = {"graph.svg": None}
    if model.config.conv in ("gat", "gatv2"):
        _, weights, _ = model.convs[0].with_weights(graph.x, graph.edge_index)
        pictures["attention.svg"] = np.asarray(weights).mean(axis=1)
    for name, strength in pictures.items():
        text = draw_graph(
            graph.edge_index, answers, nodes.classes, names=nodes.names, wrong_N=wrong, weights_E=strength
        )
        (folder / name).write_text(text, encoding="utf-8")
        print(f"picture in {folder / name}")


def _logits(model: Any, nodes: NodeSet) -> np.ndarray:
    return forward(model, "read", blocks(readable(nodes.graph, model.config.conv)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def _width(edge_attr: np.ndarray | None) -> int | None:
    return None if edge_attr is None else edge_attr.shape[1]
