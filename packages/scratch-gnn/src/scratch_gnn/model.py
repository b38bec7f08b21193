r"""Graph neural networks: layers of one kind with a nonlinearity between them, for nodes, for graphs and for links.

$$ X_0 = X, \qquad X_l = \sigma(\mathrm{conv}_l(X_{l-1}, E)), \qquad Z = \mathrm{conv}_L(X_{L-1}, E) \tag{1} $$

Each of the three models reads its answer from $Z$:

* nodes: the logits of node $i$ are $Z_i$ (Kipf and Welling 2017, https://arxiv.org/abs/1609.02907, eq. 9)
* graphs: the logits of graph $g$ are $\mathrm{pool}_{i \in g} Z_i$ (Xu et al. 2019, https://arxiv.org/abs/1810.00826,
  section 4.2, with the linear map before the sum)
* links: the logit of the link between $i$ and $j$ is $Z_i^\top Z_j$ (Kipf and Welling 2016,
  https://arxiv.org/abs/1611.07308, eq. 2)

Shapes: N nodes, E edges, D features of a node, A features of an edge, G graphs, M classes, P pairs of nodes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from scratch_core.errors import DataError
from scratch_core.layers import dropout
from scratch_core.losses import IGNORED, cross_entropy
from scratch_core.pretrained import PretrainedModel

from scratch_gnn import convert
from scratch_gnn.config import GNNConfig
from scratch_gnn.gat import GATConv, GATv2Conv
from scratch_gnn.gcn import GCNConv
from scratch_gnn.gin import GINConv, GINEConv, torch_linear
from scratch_gnn.graph import check_labels, check_numbers
from scratch_gnn.inference import read_in_blocks
from scratch_gnn.pooling import attention_pool, pool
from scratch_gnn.sage import SAGEConv


def layer(config: GNNConfig, number: int, rngs: nnx.Rngs) -> Any:
    """Return layer ``number`` of a model, counted from 0."""
    last = number == config.num_layers - 1
    D = config.in_channels if number == 0 else config.hidden_channels
    F = config.out_channels if last else config.hidden_channels
    if config.conv == "gcn":
        return GCNConv(D, F, rngs=rngs)
    if config.conv == "sage":
        return SAGEConv(D, F, config.aggr, rngs=rngs)
    if config.conv == "gin":
        return GINConv(D, config.hidden_channels, F, train_eps=True, rngs=rngs)
    if config.conv == "gine":
        return GINEConv(D, config.hidden_channels, F, train_eps=True, edge_dim=config.edge_dim, rngs=rngs)
    attention = GATConv if config.conv == "gat" else GATv2Conv
    H = config.output_heads if last else config.heads
    return attention(D, F if last else F // H, H, concat=not last, dropout=config.attention_dropout, rngs=rngs)


class GNN(PretrainedModel):
    """The layers of eq. 1, which the three models share."""

    Config = GNNConfig
    rules = staticmethod(convert.rules)

    def __init__(self, config: GNNConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.convs = nnx.List([layer(config, number, rngs) for number in range(config.num_layers)])
        self.dropout = dropout(config.dropout, rngs)

    def activation(self, x: jax.Array) -> jax.Array:
        """Return sigma of eq. 1."""
        return nnx.elu(x) if self.config.activation == "elu" else nnx.relu(x)

    def hidden(
        self,
        x_ND: jax.Array,
        edge_index_2E: jax.Array,
        edge_weight_E: jax.Array | None = None,
        edge_attr_EA: jax.Array | None = None,
    ) -> jax.Array:
        """Return Z_NM of eq. 1.

        Raises DataError for a graph that does not fit, and for weights or features of edges that no layer reads.
        """
        # Integers are not cast, so that the first layer reports their dtype.
        x = x_ND.astype(self.dtype) if jnp.issubdtype(x_ND.dtype, jnp.floating) else x_ND
        extra = self._extra(edge_weight_E, edge_attr_EA)
        for number, conv in enumerate(self.convs):
            x = conv(self.dropout(jnp.asarray(x)) if self.config.dropout else x, edge_index_2E, *extra)
            if number < self.config.num_layers - 1:
                x = self.activation(x)
        return x

    def _extra(self, edge_weight: Any, edge_attr: Any) -> tuple[Any, ...]:
        name = self.config.conv
        if edge_weight is not None and name != "gcn":
            raise DataError(f"conv={name!r} reads no edge_weight: leave it out, or use gcn")
        if (edge_attr is not None) != (name == "gine"):
            raise DataError(f"conv={name!r} {'needs' if name == 'gine' else 'reads no'} edge_attr (features of edges)")
        return (edge_weight,) if name == "gcn" else (edge_attr,) if name == "gine" else ()

    def read(self, batch: Mapping[str, Any]) -> jax.Array:
        """Return Z_NM of a batch's graph; a batch of :func:`scratch_gnn.inference.blocks` is read in blocks."""
        if "node" in batch:
            return read_in_blocks(self, batch)
        return self.hidden(batch["x"], batch["edge_index"], batch.get("edge_weight"), batch.get("edge_attr"))

    def answers(self, batch: Mapping[str, Any]) -> jax.Array:
        """Return the logits, one row for each label of a batch."""
        raise NotImplementedError

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the cross-entropy over the labels; -100 is not counted.

        batch: "x" [N, D], "edge_index" [2, E]; optional "edge_weight" [E], "edge_attr" [E, A]; "labels", of the nodes
        [N], of the graphs [G] with the graph of each node as "graph" [N], or of the "pairs" [2, P]. Raises DataError
        for a label out of range. Under jit, values are unknown: such a label makes the loss NaN, and the trainer stops.
        """
        logits, labels = self.answers(batch), batch["labels"]
        if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise DataError(
                f"labels have shape {labels.shape} and dtype {labels.dtype}, expected an integer for each of "
                f"{logits.shape[0]} rows"
            )
        if not isinstance(labels, Tracer):
            check_labels(np.asarray(labels), logits.shape[-1], "row")
        total, weight = cross_entropy(logits, labels)
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= logits.shape[-1]))
        return jnp.where(wrong.any(), jnp.nan, total), weight


class NodeClassifier(GNN):
    """A class for each node."""

    task: ClassVar[str] = "node_classification"
    architectures: ClassVar[tuple[str, ...]] = ("GNNForNodeClassification",)

    def __call__(
        self,
        x_ND: jax.Array,
        edge_index_2E: jax.Array,
        edge_weight_E: jax.Array | None = None,
        edge_attr_EA: jax.Array | None = None,
    ) -> jax.Array:
        """Return logits_NM."""
        return self.hidden(x_ND, edge_index_2E, edge_weight_E, edge_attr_EA)

    def answers(self, batch: Mapping[str, Any]) -> jax.Array:
        """Return the logits of all nodes."""
        return self.read(batch)


class GraphClassifier(GNN):
    """A class for each graph."""

    task: ClassVar[str] = "graph_classification"
    architectures: ClassVar[tuple[str, ...]] = ("GNNForGraphClassification",)

    def __init__(self, config: GNNConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.gate = torch_linear(config.out_channels, 1, rngs=rngs) if config.pooling == "attention" else None

    def __call__(
        self,
        x_ND: jax.Array,
        edge_index_2E: jax.Array,
        graph_N: jax.Array | None = None,
        num_graphs: int = 1,
        edge_weight_E: jax.Array | None = None,
        edge_attr_EA: jax.Array | None = None,
    ) -> jax.Array:
        """Return logits_GM. graph_N None: all nodes are of one graph; nodes of graph ``num_graphs`` are padding."""
        z_NM = self.hidden(x_ND, edge_index_2E, edge_weight_E, edge_attr_EA)
        graph_N = jnp.zeros(z_NM.shape[0], jnp.int32) if graph_N is None else jnp.asarray(graph_N)
        check_numbers("graph_N", graph_N, (z_NM.shape[0],), num_graphs + 1)
        if self.gate is None:
            return pool(z_NM, graph_N, num_graphs, self.config.pooling)
        return attention_pool(z_NM, self.gate(z_NM)[:, 0], graph_N, num_graphs)

    def answers(self, batch: Mapping[str, Any]) -> jax.Array:
        """Return the logits of all graphs."""
        edges = batch.get("edge_weight"), batch.get("edge_attr")
        return self(batch["x"], batch["edge_index"], batch["graph"], batch["labels"].shape[0], *edges)


class LinkPredictor(GNN):
    """Whether two nodes are linked."""

    task: ClassVar[str] = "link_prediction"
    architectures: ClassVar[tuple[str, ...]] = ("GNNForLinkPrediction",)

    def __call__(
        self,
        x_ND: jax.Array,
        edge_index_2E: jax.Array,
        pairs_2P: jax.Array,
        edge_weight_E: jax.Array | None = None,
        edge_attr_EA: jax.Array | None = None,
    ) -> jax.Array:
        """Return logits_P of the link between the two nodes of each pair; their order does not matter."""
        pairs_2P = jnp.asarray(pairs_2P)
        check_numbers("pairs_2P", pairs_2P, (2, *pairs_2P.shape[1:2]), x_ND.shape[0])
        return score(self.hidden(x_ND, edge_index_2E, edge_weight_E, edge_attr_EA), pairs_2P)

    def answers(self, batch: Mapping[str, Any]) -> jax.Array:
        """Return logits [P, 2] of no link and of a link; the first is 0, which gives the binary cross-entropy."""
        logits_P = score(self.read(batch), batch["pairs"])
        return jnp.stack([jnp.zeros_like(logits_P), logits_P], axis=-1)


def score(z_NM: jax.Array, pairs_2P: jax.Array) -> jax.Array:
    """Return the inner product of the two nodes of each pair."""
    pairs_2P = jnp.asarray(pairs_2P)
    return (z_NM[pairs_2P[0]] * z_NM[pairs_2P[1]]).sum(axis=-1)
