r"""Message passing: each node reads what its neighbours send along the edges.

Source: Gilmer et al. 2017, https://arxiv.org/abs/1704.01212, section 2. Edge $(j, i)$ goes from source $j$ to target
$i$, and $\mathcal{N}(i)$ are the sources of the edges that end in $i$:

$$ m_i = \bigoplus_{j \in \mathcal{N}(i)} \phi(x_i, x_j, e_{ji}) \tag{1} $$
$$ x'_i = \gamma(x_i, m_i) \tag{2} $$

$\bigoplus$ is a sum, a mean or a maximum. A node without neighbours has $m_i = 0$.

Attention weighs the messages by a softmax over the edges that end in one node:

$$ \alpha_{ji} = \exp(s_{ji}) \Big/ \sum_{k \in \mathcal{N}(i)} \exp(s_{ki}) \tag{3} $$

A self loop that a layer adds is a separate term in these sums, so that the list of edges is not copied.

Shapes: N nodes, E edges, D features of a node, A features of an edge, H heads.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from scratch_core.errors import ConfigError, DataError

AGGREGATIONS = ("sum", "mean", "max")


def pass_messages(
    x: jax.Array, edge_index_2E: jax.Array, message: Callable[[jax.Array, jax.Array], jax.Array], aggr: str = "sum"
) -> jax.Array:
    """Return m of eq. 1, one row for each node of ``x`` [N, ...].

    ``message(x_target, x_source)`` is phi: both arguments and the result have one row for each edge.
    """
    source_E, target_E = edge_index_2E[0], edge_index_2E[1]
    messages = message(x[target_E], x[source_E])  # gather, then phi
    return aggregate(messages, target_E, x.shape[0], aggr)


def aggregate(values: jax.Array, segment: jax.Array, num_segments: int, aggr: str) -> jax.Array:
    """Return the sum, mean or max of the rows of ``values`` in each segment; 0 for an empty one.

    ``segment`` is the number of each row's segment; rows whose number is ``num_segments`` or more are left out.
    """
    if aggr == "max":
        most = jax.ops.segment_max(values, segment, num_segments)
        return jnp.where(_count(segment, num_segments, values) > 0, most, 0)
    total = jax.ops.segment_sum(values, segment, num_segments)
    if aggr == "mean":
        total = total / jnp.maximum(_count(segment, num_segments, values), 1)
    return total


def _count(segment: jax.Array, num_segments: int, values: jax.Array) -> jax.Array:
    count = jax.ops.segment_sum(jnp.ones(segment.shape, values.dtype), segment, num_segments)
    return count.reshape(num_segments, *(1,) * (values.ndim - 1))


def softmax_over_neighbours(
    scores_EH: jax.Array, target_E: jax.Array, own_NH: jax.Array | None, num_nodes: int
) -> tuple[jax.Array, jax.Array | None]:
    """Return eq. 3: the weights of the edges and, given its scores ``own_NH``, of each node for itself.

    A score of -inf gives the weight 0. No weight is NaN, even if all scores of a node are -inf or it has no scores.
    """
    most_NH = jax.ops.segment_max(scores_EH, target_E, num_nodes)
    if own_NH is not None:
        most_NH = jnp.maximum(most_NH, own_NH)
    # The maximum cancels out of eq. 3, so its gradient is zero.
    most_NH = jax.lax.stop_gradient(jnp.where(jnp.isfinite(most_NH), most_NH, 0))
    exp_EH = jnp.exp(scores_EH - most_NH[target_E])
    total_NH = jax.ops.segment_sum(exp_EH, target_E, num_nodes)
    own = None
    if own_NH is not None:
        own = jnp.exp(own_NH - most_NH)
        total_NH = total_NH + own
    total_NH = jnp.where(total_NH > 0, total_NH, 1)
    return exp_EH / total_NH[target_E], None if own is None else own / total_NH


def check_aggregation(aggr: str) -> str:
    """Return ``aggr``. Raises ConfigError if there is no such aggregation."""
    if aggr not in AGGREGATIONS:
        raise ConfigError(f"aggr={aggr!r} is not implemented: choose one of {', '.join(AGGREGATIONS)}")
    return aggr


def check_sizes(**sizes: Any) -> None:
    """Raise ConfigError unless each size is an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(
                f"{name}={size!r} must be an integer of at least 1; layers between two kinds of nodes, whose sizes are "
                "pairs, are not implemented"
            )


