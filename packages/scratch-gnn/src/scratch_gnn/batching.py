"""Several graphs as one: their disjoint union, padded to a few sizes so that few shapes are compiled.

Padding is done with numpy, outside of jit. Padding nodes come last, with features of zero; there is at least one, and
padding edges are self loops of the last one. So no real node reads padding in any layer, and no layer needs a mask. In
a batch of G graphs, padding nodes have the graph number G, which pooling leaves out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED

from scratch_gnn.graph import Graph


def bucket(size: int, least: int = 16) -> int:
    """Return the smallest power of two that is at least ``size`` and ``least``."""
    return 1 << (max(size, least, 1) - 1).bit_length()


def pad_graph(graph: Graph, nodes: int | None = None, edges: int | None = None) -> dict[str, np.ndarray]:
    """Return a graph as a batch: "x", "edge_index" and, if it has them, "labels", "edge_weight" and "edge_attr".

    Labels of padding are -100. nodes, edges: the sizes; None: the next bucket. Raises DataError if the graph, with a
    padding node, does not fit.
    """
    return _pad(graph, nodes, edges, labels=graph.labels)


def batch_graphs(
    graphs: Sequence[Graph], num_graphs: int | None = None, nodes: int | None = None, edges: int | None = None
) -> dict[str, np.ndarray]:
    """Return the disjoint union of graphs as a batch, with each node's graph as "graph" [N], and "labels" [G].

    num_graphs: G; graphs beyond the given ones are empty and have the label -100. None: the number of graphs. nodes,
    edges: the sizes; None: the next buckets. Raises DataError if the graphs do not fit, or have different features.
    """
    G = len(graphs) if num_graphs is None else num_graphs
    if not graphs or len(graphs) > G:
        raise DataError(f"{len(graphs)} graphs do not fit a batch of {G}: give from 1 to {G}")
    for name in ("edge_weight", "edge_attr"):
        if len({getattr(graph, name) is None for graph in graphs}) > 1:
            raise DataError(f"some graphs have {name} and others have none: give it to all or to none")
    for name in ("x", "edge_attr"):
        widths = [getattr(graph, name).shape[1] for graph in graphs if getattr(graph, name) is not None]
        if len(set(widths)) > 1:
            raise DataError(f"graphs of one batch need {name} of one width, found {sorted(set(widths))}")
    offsets = np.cumsum([0] + [graph.num_nodes for graph in graphs])
    edge_index = np.concatenate([graph.edge_index + offset for graph, offset in zip(graphs, offsets)], axis=1)

    def joined(name: str) -> Any:
        parts = [getattr(graph, name) for graph in graphs]
        return None if parts[0] is None else np.concatenate(parts)

    union = Graph(joined("x"), edge_index, None, joined("edge_weight"), joined("edge_attr"))
    batch = _pad(union, nodes, edges, labels=None)
    graph_N = np.full(len(batch["x"]), G, np.int32)
    graph_N[: union.num_nodes] = np.repeat(np.arange(len(graphs)), [graph.num_nodes for graph in graphs])
    labels_G = np.full(G, IGNORED, np.int32)
    labels_G[: len(graphs)] = [IGNORED if graph.labels is None else graph.labels for graph in graphs]
    return batch | {"graph": graph_N, "labels": labels_G}


def _pad(graph: Graph, nodes: int | None, edges: int | None, labels: Any) -> dict[str, np.ndarray]:
    nodes = bucket(graph.num_nodes + 1) if nodes is None else nodes
    edges = bucket(graph.num_edges) if edges is None else edges
    if graph.num_nodes >= nodes or graph.num_edges > edges:
        raise DataError(
            f"a graph of {graph.num_nodes} nodes and {graph.num_edges} edges does not fit {nodes} nodes, of which "
            f"one is padding, and {edges} edges: give larger sizes, or None for the next bucket"
        )
    more_nodes, more_edges = nodes - graph.num_nodes, edges - graph.num_edges
    batch = {
        "x": np.pad(graph.x, ((0, more_nodes), (0, 0))),
        "edge_index": np.pad(graph.edge_index, ((0, 0), (0, more_edges)), constant_values=nodes - 1).astype(np.int32),
    }
    if labels is not None:
        batch["labels"] = np.pad(np.asarray(labels, np.int32), (0, more_nodes), constant_values=IGNORED)
    if graph.edge_weight is not None:
        batch["edge_weight"] = np.pad(graph.edge_weight, (0, more_edges))
    if graph.edge_attr is not None:
        batch["edge_attr"] = np.pad(graph.edge_attr, ((0, more_edges), (0, 0)))
    return batch
