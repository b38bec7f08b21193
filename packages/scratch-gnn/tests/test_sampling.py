"""Neighbour sampling: which edges are kept, large fanouts keep all of them, and a batch is a function of its number."""

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_gnn import GNNConfig, Graph, NodeClassifier
from scratch_gnn.graph import both_ways
from scratch_gnn.sampling import NeighbourSampler, sampled_batches


@pytest.fixture
def graph(random):
    labels = random.integers(0, 4, 40).astype(np.int32)
    x = np.concatenate([np.arange(40)[:, None], random.normal(size=(40, 7))], axis=1).astype(np.float32)
    return Graph(x, both_ways(random.integers(0, 40, (90, 2))), labels)


def test_at_most_the_fanout_of_each_nodes_own_edges_is_kept(graph, random):
    sampler, nodes = NeighbourSampler(graph, (2, 1)), np.array([5, 0, 17])
    edges = sampler.edges_into(nodes, 2, random)
    targets = graph.edge_index[1, edges]
    degrees = np.bincount(graph.edge_index[1], minlength=40)
    assert len(set(edges.tolist())) == len(edges)
    assert {int(node): int((targets == node).sum()) for node in nodes} == {
        int(node): min(2, int(degrees[node])) for node in nodes
    }


def test_every_neighbour_is_drawn_equally_often(graph, random):
    sampler = NeighbourSampler(graph, (2,))
    node = int(np.bincount(graph.edge_index[1]).argmax())
    degree = int((graph.edge_index[1] == node).sum())
    drawn = np.concatenate([sampler.edges_into(np.array([node]), 2, random) for _ in range(3000)])
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == degree
    np.testing.assert_allclose(counts / 3000, 2 / degree, atol=0.05)


def test_large_fanouts_give_the_logits_of_the_whole_graph(graph, random):
    model = NodeClassifier(GNNConfig(8, 8, 4, conv="sage"), rngs=nnx.Rngs(0))
    nodes = np.array([3, 7, 30])
    batch = NeighbourSampler(graph, (99, 99)).sample(nodes[[1, 0, 2, 1]], random)
    assert (batch["labels"] != -100).sum() == 3
    np.testing.assert_array_equal(batch["x"][:3, 0], nodes)
    whole = model(graph.x, graph.edge_index)
    np.testing.assert_allclose(model.read(batch)[:3], np.asarray(whole)[nodes], atol=1e-4)


def test_batches_are_a_function_of_their_number(graph):
    one, two = (sampled_batches(NeighbourSampler(graph, (3, 2)), np.arange(30), 7, seed=5) for _ in range(2))
    for k in (9, 0):
        jax.tree.map(np.testing.assert_array_equal, one[k], two[k])
    seen = [node for k in range(4) for node in one[k]["x"][:7, 0].tolist()]
    assert len(set(seen)) == 28  # an epoch has each node once
    assert len({batch["edge_index"].shape for batch in (one[k] for k in range(20))}) <= 2


def test_impossible_sampling_is_an_error(graph):
    with pytest.raises(ConfigError, match=r"fanouts=\(3, 0\) must be numbers of at least 1"):
        NeighbourSampler(graph, (3, 0))
    with pytest.raises(ConfigError, match="batch_size=50 must be at most the number of labelled nodes, 40"):
        sampled_batches(NeighbourSampler(graph, (3,)), np.arange(40), 50, seed=0)
