"""The three models keep the contract, and a stream of graphs compiles only a few times."""

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.testing import ModelContract
from scratch_gnn import GNNConfig, Graph, GraphClassifier, LinkPredictor, NodeClassifier, batch_graphs, bucket
from scratch_gnn.batching import pad_graph
from scratch_gnn.graph import both_ways, from_graphs_tuple


class TestNodeClassifier(ModelContract):
    model_class = NodeClassifier
    decayed = ("convs.*.lin.kernel",)
    overfit_rate = 0.1


class TestGraphClassifier(ModelContract):
    model_class = GraphClassifier
    config = GNNConfig(8, 16, 4, conv="gine", edge_dim=2, pooling="attention")
    decayed = (*(f"convs.*.{name}.kernel" for name in ("lin", "up", "down")), "gate.kernel")
    overfit_rate = 0.03


class TestLinkPredictor(ModelContract):
    model_class = LinkPredictor
    config = GNNConfig(8, 16, 8, conv="sage")
    decayed = ("convs.*.lin_l.kernel", "convs.*.lin_r.kernel")
    overfit_rate = 0.05


def a_graph(random, nodes, label=0):
    edges = both_ways(random.integers(0, nodes, (2 * nodes, 2))) if nodes else np.zeros((2, 0), np.int32)
    return Graph(random.normal(size=(nodes, 8)).astype(np.float32), edges, label)


