r"""Neighbour sampling: a training step reads some labelled nodes and a few of their neighbours, not the whole graph.

Source: Hamilton et al. 2017, https://arxiv.org/abs/1706.02216, section 3.1 and algorithm 2. With fanouts
$S_1, \dots, S_K$, each labelled node keeps at most $S_1$ of its neighbours, drawn uniformly without replacement, each
of these keeps at most $S_2$ of its own, and so on. The model of $K$ layers reads the graph of the edges kept. The
memory of a step depends on the fanouts, and the time to draw also on the degrees; neither depends on the graph's size.

Shapes: N nodes, E edges; B labelled nodes of a batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scratch_core.data import training_batches
from scratch_core.errors import ConfigError
from scratch_core.losses import IGNORED

from scratch_gnn.batching import pad_graph
from scratch_gnn.graph import Graph, edges_by_target


class NeighbourSampler:
    """Draws the neighbourhoods of nodes. Raises ConfigError unless there are fanouts, each at least 1.

    It keeps the edges sorted by target, E + N integers beside the graph itself.
    """

    def __init__(self, graph: Graph, fanouts: Sequence[int]):
        if not fanouts or min(fanouts) < 1:
            raise ConfigError(f"fanouts={tuple(fanouts)} must be numbers of at least 1, one for each layer")
        self.graph, self.fanouts = graph, tuple(fanouts)
        self.edge_E, self.start = edges_by_target(graph)

    def edges_into(self, nodes: np.ndarray, fanout: int, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of at most ``fanout`` edges that end in each of ``nodes``."""
        counts = self.start[nodes + 1] - self.start[nodes]
        owner = np.repeat(np.arange(len(nodes)), counts)
        first = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(len(owner)) - first[owner]
        edges = self.edge_E[self.start[nodes][owner] + within]
        order = np.lexsort((rng.random(len(owner)), owner))  # the edges of each node, in a random order
        return edges[order[within < fanout]]

    def sample(self, nodes: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a padded batch in which only ``nodes`` are labelled; they come first, sorted, each of them once."""
        nodes = np.unique(nodes)  # a batch may hold the end of one epoch and the start of the next
        graph, reached, frontier, kept = self.graph, nodes, nodes, []
        for fanout in self.fanouts:
            edges = self.edges_into(frontier, fanout, rng)
            kept.append(edges)
            frontier = np.setdiff1d(graph.edge_index[0, edges], reached)
            reached = np.concatenate([reached, frontier])
        edges = np.concatenate(kept)
        order = np.argsort(reached)
        index = order[np.searchsorted(reached, graph.edge_index[:, edges], sorter=order)]
        labels = np.full(len(reached), IGNORED, np.int32)
        labels[: len(nodes)] = graph.labels[nodes]
        part = lambda value: None if value is None else value[edges]  # noqa: E731
        found = Graph(graph.x[reached], index.astype(np.int32), labels, part(graph.edge_weight), part(graph.edge_attr))
        return pad_graph(found)


def sampled_batches(sampler: NeighbourSampler, nodes: np.ndarray, batch_size: int, *, seed: int) -> Any:
    """Return the endless batches of a Grain pipeline: batch k has ``batch_size`` of ``nodes``, shuffled in each epoch.

    Batch k is a function of the seed and k. Raises ConfigError if there are fewer nodes than a batch needs.
    """
    if batch_size > len(nodes):
        raise ConfigError(f"batch_size={batch_size} must be at most the number of labelled nodes, {len(nodes)}")
    order: Any = training_batches(nodes, batch_size, seed=seed)
    return order.random_map(sampler.sample, seed=seed)
