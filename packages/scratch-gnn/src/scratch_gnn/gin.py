r"""GIN: the sum over the neighbourhood, then an MLP; as strong as the Weisfeiler-Lehman test.

Source: Xu et al. 2019, https://arxiv.org/abs/1810.00826, eq. 4.1:

$$ x'_i = \mathrm{MLP}\Big((1 + \epsilon)\, x_i + \sum_{j \in \mathcal{N}(i)} x_j\Big) \tag{4.1} $$

A sum distinguishes multisets of neighbours that a mean or a maximum cannot. GINE (Hu et al. 2020,
https://arxiv.org/abs/1905.12265, as in PyTorch Geometric) adds features of the edges to the messages:

$$ x'_i = \mathrm{MLP}\Big((1 + \epsilon)\, x_i + \sum_{j \in \mathcal{N}(i)} \mathrm{ReLU}(x_j + W_e e_{ji})\Big) $$

Shapes: N nodes, E edges, D in_channels, A features of an edge, F out_channels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_gnn.message_passing import check_graph, check_sizes, pass_messages

# PyTorch's initialisation of a linear layer: uniform in +-1 / sqrt(in).
torch_linear = partial(nnx.Linear, kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


class Fixed(nnx.Variable):
    """A number that a checkpoint holds and that is not learned."""


class _Isomorphism(nnx.Module):
    """What GIN and GINE share: epsilon, and an MLP of one hidden layer with ReLU."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        eps: float,
        train_eps: bool,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_channels=in_channels, hidden_channels=hidden_channels, out_channels=out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up = torch_linear(in_channels, hidden_channels, param_dtype=param_dtype, rngs=rngs)
        self.down = torch_linear(hidden_channels, out_channels, param_dtype=param_dtype, rngs=rngs)
        self.eps = (nnx.Param if train_eps else Fixed)(jnp.full(1, eps, param_dtype))

    def update(self, x_ND: jax.Array, sum_ND: jax.Array) -> jax.Array:
        """Return y_NF of eq. 4.1, for the sum of the messages."""
        return self.down(nnx.relu(self.up((1 + self.eps[...]) * x_ND + sum_ND)))


class GINConv(_Isomorphism):
    """The layer of eq. 4.1.

    PyTorch Geometric's GINConv gets its MLP as ``nn``; here it is ``Sequential(Linear, ReLU, Linear)`` of these widths.
    ``train_eps``: epsilon is learned, starting at ``eps``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        eps: float = 0.0,
        train_eps: bool = False,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_channels, hidden_channels, out_channels, eps, train_eps, param_dtype, rngs)

    def __call__(self, x_ND: jax.Array, edge_index_2E: jax.Array) -> jax.Array:
        """Return y_NF. Raises DataError for a graph that does not fit."""
        check_graph(x_ND, edge_index_2E, self.in_channels)
        x_ND = jnp.asarray(x_ND)
        sum_ND = pass_messages(x_ND, jnp.asarray(edge_index_2E), lambda target_ED, source_ED: source_ED)
        return self.update(x_ND, sum_ND)


class GINEConv(_Isomorphism):
    """GIN with features of edges in its messages. ``edge_dim`` None: edges have in_channels features, without $W_e$."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        eps: float = 0.0,
        train_eps: bool = False,
        edge_dim: int | None = None,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_channels, hidden_channels, out_channels, eps, train_eps, param_dtype, rngs)
        self.edge_dim = in_channels if edge_dim is None else edge_dim
        check_sizes(edge_dim=self.edge_dim)
        lin = None if edge_dim is None else torch_linear(edge_dim, in_channels, param_dtype=param_dtype, rngs=rngs)
        self.lin = lin

    def __call__(self, x_ND: jax.Array, edge_index_2E: jax.Array, edge_attr_EA: jax.Array) -> jax.Array:
        """Return y_NF. Raises DataError for a graph that does not fit."""
        check_graph(x_ND, edge_index_2E, self.in_channels, edge_attr=edge_attr_EA, edge_dim=self.edge_dim)
        x_ND, edge_attr_EA = jnp.asarray(x_ND), jnp.asarray(edge_attr_EA)
        edge_ED = edge_attr_EA if self.lin is None else self.lin(edge_attr_EA)
        sent_ND = pass_messages(
            x_ND, jnp.asarray(edge_index_2E), lambda target_ED, source_ED: nnx.relu(source_ED + edge_ED)
        )
        return self.update(x_ND, sent_ND)
