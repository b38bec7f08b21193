"""Datasets that the user has: folders of TUDataset, Planetoid (Cora, CiteSeer, PubMed) and OGB.

No file is executed. Planetoid's files are pickles: they are read by a reader that knows numpy arrays, scipy's sparse
matrices and plain containers, and refuses every other name, so that a hostile file is an error.
"""

import csv
import gzip
import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scratch_core.errors import DataError

from scratch_gnn.graph import Graph, both_ways


class Loaded(NamedTuple):
    """Graphs of a folder, how many classes there are, and the split that comes with them: {"train": numbers, ...}."""

    graphs: list[Graph]
    num_classes: int
    split: dict[str, np.ndarray]


def read_tu(folder: str | Path) -> Loaded:
    """Return the graphs of a TUDataset folder: NAME_A.txt, NAME_graph_indicator.txt, NAME_graph_labels.txt.

    Features of a node are NAME_node_attributes.txt and a 1 for its NAME_node_labels.txt; without both, its degree.
    Those of edges likewise. Raises DataError that names the file.
    """
    folder = Path(folder)
    name = _one(folder, "*_A.txt").name.removesuffix("_A.txt")
    path = lambda part: folder / f"{name}_{part}.txt"  # noqa: E731
    edges: np.ndarray = _numbers(path("A")).astype(np.int64).reshape(-1, 2) - 1
    owner: np.ndarray = _numbers(path("graph_indicator")).astype(np.int64).reshape(-1) - 1
    classes, labels = np.unique(_numbers(path("graph_labels")).reshape(-1), return_inverse=True)
    if edges.size and (edges.min() < 0 or edges.max() >= len(owner)):
        raise DataError(f"{path('A')}: nodes from {edges.min() + 1} to {edges.max() + 1}, expected 1 to {len(owner)}")
    if len(owner) and (owner.max() >= len(labels) or owner.min() < 0 or (np.diff(owner) < 0).any()):
        raise DataError(f"{path('graph_indicator')}: must rise from 1 to at most {len(labels)}, the number of labels")
    x = _features(path("node_attributes"), path("node_labels"), len(owner))
    if x is None:
        x = np.bincount(edges[:, 1], minlength=len(owner)).astype(np.float32)[:, None]
    attributes = _features(path("edge_attributes"), path("edge_labels"), len(edges))
    order = np.argsort(owner[edges[:, 0]], kind="stable")
    edges, attributes = edges[order], None if attributes is None else attributes[order]
    nodes, cuts = (np.searchsorted(each, np.arange(len(labels) + 1)) for each in (owner, owner[edges[:, 0]]))
    graphs = []
    for number, label in enumerate(labels):
        inside, part = slice(nodes[number], nodes[number + 1]), slice(cuts[number], cuts[number + 1])
        index = (edges[part] - nodes[number]).T.astype(np.int32)
        graphs.append(Graph(x[inside], index, int(label), edge_attr=None if attributes is None else attributes[part]))
    return Loaded(graphs, len(classes), {})


def read_planetoid(folder: str | Path) -> Loaded:
    """Return the one graph of a folder of Planetoid's raw files: ind.NAME.allx, tx, y, ally, ty, graph, test.index.

    The split is that of https://arxiv.org/abs/1603.08861: the labelled nodes, the 500 after them, and the test nodes.
    Rows of features sum to 1. Raises DataError that names the file.
    """
    folder = Path(folder)
    name = _one(folder, "ind.*.allx").name.split(".")[1]
    tx, allx, y, ty, ally = (_dense(_unpickle(folder / f"ind.{name}.{part}")) for part in _PARTS)
    neighbours = _unpickle(folder / f"ind.{name}.graph")
    test: np.ndarray = _numbers(folder / f"ind.{name}.test.index").astype(np.int64).reshape(-1)
    first, last = len(allx), int(test.max())
    # CiteSeer's test nodes have gaps: those nodes have neither features nor a class.
    features = np.zeros((last + 1, allx.shape[1]), np.float32)
    classes = np.zeros((last + 1, ally.shape[1]))
    features[:first], classes[:first], features[test], classes[test] = allx, ally, tx, ty
    pairs = np.array([(node, other) for node, others in neighbours.items() for other in others])
    labels = np.where(classes.any(axis=1), classes.argmax(axis=1), -100).astype(np.int32)
    total = features.sum(axis=1, keepdims=True)
    graph = Graph(features / np.where(total > 0, total, 1), both_ways(pairs), labels)
    split = {"train": np.arange(len(y)), "valid": np.arange(len(y), min(len(y) + 500, first)), "test": np.sort(test)}
    return Loaded([graph], ally.shape[1], split)


