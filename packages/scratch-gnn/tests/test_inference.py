"""A graph read layer by layer in blocks of nodes gives the logits of the whole graph, in less memory."""

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_gnn import GNNConfig, Graph, NodeClassifier
from scratch_gnn.inference import InBlocks, blocks

CONVS = ("gcn", "gat", "gatv2", "sage", "gin", "gine")


@nnx.jit
def read(models, batches):
    """Return the logits of all models, as one compiled function."""
    return {conv: models[conv].read(batches[conv]) for conv in models}


@pytest.fixture
def models():
    configs = {conv: GNNConfig(4, 6, 3, conv=conv, heads=2, aggr="max", edge_dim=2) for conv in CONVS}
    found = {conv: NodeClassifier(config, rngs=nnx.Rngs(1)) for conv, config in configs.items()}
    for model in found.values():
        model.eval()
    return found


def parts_of(graph, of_edges):
    """Return the graph for each kind of model: with weights of edges, features of edges, or neither."""
    weight, attributes = of_edges
    extra = {"gcn": {"edge_weight": weight}, "gine": {"edge_attr": attributes}}
    return {conv: Graph(graph.x, graph.edge_index, graph.labels, **extra.get(conv, {})) for conv in CONVS}


def as_a_whole(graph):
    named = {name: getattr(graph, name) for name in ("x", "edge_index", "labels", "edge_weight", "edge_attr")}
    return {name: value for name, value in named.items() if value is not None}


@pytest.mark.parametrize("most", [5, 1000], ids=["blocks", "one-block"])
def test_blocks_give_the_logits_of_the_whole_graph(most, models, random):
    """The graph has a node with more edges than a block, nodes without edges, self loops and a repeated edge."""
    edges = random.integers(0, 20, (2, 60)).astype(np.int32)
    edges[1, :15] = 7
    edges[:, 20] = edges[:, 21] = 3
    edges[:, 22:24] = [[1], [2]]
    graph = Graph(random.normal(size=(23, 4)).astype(np.float32), edges, random.integers(0, 3, 23))
    of_edges = random.uniform(0.5, 2, 60).astype(np.float32), random.normal(size=(60, 2)).astype(np.float32)
    graphs = parts_of(graph, of_edges)
    whole = read(models, {conv: as_a_whole(each) for conv, each in graphs.items()})
    in_blocks = {conv: InBlocks(each, most) for conv, each in graphs.items()}
    assert all((len(each) == 1) == (most == 1000) for each in in_blocks.values())
    found = read(models, {conv: next(iter(each)) for conv, each in in_blocks.items()})
    for conv in CONVS:
        np.testing.assert_allclose(found[conv], whole[conv], rtol=1e-5, atol=1e-5, err_msg=conv)


def test_a_graph_without_edges_is_read(models):
    graph = Graph(np.ones((3, 4), np.float32), np.zeros((2, 0), np.int32))
    graphs = parts_of(graph, (np.zeros(0, np.float32), np.zeros((0, 2), np.float32)))
    found, whole = (read(models, {c: f(g) for c, g in graphs.items()}) for f in (blocks, as_a_whole))
    for conv in CONVS:
        np.testing.assert_allclose(found[conv], whole[conv], atol=1e-6, err_msg=conv)


def test_blocks_hold_no_message_for_each_edge(random):
    """The messages of all 200,000 edges, 64 numbers each, are 51 MB."""
    graph = Graph(np.ones((2000, 64), np.float32), random.integers(0, 2000, (2, 200_000)).astype(np.int32))
    model = NodeClassifier(GNNConfig(64, 64, 4, conv="sage"), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    read = jax.jit(lambda state, batch: nnx.merge(graphdef, state).read(batch))
    analysis = read.lower(state, blocks(graph, 5000)).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 10e6
