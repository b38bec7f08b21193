"""Graph neural networks in JAX and Flax NNX: GCN, GAT, GATv2, GraphSAGE, GIN and GINE."""

from typing import TYPE_CHECKING

from scratch_core import ModelSpec, lazy

if TYPE_CHECKING:
    from scratch_gnn.batching import batch_graphs, bucket
    from scratch_gnn.config import GNNConfig
    from scratch_gnn.convert import from_pyg, to_pyg
    from scratch_gnn.gat import GATConv, GATv2Conv
    from scratch_gnn.gcn import GCNConv
    from scratch_gnn.gin import GINConv, GINEConv
    from scratch_gnn.graph import Graph
    from scratch_gnn.message_passing import pass_messages
    from scratch_gnn.model import GraphClassifier, LinkPredictor, NodeClassifier
    from scratch_gnn.pooling import attention_pool, pool
    from scratch_gnn.sage import SAGEConv

SPEC = ModelSpec(
    name="gnn",
    models={
        "node_classification": "scratch_gnn:NodeClassifier",
        "graph_classification": "scratch_gnn:GraphClassifier",
        "link_prediction": "scratch_gnn:LinkPredictor",
    },
    presets={
        "tiny": 212,
        "gat": 492,
        "gatv2": 912,
        "sage": 804,
        "gin": 4_647,
        "gcn_cora": 23_063,
        "gat_cora": 92_373,
    },
    recipes={
        "tiny": {"steps": 200, "learning_rate": 1e-2},
        "gat": {"steps": 200, "learning_rate": 1e-2},
        "gatv2": {"steps": 200, "learning_rate": 1e-2},
        "sage": {"steps": 200, "learning_rate": 1e-2},
        "gin": {"steps": 300, "learning_rate": 3e-3},
        # Kipf and Welling 2017, section 5.2; Velickovic et al. 2018, section 3.3.
        "gcn_cora": {"steps": 200, "learning_rate": 1e-2},
        "gat_cora": {"steps": 200, "learning_rate": 5e-3},
    },
)

__all__ = [
    "SPEC",
    "GATConv",
    "GATv2Conv",
    "GCNConv",
    "GINConv",
    "GINEConv",
    "GNNConfig",
    "Graph",
    "GraphClassifier",
    "LinkPredictor",
    "NodeClassifier",
    "SAGEConv",
    "attention_pool",
    "batch_graphs",
    "bucket",
    "from_pyg",
    "pass_messages",
    "pool",
    "to_pyg",
]

__getattr__ = lazy(
    __name__,
    GATConv="gat",
    GATv2Conv="gat",
    GCNConv="gcn",
    GINConv="gin",
    GINEConv="gin",
    GNNConfig="config",
    Graph="graph",
    GraphClassifier="model",
    LinkPredictor="model",
    NodeClassifier="model",
    SAGEConv="sage",
    attention_pool="pooling",
    batch_graphs="batching",
    bucket="batching",
    from_pyg="convert",
    pass_messages="message_passing",
    pool="pooling",
    to_pyg="convert",
)
