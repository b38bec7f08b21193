"""Sources of graphs: three that are always available, and folders of the user."""

from scratch_gnn.data.folders import read_ogb, read_planetoid, read_tu
from scratch_gnn.data.karate import karate_club
from scratch_gnn.data.open import GraphSet, NodeSet, open_graphs, open_nodes
from scratch_gnn.data.python_source import function_trees, import_graph

__all__ = [
    "GraphSet",
    "NodeSet",
    "function_trees",
    "import_graph",
    "karate_club",
    "open_graphs",
    "open_nodes",
    "read_ogb",
    "read_planetoid",
    "read_tu",
]
