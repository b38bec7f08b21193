r"""Pooling: from the nodes of each graph to one vector for the graph.

$$ z_g = \bigoplus_{i \in g} x_i \tag{1} $$

with a sum, a mean or a maximum; or by attention (Li et al. 2016, https://arxiv.org/abs/1511.05493, eq. 7), with a score
$s_i = w^\top x_i + b$ of each node:

$$ z_g = \sum_{i \in g} \mathrm{softmax}_{i \in g}(s_i)\, x_i \tag{2} $$

Shapes: N nodes, D features, G graphs.
"""

import jax
import jax.numpy as jnp

from scratch_gnn.message_passing import aggregate, softmax_over_neighbours


def pool(x_ND: jax.Array, graph_N: jax.Array, num_graphs: int, aggr: str = "sum") -> jax.Array:
    """Return z_GD of eq. 1; ``graph_N`` is the number of each node's graph. A graph without nodes gets zeros.

    Nodes whose graph is ``num_graphs`` or more are padding and are left out.
    """
    return aggregate(x_ND, graph_N, num_graphs, aggr)


def attention_pool(x_ND: jax.Array, scores_N: jax.Array, graph_N: jax.Array, num_graphs: int) -> jax.Array:
    """Return z_GD of eq. 2; a graph without nodes gets zeros, padding is left out as by :func:`pool`."""
    scores_N1 = jnp.where(graph_N < num_graphs, scores_N, -jnp.inf)[:, None]
    weights, _ = softmax_over_neighbours(scores_N1, jnp.minimum(graph_N, num_graphs - 1), None, num_graphs)
    return jax.ops.segment_sum(weights * x_ND, graph_N, num_graphs)
