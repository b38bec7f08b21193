r"""GAT and GATv2: attention over the neighbourhood.

Sources: Veličković et al. 2018, https://arxiv.org/abs/1710.10903 (GAT), and Brody et al. 2022,
https://arxiv.org/abs/2105.14491 (GATv2). Both weigh node $i$ and its neighbours by a softmax of scores $s$, in each of
$H$ heads:

$$ \alpha_{ij} = \mathrm{softmax}_j(s_{ij}), \qquad x'_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \alpha_{ij} W x_j + b
   \tag{3, 4} $$

The heads are concatenated (eq. 5 of GAT) or averaged (eq. 6). The scores differ:

$$ s_{ij} = \mathrm{LeakyReLU}\left(a_\mathrm{dst}^\top W x_i + a_\mathrm{src}^\top W x_j\right) \tag{GAT} $$
$$ s_{ij} = a^\top \mathrm{LeakyReLU}\left(W_r x_i + W_l x_j\right), \qquad W = W_l \tag{GATv2} $$

GAT ranks nodes $j$ in the same order for every $i$, because $a_\mathrm{dst}^\top W x_i$ does not change the order; in
GATv2 the order depends on $i$. With ``add_self_loops``, each node has exactly one self loop, whatever the graph has.

Shapes: N nodes, E edges, D in_channels, H heads, F out_channels of a head.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.layers import dropout as dropout_layer

from scratch_gnn.message_passing import check_graph, check_sizes, softmax_over_neighbours

glorot = nnx.initializers.glorot_uniform()


class _Attention(nnx.Module):
    """What GAT and GATv2 share: eq. 3 and 4 from scores and values."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int,
        concat: bool,
        negative_slope: float,
        dropout: float,
        add_self_loops: bool,
        bias: bool,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_channels=in_channels, out_channels=out_channels, heads=heads)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout} must be at least 0 and less than 1")
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.negative_slope, self.add_self_loops = negative_slope, add_self_loops
        self.dropout = dropout_layer(dropout, rngs)
        width = heads * out_channels if concat else out_channels
        self.bias = nnx.Param(jnp.zeros(width, param_dtype)) if bias else None

    def attend(
        self, x_NHF: jax.Array, edge_index_2E: jax.Array, scores_EH: jax.Array, own_NH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return y of eq. 4, and the weights of the edges [E, H] and of the self loops [N, H], before dropout."""
        source_E, target_E = edge_index_2E[0], edge_index_2E[1]
        N, width = x_NHF.shape[0], self.heads * self.out_channels
        own = None
        if self.add_self_loops:
            scores_EH = jnp.where((source_E == target_E)[:, None], -jnp.inf, scores_EH)  # added ones replace them
            own = own_NH
        weights_EH, own = softmax_over_neighbours(scores_EH, target_E, own, N)
        kept_EH = self.dropout(weights_EH)
        y_NHF = jax.ops.segment_sum(kept_EH[:, :, None] * x_NHF[source_E], target_E, N)
        if own is not None:
            y_NHF = y_NHF + self.dropout(own)[:, :, None] * x_NHF
        y = y_NHF.reshape(N, width) if self.concat else y_NHF.mean(axis=1)
        return y if self.bias is None else y + self.bias[...], weights_EH, own

    def __call__(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> jax.Array:
        """Return y: [N, heads * out_channels], or [N, out_channels] without ``concat``.

        Raises DataError for a graph that does not fit.
        """
        return self.with_weights(x_ND, edge_index_2E)[0]

    def with_weights(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return y and the attention weights: of the edges [E, H], and of the added self loops [N, H] or None.

        A self loop of the graph has the weight 0 if an added one replaces it.
        """
        raise NotImplementedError


class GATConv(_Attention):
    """GAT, with PyTorch Geometric's arguments; ``dropout`` acts on the attention weights."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        bias: bool = True,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, bias, param_dtype, rngs
        )
        H, F = heads, out_channels
        self.lin = nnx.Linear(
            in_channels, H * F, use_bias=False, kernel_init=glorot, param_dtype=param_dtype, rngs=rngs
        )
        self.att_src = nnx.Param(glorot(rngs.params(), (1, H, F), param_dtype))
        self.att_dst = nnx.Param(glorot(rngs.params(), (1, H, F), param_dtype))

    def with_weights(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        check_graph(x_ND, edge_index_2E, self.in_channels)
        x_NHF = self.lin(jnp.asarray(x_ND)).reshape(x_ND.shape[0], self.heads, self.out_channels)
        edge_index_2E = jnp.asarray(edge_index_2E)
        # The score adds two terms that depend on one node each, so no array of size E x F is needed.
        sent_NH = jnp.einsum("NHF,HF->NH", x_NHF, self.att_src[0])
        read_NH = jnp.einsum("NHF,HF->NH", x_NHF, self.att_dst[0])
        scores_EH = nnx.leaky_relu(sent_NH[edge_index_2E[0]] + read_NH[edge_index_2E[1]], self.negative_slope)
        return self.attend(x_NHF, edge_index_2E, scores_EH, nnx.leaky_relu(sent_NH + read_NH, self.negative_slope))


class GATv2Conv(_Attention):
    """GATv2, with PyTorch Geometric's arguments. ``share_weights``: $W_l$ and $W_r$ are one matrix."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        bias: bool = True,
        share_weights: bool = False,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, bias, param_dtype, rngs
        )
        H, F = heads, out_channels

        def linear() -> nnx.Linear:
            return nnx.Linear(in_channels, H * F, use_bias=bias, kernel_init=glorot, param_dtype=param_dtype, rngs=rngs)

        self.lin_l = linear()
        self.lin_r = None if share_weights else linear()
        self.att = nnx.Param(glorot(rngs.params(), (1, H, F), param_dtype))

    def with_weights(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        check_graph(x_ND, edge_index_2E, self.in_channels)
        x_ND, edge_index_2E = jnp.asarray(x_ND), jnp.asarray(edge_index_2E)
        H, F = self.heads, self.out_channels
        left_NHF = self.lin_l(x_ND).reshape(x_ND.shape[0], H, F)
        right_NHF = left_NHF if self.lin_r is None else self.lin_r(x_ND).reshape(x_ND.shape[0], H, F)

        def score(left: jax.Array, right: jax.Array) -> jax.Array:
            return jnp.einsum("...HF,HF->...H", nnx.leaky_relu(left + right, self.negative_slope), self.att[0])

        scores_EH = score(left_NHF[edge_index_2E[0]], right_NHF[edge_index_2E[1]])
        return self.attend(left_NHF, edge_index_2E, scores_EH, score(left_NHF, right_NHF))
