r"""GraphSAGE: a linear map of the neighbourhood's mean or maximum, plus one of the node itself.

Source: Hamilton et al. 2017, https://arxiv.org/abs/1706.02216, algorithm 1:

$$ x'_i = W_l \cdot \mathrm{aggr}_{j \in \mathcal{N}(i)}\, x_j + W_r x_i + b \tag{line 5} $$
$$ x'_i \leftarrow x'_i / \lVert x'_i \rVert_2 \quad \text{(with normalize)} \tag{line 7} $$

Line 5 of the paper multiplies the concatenation of both by one matrix, which is the same sum.

Shapes: N nodes, E edges, D in_channels, F out_channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_gnn.gin import torch_linear
from scratch_gnn.message_passing import check_aggregation, check_graph, check_sizes, pass_messages


class SAGEConv(nnx.Module):
    """The layer of line 5, with PyTorch Geometric's arguments.

    aggr: "mean", "max" or "sum". root_weight False leaves $W_r x_i$ out. Raises ConfigError for another aggregation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        aggr: str = "mean",
        normalize: bool = False,
        root_weight: bool = True,
        bias: bool = True,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.aggr, self.normalize = check_aggregation(aggr), normalize
        self.lin_l = torch_linear(in_channels, out_channels, use_bias=bias, param_dtype=param_dtype, rngs=rngs)
        own = None
        if root_weight:
            own = torch_linear(in_channels, out_channels, use_bias=False, param_dtype=param_dtype, rngs=rngs)
        self.lin_r = own

    def __call__(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> jax.Array:
        """Return y_NF. Raises DataError for a graph that does not fit."""
        check_graph(x_ND, edge_index_2E, self.in_channels)
        x_ND = jnp.asarray(x_ND)
        near_ND = pass_messages(x_ND, jnp.asarray(edge_index_2E), lambda target_ED, source_ED: source_ED, self.aggr)
        y_NF = self.lin_l(near_ND)
        if self.lin_r is not None:
            y_NF = y_NF + self.lin_r(x_ND)
        if self.normalize:
            square_N = jnp.square(y_NF).sum(axis=-1)
            # The square root has no derivative at 0, so a row of zeros is left as it is.
            length_N = jnp.sqrt(jnp.where(square_N > 0, square_N, 1))
            y_NF = y_NF / jnp.maximum(length_N, 1e-12)[:, None]
        return y_NF
