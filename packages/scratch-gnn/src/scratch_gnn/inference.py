r"""Exact inference on a large graph: one layer after the other, each in blocks of nodes.

Source: Hamilton et al. 2017, https://arxiv.org/abs/1706.02216, algorithm 1, whose outer loop is over the layers and
whose inner loop is over the nodes. For a node, a layer reads only the edges that end in it. GCN also needs the degrees
of the sources; its factor for each edge is computed in advance. So a block is a graph of its own, which the layer reads
like any other: the T nodes of the block, then the sources of its S edges, one row for each edge, as if each source were
another node. The results for the sources are dropped.

Memory: the N rows of two layers, and the messages of one block. The whole graph at once would need a message for each
of the E edges. The price is that a source is multiplied by the layer's matrix once for each of its edges.

Shapes: N nodes, E edges, D features, A features of an edge; C blocks of T nodes and S edges.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scratch_gnn.gcn import GCNConv
from scratch_gnn.graph import Graph, edges_by_target

EDGES = 1 << 17
"""Largest number of edges of a block, unless a single node has more."""


class InBlocks:
    """An iterable over one batch, that of :func:`blocks`.

    Its length is the number of blocks, because a run spaces its evaluations by this length.
    """

    def __init__(self, graph: Graph, most: int = EDGES):
        self.batch = blocks(graph, most)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batch."""
        yield self.batch

    def __len__(self) -> int:
        """Return C, the number of blocks."""
        return len(self.batch["node"])


def blocks(graph: Graph, most: int = EDGES) -> dict[str, np.ndarray]:
    """Return a graph as a batch that models read in blocks.

    "x" [N, D] and "labels" [N] are those of the graph. "node" [C, T], the nodes of each block, N for padding; "source"
    [C, S], the source of each edge, 0 for padding; "row" [C, S], the place of its target in the block, T for padding.
    "edge_weight" [C, S] and "edge_attr" [C, S, A], if edges have them, are 0 for padding. A block has at most ``most``
    nodes, and at most ``most`` edges unless a single node has more.
    """
    N, (edge_E, start) = graph.num_nodes, edges_by_target(graph)
    room, cuts = max(most, int(np.diff(start).max(initial=0))), [0]
    while cuts[-1] < N:
        last = np.searchsorted(start, start[cuts[-1]] + room, side="right") - 1
        cuts.append(min(int(last), cuts[-1] + most))
    first, end = np.array(cuts[:-1], int)[:, None], np.array(cuts[1:], int)[:, None]
    T, S = int((end - first).max(initial=1)), int((start[end] - start[first]).max(initial=0))
    node_CT, place_CS = first + np.arange(T), start[first] + np.arange(S)
    inside_CS = place_CS < start[end]
    number_CS = edge_E[np.minimum(place_CS, graph.num_edges - 1)]
    source_CS, target_CS = graph.edge_index[:, number_CS]
    batch = {
        "x": graph.x,
        "node": np.where(node_CT < end, node_CT, N).astype(np.int32),
        "source": np.where(inside_CS, source_CS, 0).astype(np.int32),
        "row": np.where(inside_CS, target_CS - first, T).astype(np.int32),
    }
    if graph.labels is not None:
        batch["labels"] = np.asarray(graph.labels, np.int32)
    if graph.edge_weight is not None:
        batch["edge_weight"] = np.where(inside_CS, graph.edge_weight[number_CS], 0)
    if graph.edge_attr is not None:
        batch["edge_attr"] = np.where(inside_CS[:, :, None], graph.edge_attr[number_CS], 0)
    return batch


def read_in_blocks(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return Z of eq. 1 in ``model.py`` for all nodes, from a batch of :func:`blocks`.

    The model must be in evaluation mode: dropout of features is not applied, and dropout of attention must be off.
    """
    x = jnp.asarray(batch["x"]).astype(model.dtype)
    for number, conv in enumerate(model.convs):
        last = number == model.config.num_layers - 1
        width = model.config.out_channels if last else model.config.hidden_channels
        x = _layer(conv, x, batch, width)
        if not last:
            x = model.activation(x)
    return x


def _layer(conv: Any, x_ND: jax.Array, batch: Mapping[str, jax.Array], width: int) -> jax.Array:
    """Return a layer's output for all nodes [N, width]."""
    N = x_ND.shape[0]
    T, S = batch["node"].shape[1], batch["source"].shape[1]
    parts = {name: jnp.asarray(batch[name]) for name in ("node", "source", "row", "edge_attr") if name in batch}
    if isinstance(conv, GCNConv):
        parts |= _factors(conv, batch, N)

    def block(y: jax.Array, part: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        node_T, source_S, row_S = part["node"], part["source"], part["row"]
        x = x_ND[jnp.concatenate([node_T, source_S])]
        is_loop_S = source_S == node_T[jnp.minimum(row_S, T - 1)]  # layers recognise a self loop by its equal ends
        edge_index_2S = jnp.stack([jnp.where(is_loop_S, row_S, T + jnp.arange(S)), row_S])
        if isinstance(conv, GCNConv):
            y_block = conv.add_up(conv.lin(x), edge_index_2S, part["factor"], jnp.pad(part["own"], (0, S)))
        else:
            y_block = conv(x, edge_index_2S, *([part["edge_attr"]] if "edge_attr" in part else []))
        return y.at[node_T].set(y_block[:T].astype(y.dtype), mode="drop"), None

    return jax.lax.scan(block, jnp.zeros((N, width), x_ND.dtype), parts)[0]


def _factors(conv: GCNConv, batch: Mapping[str, jax.Array], num_nodes: int) -> dict[str, jax.Array]:
    """Return GCN's factors of the edges [C, S] and of the self loops [C, T], from the degrees in the whole graph."""
    node_CT, source_CS, row_CS = (jnp.asarray(batch[name]) for name in ("node", "source", "row"))
    T = node_CT.shape[1]
    is_edge_CS = row_CS < T
    target_CS = jnp.take_along_axis(node_CT, jnp.minimum(row_CS, T - 1), axis=1)
    edge_index_2E = jnp.stack([source_CS.ravel(), jnp.where(is_edge_CS, target_CS, num_nodes).ravel()])
    weight_CS = jnp.asarray(batch.get("edge_weight", jnp.ones(row_CS.shape))) * is_edge_CS
    weight_E, own_N = conv.coefficients(edge_index_2E, weight_CS.ravel(), num_nodes)
    own_N = jnp.zeros(num_nodes) if own_N is None else own_N
    return {"factor": weight_E.reshape(row_CS.shape), "own": own_N[jnp.minimum(node_CT, num_nodes - 1)]}