def test_a_stream_of_1000_graphs_compiles_a_few_times(random):
    """Padding changes nothing: in a padded batch, a graph has the logits that it has alone."""
    model = GraphClassifier(GNNConfig(8, 4, 3, conv="gin"), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    traces = []

    @jax.jit
    def answers(state, batch):
        traces.append(batch["x"].shape)
        return nnx.merge(graphdef, state).answers(batch)

    graphs = [a_graph(random, nodes) for nodes in random.integers(0, 60, 1000)]
    found = np.concatenate([answers(state, batch_graphs(graphs[i : i + 8])) for i in range(0, 1000, 8)])
    assert found.shape == (1000, 3)
    assert np.isfinite(found).all()
    assert len(traces) <= 6, traces
    np.testing.assert_allclose(found[7], model(graphs[7].x, graphs[7].edge_index)[0], rtol=1e-4)


def test_padding_changes_no_loss_and_no_gradient(random):
    configs = {
        conv: GNNConfig(8, 8, 3, conv=conv, aggr="max", heads=2) for conv in ("gcn", "gat", "gatv2", "sage", "gin")
    }
    models = {conv: NodeClassifier(config, rngs=nnx.Rngs(0)) for conv, config in configs.items()}
    graph = a_graph(random, 9, random.integers(0, 3, 9).astype(np.int32))
    exact = {"x": graph.x, "edge_index": graph.edge_index, "labels": graph.labels}

    def losses(models, batch):
        each = {conv: model.loss(batch)[0] for conv, model in models.items()}
        return sum(each.values()), each

    step = nnx.jit(nnx.value_and_grad(losses, has_aux=True))
    ((_, one), gradients), ((_, two), others) = (step(models, batch) for batch in (exact, pad_graph(graph, 32, 64)))
    for a, b in zip(jax.tree.leaves((one, gradients)), jax.tree.leaves((two, others)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_batches_are_disjoint_unions(random):
    first, second = a_graph(random, 3, 1), a_graph(random, 2, 2)
    batch = batch_graphs([first, second], 4)
    assert (len(batch["x"]), batch["edge_index"].shape[1]) == (16, 16)
    assert batch["graph"].tolist() == [0] * 3 + [1] * 2 + [4] * 11
    assert batch["labels"].tolist() == [1, 2, -100, -100]
    E = first.num_edges
    np.testing.assert_array_equal(batch["edge_index"][:, :E], first.edge_index)
    np.testing.assert_array_equal(batch["edge_index"][:, E : E + second.num_edges], second.edge_index + 3)
    assert (batch["edge_index"][:, E + second.num_edges :] == 15).all()
    assert [bucket(size) for size in (0, 16, 17, 100)] == [16, 16, 32, 128]


def test_batches_that_cannot_be_made(random):
    graph = a_graph(random, 4)
    with pytest.raises(
        DataError, match=r"a graph of 4 nodes and \d+ edges does not fit 4 nodes, of which one is padding"
    ):
        pad_graph(graph, 4)
    with pytest.raises(DataError, match="3 graphs do not fit a batch of 2"):
        batch_graphs([graph] * 3, 2)
    with pytest.raises(DataError, match=r"need x of one width, found \[3, 8\]"):
        batch_graphs([graph, Graph(np.ones((1, 3), np.float32), np.zeros((2, 0), np.int32))])
    weighted = Graph(graph.x, graph.edge_index, 0, np.ones(graph.num_edges, np.float32))
    with pytest.raises(DataError, match="some graphs have edge_weight and others have none"):
        batch_graphs([graph, weighted])


class Tuple:
    """The fields of a jraph.GraphsTuple: two graphs, of two nodes and of one."""

    nodes = np.arange(6.0).reshape(3, 2)
    edges = np.array([[0.5], [0.25]])
    senders, receivers = np.array([0, 2]), np.array([1, 2])
    globals = np.array([[1], [0]])
    n_node, n_edge = np.array([2, 1]), np.array([1, 1])


def test_graphs_tuples_of_jraph_are_read():
    first, second = from_graphs_tuple(Tuple)
    assert (first.labels, first.edge_index.tolist(), first.edge_attr.tolist()) == (1, [[0], [1]], [[0.5]])
    assert (second.labels, second.edge_index.tolist(), second.x.tolist()) == (0, [[0], [0]], [[4.0, 5.0]])
    wrong = type("Wrong", (Tuple,), {"n_node": np.array([2, 2])})
    with pytest.raises(DataError, match="n_node adds up to 4, but the arrays have 3 rows"):
        from_graphs_tuple(wrong)


def test_models_and_labels_that_do_not_fit(random):
    for change, message in [
        ({"conv": "cheb"}, "conv='cheb' is not implemented: choose one of gcn, gat"),
        ({"conv": "gat", "heads": 3}, "heads=3 must divide hidden_channels=16"),
        ({"conv": "gine"}, "edge_dim=None must be at least 1"),
        ({"labels": ("a",)}, "1 labels do not fit out_channels=4"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be at least 0 and less than 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            GNNConfig(8, 16, 4, **change)
    graph = a_graph(random, 5, np.array([0, 1, 9, -100, 0], np.int32))
    model = NodeClassifier(GNNConfig.tiny(), rngs=nnx.Rngs(0))
    batch = {"x": graph.x, "edge_index": graph.edge_index, "labels": graph.labels}
    with pytest.raises(DataError, match="row 2 has the label 9, but the classes are 0 to 3"):
        model.loss(batch)
    assert np.isnan(nnx.jit(lambda model, batch: model.loss(batch)[0])(model, batch))  # the trainer stops at NaN
    with pytest.raises(
        DataError, match=r"labels have shape \(5,\) and dtype float64, expected an integer for each of 5"
    ):
        model.loss(batch | {"labels": np.zeros(5)})
    with pytest.raises(DataError, match="pairs_2P holds 5, expected numbers from 0 to 4"):
        LinkPredictor(GNNConfig.tiny(), rngs=nnx.Rngs(0))(graph.x, graph.edge_index, np.array([[0], [5]]))
    with pytest.raises(DataError, match="graph_N holds 3, expected numbers from 0 to 1"):
        GraphClassifier(GNNConfig.tiny(), rngs=nnx.Rngs(0))(graph.x, graph.edge_index, np.full(5, 3, np.int32))
    with pytest.raises(DataError, match="conv='gcn' reads no edge_attr"):
        model(graph.x, graph.edge_index, edge_attr_EA=np.ones((graph.num_edges, 1), np.float32))
