r"""Link prediction: some edges of a graph are held out; the model must rank them above pairs that are not linked.

Source: Kipf and Welling 2016, https://arxiv.org/abs/1611.07308. The layers read only the training edges. A step has all
training edges as positive pairs and as many negative pairs, drawn anew: pairs of nodes that no edge joins.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
from scratch_core.errors import DataError
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Job, RunOptions

from scratch_gnn.batching import pad_graph
from scratch_gnn.data import open_nodes
from scratch_gnn.graph import Graph, both_ways
from scratch_gnn.tasks.common import (
    GraphTask,
    PredictOptions,
    accuracy,
    build,
    check_fits,
    forward,
    write_predictions,
)
from scratch_gnn.tasks.nodes import ring

DEFAULT = "imports"
WIDTH = 16
"""Width of a node's vector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkOptions(RunOptions):
    """Train a model to predict which nodes are linked."""

    paths: ClassVar[tuple[str, ...]] = ("data", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """imports (the default: modules of the standard library), karate, or a folder of Planetoid or OGB."""
    batch_size: int = 32
    """Not used: an update reads the whole graph."""
    weight_decay: float = 0.05
    """Of the kernels of linear layers, per step, times the learning rate."""


class LinkPrediction(GraphTask):
    """Whether two nodes are linked."""

    name: ClassVar[str] = "link_prediction"
    unit: ClassVar[str] = "links"
    Options: ClassVar[type[RunOptions]] = LinkOptions

    def prepare(self, spec: ModelSpec, options: LinkOptions) -> "LinkJob":
        """Return the job of a run. Raises ConfigError or DataError if model and data do not fit."""
        nodes = open_nodes(options.data, DEFAULT)
        split = LinkSplit(nodes.graph)
        width = nodes.graph.x.shape[1]

        def config_of(config: Any) -> Any:
            return dataclasses.replace(config, in_channels=width, out_channels=WIDTH, labels=())

        model = build(spec, self.name, options, config_of, width)
        return LinkJob(
            model=model,
            batches=Links(split, options.seed),
            held_out=[split.held_out()],
            description=f"{nodes.description}; {split.test.shape[1]} links held out",
            fingerprint=nodes.fingerprint,
            update=f"{split.train.shape[1]} links and as many unlinked pairs",
            metrics={"accuracy": accuracy},
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return a ring of nodes with random features, and pairs of which every second one is linked."""
        graph = ring(np.random.default_rng(0), config, batch_size, None)
        one = np.arange(batch_size)
        pairs = np.stack([one, (one + 1 + one % 2) % batch_size]).astype(np.int32)
        return pad_graph(graph) | {"pairs": pairs, "labels": (1 - one % 2).astype(np.int32)}

    def predict(self, folder: Path, model_class: Any, options: PredictOptions) -> None:
        """Write the held-out pairs with the probability of a link, and the vector of each node."""
        model, nodes = model_class.from_pretrained(folder), open_nodes(options.data, DEFAULT)
        check_fits(model, nodes.graph.x.shape[1], (), folder)
        batch = LinkSplit(nodes.graph).held_out()
        vectors = forward(model, "read", batch)[: nodes.graph.num_nodes]
        one, two = batch["pairs"]
        share = 1 / (1 + np.exp(-(vectors[one] * vectors[two]).sum(axis=1)))
        rows = zip([nodes.names[i] for i in one], [nodes.names[i] for i in two], batch["labels"], np.round(share, 4))
        out = folder if options.out is None else Path(options.out)
        write_predictions(out, ("one", "other", "linked", "probability"), rows, vectors)


TASK = LinkPrediction()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinkJob(Job):
    """A run on the links of a graph: ends with the area under the ROC curve and the average precision."""

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the accuracy and how well links are ranked before other pairs."""
        (batch,) = self.held_out
        logits = forward(self.model, "answers", batch)[:, 1]
        print(f"held-out accuracy {100 * results['accuracy']:.2f} % on {len(logits)} pairs, of which half are linked")
        auc, precision = ranking(logits, batch["labels"])
        print(f"held-out ROC AUC {auc:.4f}, average precision {precision:.4f}; at random 0.5", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that writes the held-out pairs."""
        return "predict", str(folder)


class LinkSplit:
    """The undirected edges of a graph: a tenth held out, the others to train on; the same split in every run.

    Raises DataError for fewer than 10 edges.
    """

    def __init__(self, graph: Graph):
        source, target = graph.edge_index
        pairs = np.unique(np.sort(graph.edge_index[:, source != target], axis=0), axis=1)
        if pairs.shape[1] < 10:
            raise DataError(
                f"the graph has {pairs.shape[1]} undirected edges between two nodes, at least 10 are needed: "
                "choose a larger graph"
            )
        self.num_nodes = graph.num_nodes
        order = np.random.default_rng(0).permutation(pairs.shape[1])
        cut = pairs.shape[1] // 10
        self.test, self.train = pairs[:, order[:cut]], pairs[:, order[cut:]]
        self.linked = set((pairs[0] * graph.num_nodes + pairs[1]).tolist())
        edges = both_ways(self.train.T)
        self.batch = pad_graph(Graph(graph.x, edges))

    def labelled(self, links: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the training graph with labelled pairs: ``links``, and as many unlinked pairs."""
        others: list[tuple[int, int]] = []
        for _ in range(100):
            drawn = np.sort(rng.integers(0, self.num_nodes, (2 * links.shape[1], 2)), axis=1)
            keys = (drawn[:, 0].astype(np.int64) * self.num_nodes + drawn[:, 1]).tolist()
            free = [key not in self.linked for key in keys]
            others += [tuple(pair) for pair, ok in zip(drawn.tolist(), free) if ok and pair[0] != pair[1]]
            if len(others) >= links.shape[1]:
                pairs = np.concatenate([links, np.array(others[: links.shape[1]]).T], axis=1).astype(np.int32)
                return self.batch | {"pairs": pairs, "labels": np.repeat([1, 0], links.shape[1]).astype(np.int32)}
        raise DataError(
            f"nearly all pairs of the {self.num_nodes} nodes are linked, so that too few unlinked pairs are found: "
            "choose a graph with fewer edges"
        )

    def held_out(self) -> dict[str, np.ndarray]:
        """Return the held-out links and as many other pairs, always the same."""
        return self.labelled(self.test, np.random.default_rng(1))


@dataclasses.dataclass(frozen=True)
class Links:
    """Batch k: all training links, and other pairs drawn from the seed and k."""

    split: LinkSplit
    seed: int

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Return batch k."""
        return self.split.labelled(self.split.train, np.random.default_rng([self.seed, k]))


def ranking(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the area under the ROC curve, and the average precision. Equal scores share a rank."""
    positive = labels == 1
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    P, Q = int(positive.sum()), int((~positive).sum())
    auc = (rank[positive].sum() - P * (P + 1) / 2) / (P * Q)
    hits = np.bincount(place, positive, len(values))[::-1].cumsum()  # at least this score, from the highest
    found = counts[::-1].cumsum()
    precision = (np.diff(hits, prepend=0) / P * hits / found).sum()
    return float(auc), float(precision)
