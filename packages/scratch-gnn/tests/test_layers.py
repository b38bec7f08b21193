"""Each layer equals its definition by a dense adjacency matrix; nodes may be renumbered; odd graphs; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_gnn import GATConv, GATv2Conv, GCNConv, GINConv, GINEConv, SAGEConv, attention_pool, pool

RNGS = nnx.Rngs(0)
N, D = 7, 3
# A self loop at 1, an edge twice (0 -> 2), and node 6, which has no edges.
EDGES = np.array([[0, 1, 1, 2, 3, 4, 0, 0, 5, 3], [1, 0, 1, 3, 2, 5, 2, 2, 4, 0]], np.int32)
LAYERS = {
    "gcn": GCNConv(D, 4, rngs=RNGS),
    "gcn-improved": GCNConv(D, 4, improved=True, rngs=RNGS),
    "gat": GATConv(D, 4, heads=2, rngs=RNGS),
    "gatv2": GATv2Conv(D, 4, heads=2, rngs=RNGS),
    "sage-mean": SAGEConv(D, 4, rngs=RNGS),
    "sage-max": SAGEConv(D, 4, aggr="max", normalize=True, rngs=RNGS),
    "gin": GINConv(D, 5, 4, eps=0.2, rngs=RNGS),
    "gine": GINEConv(D, 5, 4, edge_dim=2, rngs=RNGS),
}


@nnx.jit
def outputs(layers, x, edges, weights, attributes):
    """The outputs of all layers, as one compiled function."""
    extra = {GCNConv: (weights,), GINEConv: (attributes,)}
    return {name: layer(x, edges, *extra.get(type(layer), ())) for name, layer in layers.items()}


def random_graph(random, nodes=N, edges=EDGES):
    """Features, edges, weights and features of the edges."""
    E = edges.shape[1]
    drawn = random.normal(size=(nodes, D)), edges, random.uniform(0.5, 2, E), random.normal(size=(E, 2))
    return [each if each is edges else each.astype(np.float32) for each in drawn]


def run(layers, graph):
    return {name: np.asarray(y) for name, y in outputs(layers, *graph).items()}


def value(parameter):
    return np.asarray(parameter[...])


def linear(layer, x):
    return x @ value(layer.kernel) + (0 if layer.bias is None else value(layer.bias))


def adjacency(edges, weights=None):
    """A[i, j]: the sum of the weights of the edges from j to i."""
    A = np.zeros((N, N))
    np.add.at(A, (edges[1], edges[0]), 1.0 if weights is None else weights)
    return A


def dense_gcn(layer, x, edges, weights, attributes):
    A = adjacency(edges, weights)
    loops = np.full(N, 2.0 if layer.improved else 1.0)
    for (source, target), weight in zip(edges.T, weights):
        if source == target:
            loops[target] = weight
    np.fill_diagonal(A, loops)
    root = np.diag(A.sum(axis=1) ** -0.5)
    return linear(layer.lin, root @ A @ root @ x) + value(layer.bias)


def softmax(scores, counts):
    weights = counts * np.exp(scores - scores.max())
    return weights / weights.sum(axis=1, keepdims=True)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def dense_gat(layer, x, edges, weights, attributes):
    A = adjacency(edges)
    np.fill_diagonal(A, 1.0)
    heads = []
    for h in range(layer.heads):
        columns = slice(4 * h, 4 * h + 4)
        if isinstance(layer, GATConv):
            z = linear(layer.lin, x)[:, columns]
            scores = leaky((z @ value(layer.att_dst)[0, h])[:, None] + (z @ value(layer.att_src)[0, h])[None])
        else:
            z, right = linear(layer.lin_l, x)[:, columns], linear(layer.lin_r, x)[:, columns]
            scores = leaky(right[:, None] + z[None]) @ value(layer.att)[0, h]
        heads.append(softmax(scores, A) @ z)
    return np.concatenate(heads, axis=1) + value(layer.bias)


def dense_sage(layer, x, edges, weights, attributes):
    A = adjacency(edges)
    if layer.aggr == "mean":
        near = A @ x / np.maximum(A.sum(axis=1, keepdims=True), 1)
    else:
        near = np.stack([x[row > 0].max(axis=0) if row.any() else np.zeros(D) for row in A])
    y = linear(layer.lin_l, near) + linear(layer.lin_r, x)
    return y / np.linalg.norm(y, axis=1, keepdims=True) if layer.normalize else y


def dense_gin(layer, x, edges, weights, attributes):
    sent = x[edges[0]]
    if isinstance(layer, GINEConv):
        sent = np.maximum(sent + linear(layer.lin, attributes), 0)
    near = (np.arange(N)[:, None] == edges[1]) @ sent
    return linear(layer.down, np.maximum(linear(layer.up, (1 + value(layer.eps)) * x + near), 0))


DENSE = {"gcn": dense_gcn, "gat": dense_gat, "sage": dense_sage, "gin": dense_gin}


def test_equals_its_definition_by_a_dense_adjacency_matrix(random):
    graph = random_graph(random)
    for name, y in run(LAYERS, graph).items():
        dense = next(function for kind, function in DENSE.items() if name.startswith(kind))
        np.testing.assert_allclose(y, dense(LAYERS[name], *graph), atol=1e-5, err_msg=name)


def test_renumbered_nodes_give_renumbered_outputs_in_any_order_of_the_edges(random):
    x, edges, weights, attributes = graph = random_graph(random)
    nodes, order = random.permutation(N), random.permutation(EDGES.shape[1])
    number = np.argsort(nodes).astype(np.int32)  # the new number of each node
    before = run(LAYERS, graph)
    moved = run(LAYERS, (x[nodes], number[edges][:, order], weights[order], attributes[order]))
    for name, y in moved.items():
        np.testing.assert_allclose(y, before[name][nodes], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("pairs", [[], [(0, 1), (0, 1), (2, 1), (2, 2)]], ids=["no-edges", "odd-edges"])
@pytest.mark.parametrize("nodes", [0, 3])
def test_odd_graphs_give_finite_outputs_and_gradients(nodes, pairs, random):
    """No nodes; no edges; a self loop; an edge twice; nodes that no edge ends in."""
    if nodes == 0 and pairs:
        return
    graph = random_graph(random, nodes, np.array(pairs, np.int32).reshape(-1, 2).T)
    total = lambda layers: sum((y**2).sum() for y in outputs(layers, *graph).values())  # noqa: E731
    value, gradients = nnx.jit(nnx.value_and_grad(total))(LAYERS)
    assert all(np.isfinite(leaf).all() for leaf in [value, *jax.tree.leaves(gradients)])


def test_a_node_without_neighbours():
    """It reads only itself; attention without self loops returns the bias for it."""
    x = np.ones((2, D), np.float32)
    none = np.zeros((2, 0), np.int32)
    for conv in (GATConv, GATv2Conv):
        layer = conv(D, 4, add_self_loops=False, rngs=RNGS)
        y, weights, own = layer.with_weights(x, np.array([[0], [1]], np.int32))
        np.testing.assert_array_equal(y[0], layer.bias[...])
        assert (weights.tolist(), own) == ([[1.0]], None)
    gcn = LAYERS["gcn"]
    np.testing.assert_allclose(gcn(x, none), x @ gcn.lin.kernel[...], atol=1e-6)


def test_attention_weights_sum_to_one_and_ignore_huge_scores(random):
    layer = GATConv(D, 4, heads=2, rngs=RNGS)
    x = 1e4 * random.normal(size=(N, D)).astype(np.float32)
    y, weights, own = layer.with_weights(x, EDGES)
    total = np.asarray(own).copy()
    np.add.at(total, EDGES[1], np.asarray(weights))
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert weights[2].tolist() == [0.0, 0.0]  # the added self loop replaces that of the graph
    assert np.isfinite(y).all()


def test_attention_dropout_is_off_in_evaluation():
    layer = GATConv(D, 4, heads=2, dropout=0.5, rngs=nnx.Rngs(0))
    x = np.ones((N, D), np.float32)
    assert not np.array_equal(layer(x, EDGES), layer(x, EDGES))
    layer.eval()
    np.testing.assert_array_equal(layer(x, EDGES), layer(x, EDGES))


def hexagon_and_triangles():
    """Two graphs of six nodes, all of degree 2, which the Weisfeiler-Lehman test cannot tell apart."""
    ring = [(i, (i + 1) % 6) for i in range(6)]
    triangles = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    return [np.array(pairs + [(b, a) for a, b in pairs], np.int32).T for pairs in (ring, triangles)]


def uniform(nodes, edges):
    """A graph whose nodes and edges all have the same features."""
    E = edges.shape[1]
    return np.ones((nodes, D), np.float32), edges, np.ones(E, np.float32), np.ones((E, 2), np.float32)


def test_graphs_that_weisfeiler_and_lehman_cannot_tell_apart_get_the_same_vector():
    one, two = (run(LAYERS, uniform(6, edges)) for edges in hexagon_and_triangles())
    for name in LAYERS:
        np.testing.assert_allclose(one[name].sum(axis=0), two[name].sum(axis=0), atol=1e-5, err_msg=name)


def test_gin_tells_apart_what_means_and_maxima_do_not():
    """A ring and a complete graph, all features equal: only a sum sees the number of neighbours (GIN, section 5.2)."""
    ring, _ = hexagon_and_triangles()
    complete = np.array([(i, j) for i in range(6) for j in range(6) if i != j], np.int32).T
    one, two = (run(LAYERS, uniform(6, edges)) for edges in (ring, complete))
    for name in LAYERS:
        difference = np.abs(one[name].mean(axis=0) - two[name].mean(axis=0)).max()
        assert (difference > 1e-2) == name.startswith("gin"), (name, difference)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "attention"])
def test_pooling_reads_each_graph_alone_in_any_order_and_no_padding(aggr, random):
    x, scores = random.normal(size=(6, 2)).astype(np.float32), random.normal(size=6).astype(np.float32)
    graph = np.array([0, 0, 2, 2, 2, 3], np.int32)  # graph 1 has no nodes; node 5 is padding
    if aggr == "attention":
        read = lambda order: attention_pool(x[order], scores[order], graph[order], 3)  # noqa: E731
        share = [np.exp(scores[i]) / np.exp(scores[i]).sum() for i in (slice(0, 2), slice(2, 5))]
        expected = [share[0] @ x[:2], np.zeros(2), share[1] @ x[2:5]]
    else:
        read = lambda order: pool(x[order], graph[order], 3, aggr)  # noqa: E731
        expected = [getattr(np, aggr)(x[:2], axis=0), np.zeros(2), getattr(np, aggr)(x[2:5], axis=0)]
    np.testing.assert_allclose(read(np.arange(6)), expected, atol=1e-6)
    np.testing.assert_allclose(read(random.permutation(6)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": np.array([[0, 9], [1, 2]])}, "edge 1 has the source 9, but x has the nodes 0 to 6.*in total: 1"),
        ({"edges": np.array([[0, 1], [-1, 2]])}, "edge 0 has the target -1"),
        ({"edges": EDGES.T}, r"edge_index has shape \(10, 2\), expected \[2, edges\].*give its transpose"),
        ({"edges": EDGES.astype(np.float32)}, "edge_index has dtype float32, expected integers"),
        ({"edges": EDGES.tolist()}, "edge_index is a list: give a numpy or JAX array"),
        ({"x": np.ones((N, 4), np.float32)}, r"x has shape \(7, 4\), expected \[nodes, in_channels=3\]"),
        ({"x": np.ones((N, D), np.int32)}, "x has dtype int32, expected floating-point features"),
        ({"x": np.full((N, D), np.nan, np.float32)}, r"x of node 0 is nan at \[0, 0\]: 21 numbers are not finite"),
        ({"weights": np.ones(3, np.float32)}, r"edge_weight has shape \(3,\), expected \[10\]"),
        ({"weights": np.ones(10, np.int32)}, "edge_weight has dtype int32"),
        ({"weights": np.full(10, np.inf, np.float32)}, "edge_weight of edge 0 is inf"),
    ],
)
def test_bad_input_is_an_error_with_the_values(change, message):
    given = {"x": np.ones((N, D), np.float32), "edges": EDGES, "weights": None} | change
    with pytest.raises(DataError, match=message):
        LAYERS["gcn"](given["x"], given["edges"], given["weights"])


def test_shapes_are_checked_under_jit():
    with pytest.raises(DataError, match="expected integers"):
        jax.jit(lambda x, edges: LAYERS["sage-mean"](x, edges))(jnp.ones((N, D)), jnp.ones((2, 3)))
    with pytest.raises(DataError, match=r"edge_attr has shape \(10, 3\), expected \[edges=10, 2\]"):
        LAYERS["gine"](np.ones((N, D), np.float32), EDGES, np.ones((10, 3), np.float32))


def test_layers_that_cannot_be_built():
    with pytest.raises(ConfigError, match="add_self_loops=True needs normalize=True"):
        GCNConv(3, 2, add_self_loops=True, normalize=False, rngs=RNGS)
    with pytest.raises(ConfigError, match="aggr='lstm' is not implemented"):
        SAGEConv(3, 2, aggr="lstm", rngs=RNGS)
    with pytest.raises(ConfigError, match=r"in_channels=\(3, 3\) must be an integer"):
        GATConv((3, 3), 2, rngs=RNGS)
    with pytest.raises(ConfigError, match=r"dropout=1\.5 must be at least 0"):
        GATv2Conv(3, 2, dropout=1.5, rngs=RNGS)
