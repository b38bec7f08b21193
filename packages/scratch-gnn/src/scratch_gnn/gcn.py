r"""GCN: a weighted mean over the neighbourhood, then a linear map.

Source: Kipf and Welling 2017, https://arxiv.org/abs/1609.02907. With $\tilde A = A + I$ and
$\tilde D_{ii} = \sum_j \tilde A_{ij}$,

$$ X' = \tilde D^{-1/2} \tilde A \tilde D^{-1/2} X W + b \tag{2, 8} $$

so that node $i$ gets, from each neighbour $j$ and from itself,

$$ x'_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \frac{w_{ji}}{\sqrt{\tilde d_j \tilde d_i}}\, x_j W + b,
   \qquad \tilde d_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} w_{ji} $$

$\tilde d$ counts the edges that end in a node, as PyTorch Geometric does; in an undirected graph it is the degree. A
node that already has a self loop keeps it with its weight and gets no other (if it has several, the last one counts).

Shapes: N nodes, E edges, D in_channels, F out_channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.errors import ConfigError

from scratch_gnn.message_passing import check_graph, check_sizes, pass_messages


class GCNConv(nnx.Module):
    """The layer of eq. 2, with PyTorch Geometric's arguments.

    improved: the weight of an added self loop is 2 instead of 1. add_self_loops None: the same as ``normalize``. If
    ``normalize`` is False, the result is a plain weighted sum. Raises ConfigError for self loops without normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        add_self_loops = normalize if add_self_loops is None else add_self_loops
        if add_self_loops and not normalize:
            raise ConfigError("add_self_loops=True needs normalize=True: without it, put self loops into edge_index")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.improved, self.add_self_loops, self.normalize = improved, add_self_loops, normalize
        glorot = nnx.initializers.glorot_uniform()
        self.lin = nnx.Linear(
            in_channels, out_channels, use_bias=False, kernel_init=glorot, param_dtype=param_dtype, rngs=rngs
        )
        self.bias = nnx.Param(jnp.zeros(out_channels, param_dtype)) if bias else None

    def __call__(self, x_ND: jax.Array, edge_index_2E: jax.Array, edge_weight_E: jax.Array | None = None) -> jax.Array:
        """Return y_NF. edge_weight_E None: every edge weighs 1. Raises DataError for a graph that does not fit."""
        check_graph(x_ND, edge_index_2E, self.in_channels, edge_weight_E)
        x_NF = self.lin(jnp.asarray(x_ND))
        edge_index_2E = jnp.asarray(edge_index_2E)
        E = edge_index_2E.shape[1]
        weight_E = jnp.ones(E, x_NF.dtype) if edge_weight_E is None else jnp.asarray(edge_weight_E, x_NF.dtype)
        own_N = None
        if self.normalize:
            weight_E, own_N = self.coefficients(edge_index_2E, weight_E, x_NF.shape[0])
        return self.add_up(x_NF, edge_index_2E, weight_E, own_N)

    def add_up(
        self, x_NF: jax.Array, edge_index_2E: jax.Array, weight_E: jax.Array, own_N: jax.Array | None
    ) -> jax.Array:
        """Return y_NF of eq. 2 from $X W$ and the factors of the edges and of the self loops."""
        y_NF = pass_messages(x_NF, edge_index_2E, lambda target_EF, source_EF: weight_E[:, None] * source_EF)
        if own_N is not None:
            y_NF = y_NF + own_N[:, None] * x_NF
        return y_NF if self.bias is None else y_NF + self.bias[...]

    def coefficients(
        self, edge_index_2E: jax.Array, weight_E: jax.Array, num_nodes: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the factors of eq. 2: of each edge, and of each node's self loop (None if none are added)."""
        source_E, target_E = edge_index_2E[0], edge_index_2E[1]
        loop_N = None
        if self.add_self_loops:
            loop_N, is_loop_E = self_loops(edge_index_2E, weight_E, num_nodes, fill=2.0 if self.improved else 1.0)
            weight_E = jnp.where(is_loop_E, 0, weight_E)
        degree_N = jax.ops.segment_sum(weight_E, target_E, num_nodes)
        if loop_N is not None:
            degree_N = degree_N + loop_N
        root_N = jnp.where(degree_N > 0, jax.lax.rsqrt(jnp.where(degree_N > 0, degree_N, 1)), 0)
        weight_E = root_N[source_E] * weight_E * root_N[target_E]
        return weight_E, None if loop_N is None else root_N * loop_N * root_N


def self_loops(
    edge_index_2E: jax.Array, weight_E: jax.Array, num_nodes: int, fill: float
) -> tuple[jax.Array, jax.Array]:
    """Return the weight of each node's self loop, ``fill`` where the graph has none, and which edges are self loops."""
    is_loop_E = edge_index_2E[0] == edge_index_2E[1]
    number_E = jnp.where(is_loop_E, jnp.arange(len(weight_E)), -1)
    last_N = jax.ops.segment_max(number_E, edge_index_2E[1], num_nodes)  # negative for a node without a self loop
    found_N = weight_E[jnp.maximum(last_N, 0)] if len(weight_E) else jnp.zeros(num_nodes, weight_E.dtype)
    return jnp.where(last_N >= 0, found_N, fill), is_loop_E
