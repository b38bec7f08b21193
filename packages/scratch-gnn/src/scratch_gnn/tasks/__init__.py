"""The tasks of this package: a class for each node, a class for each graph, and links between nodes."""