def read_ogb(folder: str | Path) -> Loaded:
    """Return the graphs of an OGB folder: raw/edge.csv.gz, num-node-list, num-edge-list, node-feat, and labels.

    Labels are raw/node-label.csv.gz of one graph, or raw/graph-label.csv.gz; the split is that of the folder in split/.
    Edges are read as they stand; an undirected graph's that stand there once are added the other way round, as OGB does
    (``add_inverse_edge``). Raises DataError that names the file.
    """
    raw = Path(folder) / "raw"
    edges = _csv(raw / "edge.csv.gz").astype(np.int64).reshape(-1, 2)
    node_counts, edge_counts = (
        _csv(raw / f"num-{each}-list.csv.gz").astype(int).reshape(-1) for each in ("node", "edge")
    )
    if (raw / "node-feat.csv.gz").exists():
        x = _csv(raw / "node-feat.csv.gz").astype(np.float32)
    else:
        x = np.ones((node_counts.sum(), 1), np.float32)
    attributes = _csv(raw / "edge-feat.csv.gz").astype(np.float32) if (raw / "edge-feat.csv.gz").exists() else None
    if len(x) != node_counts.sum() or len(edges) != edge_counts.sum():
        raise DataError(
            f"{raw}: {len(x)} rows of nodes and {len(edges)} edges, but the lists of counts add up to "
            f"{node_counts.sum()} and {edge_counts.sum()}"
        )
    of_nodes = (raw / "node-label.csv.gz").exists()
    labels = _csv(raw / f"{'node' if of_nodes else 'graph'}-label.csv.gz")[:, 0]
    known = np.isfinite(labels)
    classes = np.unique(labels[known])
    labels = np.where(known, np.searchsorted(classes, labels), -100).astype(np.int32)
    graphs, node, edge = [], 0, 0
    for number, (nodes, count) in enumerate(zip(node_counts, edge_counts, strict=True)):
        index = edges[edge : edge + count].T
        part = None if attributes is None else attributes[edge : edge + count]
        if set(map(tuple, index.T.tolist())).isdisjoint(map(tuple, index[::-1].T.tolist())):
            index = np.concatenate([index, index[::-1]], axis=1)
            part = None if part is None else np.concatenate([part, part])
        label = labels if of_nodes else int(labels[number])
        graphs.append(Graph(x[node : node + nodes], index.astype(np.int32), label, edge_attr=part))
        node, edge = node + nodes, edge + count
    split = {}
    for path in sorted((Path(folder) / "split").glob("*/*.csv.gz")):
        split[path.name.split(".")[0]] = _csv(path).astype(np.int64).reshape(-1)
    return Loaded(graphs, len(classes), split)


_PARTS = ("tx", "allx", "y", "ty", "ally")


class _Sparse:
    """What a pickled scipy.sparse.csr_matrix is read as: its arrays, without scipy."""

    def dense(self) -> np.ndarray:
        rows, columns = vars(self)["_shape"]
        data, indices, starts = (vars(self)[name] for name in ("data", "indices", "indptr"))
        full = np.zeros((rows, columns), np.float32)
        full[np.repeat(np.arange(rows), np.diff(starts)), indices] = data
        return full


def _latin(text: str, encoding: str) -> bytes:
    """Stand for _codecs.encode, by which protocol 2 writes bytes."""
    return text.encode("latin1")


_ARRAYS: Any = np.empty(0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _latin,
    **{(home, "list"): list for home in ("builtins", "__builtin__")},
    **{(home, name): kind for home in ("numpy",) for name, kind in (("ndarray", np.ndarray), ("dtype", np.dtype))},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ARRAYS for core in ("core", "_core")},
    **{(f"scipy.sparse.{home}", "csr_matrix"): _Sparse for home in ("csr", "_csr")},
}


class _Reader(pickle.Unpickler):
    """Reads arrays, sparse matrices and containers; every other name in a pickle is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise DataError(f"it names {module}.{name}, which no dataset of Planetoid holds: the file may be hostile")
        return _KNOWN[module, name]


def _unpickle(path: Path) -> Any:
    try:
        return _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise DataError(f"{path} cannot be read: {error}") from error


def _dense(value: Any) -> np.ndarray:
    return value.dense() if isinstance(value, _Sparse) else np.asarray(value, np.float32)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} files {pattern}, expected one")
    return found[0]


def _numbers(path: Path) -> np.ndarray:
    """Return the numbers of a text file [rows, columns], with commas or spaces between them."""
    try:
        text = path.read_text(encoding="utf-8")
        return np.array([line.replace(",", " ").split() for line in text.splitlines() if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as numbers: {error}") from error


def _features(attributes: Path, labels: Path, rows: int) -> np.ndarray | None:
    """Return attributes and, for each column of labels, a 1 at the label's place; None if there are no files."""
    parts = [_numbers(attributes)] if attributes.exists() else []
    if labels.exists():
        for column in _numbers(labels).T:
            kinds, place = np.unique(column, return_inverse=True)
            parts.append(np.eye(len(kinds))[place])
    for part in parts:
        if len(part) != rows:
            raise DataError(f"{attributes} or {labels} has {len(part)} rows, expected {rows}")
    return np.concatenate(parts, axis=1).astype(np.float32) if parts else None


def _csv(path: Path) -> np.ndarray:
    """Return the numbers of a compressed CSV file without header; an empty field is NaN."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return np.array([[float(field or "nan") for field in row] for row in csv.reader(file)], np.float64)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as numbers: {error}") from error
