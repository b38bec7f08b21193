"""The data of a task, by name or by folder: one graph and a split of its nodes, or several graphs and a split of them.

None          the default of the task
"karate"      Zachary's karate club, of which two members are labelled
"imports"     which module of the standard library imports which
"trees"       syntax trees of the standard library's functions
a folder      of TUDataset, Planetoid or OGB
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED

from scratch_gnn.data.folders import Loaded, read_ogb, read_planetoid, read_tu
from scratch_gnn.data.karate import SIDES, karate_club
from scratch_gnn.data.python_source import function_trees, import_graph
from scratch_gnn.graph import Graph, check_labels


@dataclasses.dataclass(frozen=True, eq=False)
class NodeSet:
    """One graph; ``classes`` names its labels, ``names`` its nodes; ``train`` and ``test`` are numbers of nodes."""

    graph: Graph
    classes: tuple[str, ...]
    names: list[str]
    train: np.ndarray
    test: np.ndarray
    description: str

    @property
    def fingerprint(self) -> str:
        """A digest of graph and split; a resumed run compares it to check its data."""
        return _digest([self.graph], self.train, self.test)


@dataclasses.dataclass(frozen=True, eq=False)
class GraphSet:
    """Graphs with a label each; ``train`` and ``test`` are numbers of graphs."""

    graphs: list[Graph]
    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    description: str

    @property
    def fingerprint(self) -> str:
        """A digest of graphs and split; a resumed run compares it to check its data."""
        return _digest(self.graphs, self.train, self.test)


def open_nodes(data: str | None, default: str = "karate") -> NodeSet:
    """Return one graph; see the module for ``data``. Raises DataError for a folder of several graphs, or of none."""
    data = default if data is None else data
    if data == "karate":
        graph, rest = karate_club(), np.arange(1, 33)
        names = [f"member {number}" for number in range(34)]
        return NodeSet(graph, SIDES, names, np.array([0, 33]), rest, "the karate club: 34 members, 78 pairs, 2 labels")
    if data == "imports":
        graph, names, classes = import_graph()
        train, test = _random_split(np.flatnonzero(graph.labels != IGNORED))
        description = (
            f"imports of the standard library: {_size(graph)}, {len(train)} labelled, of {len(classes)} packages"
        )
        return NodeSet(graph, classes, names, train, test, description)
    loaded = _open_folder(data)
    if len(loaded.graphs) != 1:
        raise DataError(
            f"{data} holds {len(loaded.graphs)} graphs, but this task reads one: use --task graph_classification"
        )
    (graph,) = loaded.graphs
    if graph.labels is None or not np.ndim(graph.labels):
        raise DataError(f"{data}: the nodes have no labels: use --task graph_classification")
    check_labels(graph.labels, loaded.num_classes, f"{data}: node")
    train, test = _split(loaded, np.flatnonzero(graph.labels != IGNORED))
    classes, names = _numbered(loaded.num_classes), [str(number) for number in range(graph.num_nodes)]
    return NodeSet(graph, classes, names, train, test, f"{data}: {_size(graph)}, {len(train)} labelled")


def open_graphs(data: str | None, default: str = "trees") -> GraphSet:
    """Return labelled graphs; see the module for ``data``. Raises DataError for a folder of one graph, or of none."""
    data = default if data is None else data
    if data == "trees":
        graphs, classes = function_trees()
        train, test = _random_split(np.arange(len(graphs)))
        description = f"functions of {', '.join(classes)}: {len(graphs)} trees, {len(train)} to train on"
        return GraphSet(graphs, classes, train, test, description)
    loaded = _open_folder(data)
    labelled = [i for i, graph in enumerate(loaded.graphs) if np.ndim(graph.labels) == 0 and graph.labels != IGNORED]
    if len(labelled) < 2:
        raise DataError(
            f"{data} holds {len(labelled)} graphs with a label, at least 2 are needed: use --task node_classification"
        )
    train, test = _split(loaded, np.array(labelled))
    description = f"{data}: {len(labelled)} graphs, {len(train)} to train on"
    return GraphSet(loaded.graphs, _numbered(loaded.num_classes), train, test, description)


def _open_folder(data: str) -> Loaded:
    folder = Path(data)
    if any(folder.glob("*_A.txt")):
        return read_tu(folder)
    if any(folder.glob("ind.*.allx")):
        return read_planetoid(folder)
    if (folder / "raw" / "edge.csv.gz").exists():
        return read_ogb(folder)
    what = "is no folder" if not folder.is_dir() else "holds no NAME_A.txt, ind.NAME.allx or raw/edge.csv.gz"
    raise DataError(f"--data {data} {what}: give karate, imports, trees, or a folder of TUDataset, Planetoid or OGB")


def _split(loaded: Loaded, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the split of a folder, without rows that have no label; a random split if the folder has none."""
    if not {"train", "test"} <= loaded.split.keys():
        return _random_split(numbers)
    train, test = (np.intersect1d(loaded.split[part], numbers) for part in ("train", "test"))
    return train, test


def _random_split(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return four fifths to train on, and a fifth held out; the same in every run."""
    order = np.random.default_rng(0).permutation(numbers)
    cut = max(1, len(order) // 5)
    return np.sort(order[cut:]), np.sort(order[:cut])


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(num_classes))


def _size(graph: Graph) -> str:
    source, target = graph.edge_index.astype(np.int64)
    there, back = (np.sort(one * graph.num_nodes + other) for one, other in ((source, target), (target, source)))
    return f"{graph.num_nodes:,} nodes, {graph.num_edges:,} {'' if np.array_equal(there, back) else 'directed '}edges"


def _digest(graphs: list[Graph], *numbers: np.ndarray) -> str:
    digest = hashlib.sha256()
    for graph in graphs:
        for value in dataclasses.astuple(graph):
            digest.update(b"-" if value is None else np.ascontiguousarray(value).tobytes())
    for value in numbers:
        digest.update(np.ascontiguousarray(value, np.int64).tobytes())
    return digest.hexdigest()[:16]
