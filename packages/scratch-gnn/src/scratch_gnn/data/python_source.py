"""Graphs of Python's own source: which module imports which, and the syntax trees of functions."""

import ast
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
from scratch_core.data import standard_library
from scratch_core.errors import DataError

from scratch_gnn.graph import Graph, both_ways

NODE_TYPES = sorted(
    name
    for name, kind in vars(ast).items()
    if isinstance(kind, type) and issubclass(kind, ast.AST) and kind.__module__ in ("ast", "_ast")
)


def import_graph(root: Path | None = None, least: int = 8) -> tuple[Graph, list[str], tuple[str, ...]]:
    """Return a graph of the modules below ``root``, their names, and the names of their classes.

    root None: the standard library. Two modules are joined if one imports the other. A module's features are how many
    nodes of each type its syntax tree has, and how many neighbours it has, each as log(1 + count); its name is not
    a feature. Its label is its package if that has at least ``least`` modules, else -100. Raises DataError if no two
    modules are joined.
    """
    paths, root = _python_files(root)
    trees = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        tree = _parse(path)
        if tree is not None:
            trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or root.name] = (tree, path)
    names = sorted(trees)
    number = {name: i for i, name in enumerate(names)}
    pairs = []
    x = np.zeros((len(names), len(NODE_TYPES) + 1), np.float32)
    types = {name: i for i, name in enumerate(NODE_TYPES)}
    for name in names:
        tree, path = trees[name]
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if (column := types.get(type(node).__name__)) is not None:
                x[number[name], column] += 1
            pairs += [(number[name], number[other]) for other in _imported(node, package) if other in number]
    edges = both_ways(np.array(pairs))
    if not edges.size:
        raise DataError(f"{root}: no module of {len(names)} imports another: name the folder of a Python package")
    np.add.at(x[:, -1], edges[1], 1)
    packages = [name.split(".")[0] for name in names]
    counts = Counter(packages)
    classes = tuple(sorted(package for package, count in counts.items() if count >= least))
    labels = np.array([classes.index(package) if package in classes else -100 for package in packages], np.int32)
    return Graph(np.log1p(x), edges, labels), names, classes


def function_trees(
    root: Path | None = None, classes: int = 5, per_class: int = 200, most_nodes: int = 200
) -> tuple[list[Graph], tuple[str, ...]]:
    """Return the syntax trees of functions as graphs, and the names of the labels: the packages of the functions.

    root None: the standard library. A node of the tree is a node of the graph, with its type as one-hot features; edges
    join parent and child in both directions. From each of the ``classes`` packages with the most functions, up to
    ``per_class`` are taken, evenly spaced among those of 5 to ``most_nodes`` nodes. Raises DataError if there are fewer
    than two packages.
    """
    paths, root = _python_files(root)
    found: dict[str, list[ast.AST]] = {}
    for path in paths:
        package = path.relative_to(root).parts[0]
        if package == path.name or (tree := _parse(path)) is None:
            continue
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        found.setdefault(package, []).extend(functions)
    chosen = sorted(sorted(found, key=lambda package: (-len(found[package]), package))[:classes])
    graphs = []
    for label, package in enumerate(chosen):
        trees = [tree for tree in map(_tree, found[package]) if 5 <= len(tree[0]) <= most_nodes]
        for place in np.linspace(0, len(trees) - 1, min(per_class, len(trees))).astype(int):
            kinds, parents = trees[place]
            x = np.zeros((len(kinds), len(NODE_TYPES)), np.float32)
            x[np.arange(len(kinds)), kinds] = 1
            children = np.arange(1, len(kinds))
            graphs.append(Graph(x, both_ways(np.stack([parents[1:], children], axis=1)), label))
    if len({graph.labels for graph in graphs}) < 2:
        raise DataError(f"{root} holds functions of fewer than two packages: name a folder of several packages")
    return graphs, tuple(chosen)


def _python_files(root: Path | None) -> tuple[list[Path], Path]:
    if root is None:
        return standard_library(), Path(sysconfig.get_path("stdlib"))
    paths = sorted(Path(root).rglob("*.py"))
    if not paths:
        raise DataError(f"{root} holds no .py file: name a folder of Python source")
    return paths, Path(root)


def _parse(path: Path) -> ast.Module | None:
    """Return the syntax tree of a file, or None if this version of Python cannot parse it."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _imported(node: ast.AST, package: str) -> list[str]:
    """Return the modules that an import may name; those that do not exist are left out by the caller."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package.split(".") if package else []
    base = parents[: len(parents) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [name for name in (module, *(f"{module}.{alias.name}" for alias in node.names)) if name]


_NUMBER = {name: i for i, name in enumerate(NODE_TYPES)}


def _tree(function: ast.AST) -> tuple[list[int], list[int]]:
    """Return the type of each node, and the number of its parent, in the order of a walk from the root."""
    kinds, parents, waiting = [], [], [(function, 0)]
    for node, parent in waiting:  # the loop appends to the list that it reads
        number = len(kinds)
        kinds.append(_NUMBER[type(node).__name__])
        parents.append(parent)
        waiting += [(child, number) for child in ast.iter_child_nodes(node) if type(child).__name__ in _NUMBER]
    return kinds, parents
