"""A graph as numpy arrays that are checked once, and how to make one from a ``jraph.GraphsTuple``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED

from scratch_gnn.message_passing import check_graph


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """N nodes with D features and E edges.

    x: float32 [N, D]. edge_index: int32 [2, E], sources, then targets; an undirected edge is listed in both directions.
    labels: int32 [N] for the nodes, or one number for the whole graph; -100 means no label. edge_weight: float32 [E].
    edge_attr: float32 [E, A]. Raises DataError, with the values, for arrays that do not fit together.
    """

    x: np.ndarray
    edge_index: np.ndarray
    labels: Any = None
    edge_weight: np.ndarray | None = None
    edge_attr: np.ndarray | None = None

    def __post_init__(self):
        width = self.x.shape[1] if getattr(self.x, "ndim", 0) == 2 else 0
        edge_dim = None if self.edge_attr is None else self.edge_attr.shape[-1]
        check_graph(self.x, self.edge_index, width, self.edge_weight, self.edge_attr, edge_dim)
        if self.labels is None:
            return
        labels = np.asarray(self.labels)
        if labels.ndim and labels.shape != (len(self.x),):
            raise DataError(f"labels have shape {labels.shape}, expected one for each of {len(self.x)} nodes")
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"labels have dtype {labels.dtype}, expected integers: the numbers of classes, -100 for none"
            )
        if (wrong := labels[(labels < 0) & (labels != IGNORED)]).size:
            raise DataError(f"a label is {wrong[0]}, expected the number of a class from 0 on, or -100 for none")

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        """E."""
        return self.edge_index.shape[1]


def check_labels(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Raise DataError, with the first wrong label, if a label is neither a class nor -100."""
    wrong = np.flatnonzero((labels != IGNORED) & ((labels < 0) | (labels >= num_classes)))
    if len(wrong):
        raise DataError(
            f"{what} {wrong[0]} has the label {labels[wrong[0]]}, but the classes are 0 to {num_classes - 1} "
            f"(-100: no label); wrong labels in total: {len(wrong)}"
        )


def check_numbers(name: str, numbers: Any, shape: tuple[int, ...], end: int) -> None:
    """Raise DataError unless these are integers of this shape, from 0 to ``end`` - 1 (values are unknown under jit)."""
    if numbers.shape != shape or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise DataError(
            f"{name} has shape {numbers.shape} and dtype {numbers.dtype}, expected integers of the shape {shape}"
        )
    if not isinstance(numbers, Tracer):
        given = np.asarray(numbers)
        if (wrong := given[(given < 0) | (given >= end)]).size:
            raise DataError(f"{name} holds {wrong[0]}, expected numbers from 0 to {end - 1}")


def both_ways(pairs: np.ndarray) -> np.ndarray:
    """Return edge_index [2, E] of undirected edges [P, 2]: each once per direction, sorted by target, no self loops."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    found = np.unique(np.concatenate([pairs, pairs[:, ::-1]])[:, ::-1], axis=0)
    return np.ascontiguousarray(found[:, ::-1].T).astype(np.int32)


def edges_by_target(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the edges sorted by target [E], and start [N + 1].

    In this order, node i is the target of the edges start[i] to start[i + 1] - 1; edges of one target keep their order.
    """
    edge_E = np.argsort(graph.edge_index[1], kind="stable").astype(np.int32)
    counts_N = np.bincount(graph.edge_index[1], minlength=graph.num_nodes)
    return edge_E, np.concatenate([[0], np.cumsum(counts_N)])


def from_graphs_tuple(graphs: Any, labels: Sequence[Any] | None = None) -> list[Graph]:
    """Return the graphs of a ``jraph.GraphsTuple``, or of anything with its fields, as a list.

    ``nodes`` are features of nodes, ``edges`` features of edges or None. ``labels`` None: ``globals`` are the labels if
    they are integers, one for each graph. jraph need not be installed. Raises DataError for counts that do not add up.
    """
    if graphs.nodes is None:
        raise DataError("the nodes of the GraphsTuple are None: give each node features [nodes, D], such as a 1")
    n_node, n_edge = np.asarray(graphs.n_node), np.asarray(graphs.n_edge)
    x, senders, receivers = (np.asarray(each) for each in (graphs.nodes, graphs.senders, graphs.receivers))
    edges = None if graphs.edges is None else np.asarray(graphs.edges)
    for name, counts, found in (("n_node", n_node, len(x)), ("n_edge", n_edge, len(senders))):
        if counts.sum() != found:
            raise DataError(f"{name} adds up to {counts.sum()}, but the arrays have {found} rows")
    if labels is None and graphs.globals is not None:
        given = np.asarray(graphs.globals)
        if np.issubdtype(given.dtype, np.integer) and given.size == len(n_node):
            labels = given.reshape(-1).tolist()
    result, node, edge = [], 0, 0
    for number, (nodes, count) in enumerate(zip(n_node, n_edge, strict=True)):
        index = np.stack([senders[edge : edge + count], receivers[edge : edge + count]]) - node
        result.append(
            Graph(
                x[node : node + nodes].astype(np.float32),
                index.astype(np.int32),
                None if labels is None else int(labels[number]),
                edge_attr=None if edges is None else edges[edge : edge + count].astype(np.float32),
            )
        )
        node, edge = node + nodes, edge + count
    return result