def check_graph(
    x: Any,
    edge_index: Any,
    in_channels: int,
    edge_weight: Any = None,
    edge_attr: Any = None,
    edge_dim: int | None = None,
) -> None:
    """Raise DataError, with the values, for a graph that a layer of ``in_channels`` cannot read.

    Under jit, values are unknown, and only shapes and dtypes are checked.
    """
    for name, value in (("x", x), ("edge_index", edge_index), ("edge_weight", edge_weight), ("edge_attr", edge_attr)):
        if value is not None and not hasattr(value, "shape"):
            raise DataError(f"{name} is a {type(value).__name__}: give a numpy or JAX array")
    if len(x.shape) != 2 or x.shape[1] != in_channels:
        raise DataError(f"x has shape {x.shape}, expected [nodes, in_channels={in_channels}]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(f"x has dtype {x.dtype}, expected floating-point features: use x.astype(numpy.float32)")
    if len(edge_index.shape) != 2 or edge_index.shape[0] != 2:
        hint = ": give its transpose" if len(edge_index.shape) == 2 and edge_index.shape[1] == 2 else ""
        raise DataError(f"edge_index has shape {edge_index.shape}, expected [2, edges]: sources, then targets{hint}")
    if not jnp.issubdtype(edge_index.dtype, jnp.integer):
        raise DataError(f"edge_index has dtype {edge_index.dtype}, expected integers: numbers of nodes")
    edges = edge_index.shape[1]
    if edge_weight is not None:
        if edge_weight.shape != (edges,):
            raise DataError(f"edge_weight has shape {edge_weight.shape}, expected [{edges}]: a number for each edge")
        if not jnp.issubdtype(edge_weight.dtype, jnp.floating):
            raise DataError(f"edge_weight has dtype {edge_weight.dtype}, expected floating-point numbers")
    if edge_attr is not None and edge_attr.shape != (edges, edge_dim):
        raise DataError(f"edge_attr has shape {edge_attr.shape}, expected [edges={edges}, {edge_dim}]")
    if edge_attr is not None and not jnp.issubdtype(edge_attr.dtype, jnp.floating):
        raise DataError(f"edge_attr has dtype {edge_attr.dtype}, expected floating-point features")
    _check_values(x, edge_index, edge_weight, edge_attr)


def _check_values(x: Any, edge_index: Any, edge_weight: Any, edge_attr: Any) -> None:
    if not isinstance(edge_index, Tracer):
        index = np.asarray(edge_index)
        wrong = np.argwhere((index < 0) | (index >= x.shape[0]))
        if len(wrong):
            row, edge = wrong[0]
            raise DataError(
                f"edge {edge} has the {('source', 'target')[row]} {index[row, edge]}, but x has the nodes 0 to "
                f"{x.shape[0] - 1}: correct edge_index, or add the nodes to x (wrong ends in total: {len(wrong)})"
            )
    for name, value, row in (("x", x, "node"), ("edge_weight", edge_weight, "edge"), ("edge_attr", edge_attr, "edge")):
        if value is None or isinstance(value, Tracer):
            continue
        wrong = np.argwhere(~np.isfinite(np.asarray(value)))
        if len(wrong):
            raise DataError(
                f"{name} of {row} {wrong[0][0]} is {np.asarray(value)[tuple(wrong[0])]} at {list(map(int, wrong[0]))}: "
                f"{len(wrong)} numbers are not finite; fill them in before training"
            )
