"""Datasets of the user: folders of TUDataset, Planetoid (Cora, CiteSeer, PubMed) and OGB.

No file is executed. Planetoid's files are pickles. Their reader knows numpy arrays, scipy's sparse matrices and plain
containers, and refuses every other name, so that a hostile file is an error.
"""

import gzip
import io
import pickle
import re
import warnings
import zlib
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

    Features of a node are its row of NAME_node_attributes.txt and its label in NAME_node_labels.txt, one-hot; without
    both files, its degree. Features of edges are read likewise; without both files there are none. Raises DataError
    that names the file.
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


# OGB's datasets whose files hold each undirected edge once: those with add_inverse_edge in OGB's master.csv.
# OGB names a folder ogbg_molhiv; in its archive the folder is named hiv.
_UNDIRECTED = re.compile(
    r"ogbn[-_](proteins|products)|ogbl[-_](ppa|collab|ddi)|ogbg[-_](ppa|mol\w+)"
    r"|proteins|products|collab|bace|bbbp|clintox|muv|pcba|sider|tox21|toxcast|hiv|esol|freesolv|lipophilicity|chembl"
)


def read_ogb(folder: str | Path, add_inverse_edge: bool | None = None) -> Loaded:
    """Return the graphs of an OGB folder: raw/edge.csv.gz, num-node-list, num-edge-list, node-feat, and labels.

    Labels are in raw/node-label.csv.gz (one graph) or raw/graph-label.csv.gz; the split is in the folder in split/.
    add_inverse_edge: after each edge, add its reverse with the same features. None: do what OGB does for the dataset
    that the folder is named after, such as True for ogbn_products and False for ogbn_arxiv, whose edges are directed;
    False for any other name. Raises DataError that names the file.
    """
    folder = Path(folder)
    raw = folder / "raw"
    if add_inverse_edge is None:
        add_inverse_edge = _UNDIRECTED.fullmatch(folder.resolve().name) is not None
    edges = _csv(raw / "edge.csv.gz", np.int64).reshape(-1, 2)
    node_counts, edge_counts = (_csv(raw / f"num-{each}-list.csv.gz", np.int64)[:, 0] for each in ("node", "edge"))
    if (raw / "node-feat.csv.gz").exists():
        x = _csv(raw / "node-feat.csv.gz", np.float32)
    else:
        x = np.ones((node_counts.sum(), 1), np.float32)
    attributes = _csv(raw / "edge-feat.csv.gz", np.float32) if (raw / "edge-feat.csv.gz").exists() else None
    if len(x) != node_counts.sum() or len(edges) != edge_counts.sum():
        raise DataError(
            f"{raw}: {len(x)} rows of nodes and {len(edges)} edges, but the lists of counts add up to "
            f"{node_counts.sum()} and {edge_counts.sum()}"
        )
    if attributes is not None and len(attributes) != len(edges):
        raise DataError(
            f"{raw}/edge-feat.csv.gz has {len(attributes)} rows, expected one for each of {len(edges)} edges"
        )
    if add_inverse_edge:
        edges = np.stack([edges, edges[:, ::-1]], axis=1).reshape(-1, 2)
        attributes = None if attributes is None else np.repeat(attributes, 2, axis=0)
        edge_counts = 2 * edge_counts
    of_nodes = (raw / "node-label.csv.gz").exists()
    labels, num_classes = _ogb_labels(raw / f"{'node' if of_nodes else 'graph'}-label.csv.gz")
    if len(labels) != (len(x) if of_nodes else len(node_counts)):
        raise DataError(f"{raw}: {len(labels)} labels for {len(node_counts)} graphs of {len(x)} nodes together")
    graphs, node, edge = [], 0, 0
    for number, (nodes, count) in enumerate(zip(node_counts, edge_counts, strict=True)):
        part = slice(edge, edge + count)
        label = labels[node : node + nodes] if of_nodes else int(labels[number])
        attribute = None if attributes is None else attributes[part]
        index = np.ascontiguousarray(edges[part].T, np.int32)
        graphs.append(Graph(x[node : node + nodes], index, label, edge_attr=attribute))
        node, edge = node + nodes, edge + count
    split = {}
    for path in sorted((folder / "split").glob("*/*.csv.gz")):
        split[path.name.split(".")[0]] = _csv(path, np.int64).reshape(-1)
    return Loaded(graphs, num_classes, split)


def _ogb_labels(path: Path) -> tuple[np.ndarray, int]:
    """Return the number of each row's class, -100 for an empty field, and how many classes there are."""
    values = _csv(path, np.float64, converters=lambda text: float(text or "nan"))
    if values.shape[1] != 1:
        raise DataError(f"{path} has {values.shape[1]} labels in a row: models here have one; keep the column to learn")
    values = values[:, 0]
    known = np.isfinite(values)
    if (values[known] % 1 != 0).any():
        raise DataError(
            f"{path} holds {values[known][values[known] % 1 != 0][0]}, which is no class: regression is not implemented"
        )
    classes = np.unique(values[known])
    return np.where(known, np.searchsorted(classes, values), -100).astype(np.int32), len(classes)


_PARTS = ("tx", "allx", "y", "ty", "ally")


class _Sparse:
    """Holds the arrays of a pickled scipy.sparse.csr_matrix, without scipy."""

    def dense(self) -> np.ndarray:
        rows, columns = vars(self)["_shape"]
        data, indices, starts = (vars(self)[name] for name in ("data", "indices", "indptr"))
        full = np.zeros((rows, columns), np.float32)
        full[np.repeat(np.arange(rows), np.diff(starts)), indices] = data
        return full


def _latin(text: str, encoding: str) -> bytes:
    """Replace _codecs.encode, with which protocol 2 writes bytes."""
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
    except Exception as error:  # a damaged pickle can raise any exception
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
    """Return attributes and, for each column of labels, one-hot columns; None if there are no files."""
    parts = [_numbers(attributes)] if attributes.exists() else []
    if labels.exists():
        for column in _numbers(labels).T:
            kinds, place = np.unique(column, return_inverse=True)
            parts.append(np.eye(len(kinds))[place])
    for part in parts:
        if len(part) != rows:
            raise DataError(f"{attributes} or {labels} has {len(part)} rows, expected {rows}")
    return np.concatenate(parts, axis=1).astype(np.float32) if parts else None


def _csv(path: Path, dtype: Any, converters: Any = None) -> np.ndarray:
    """Return the numbers of a compressed CSV file without header [rows, columns]."""
    try:
        with warnings.catch_warnings(), gzip.open(path, "rt", encoding="utf-8") as file:
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # of graphs without edges
            # In a file of one column, a row without a number is "".
            return np.loadtxt(file, dtype, delimiter=",", comments=None, quotechar='"', ndmin=2, converters=converters)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as numbers: {error}") from error
