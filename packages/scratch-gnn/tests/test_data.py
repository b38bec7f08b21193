"""The sources of graphs: the karate club, Python's source, and the folders of three collections."""

import gzip
import os
import pickle
from collections import defaultdict

import numpy as np
import pytest
from scratch_core.errors import DataError
from scratch_gnn import Graph
from scratch_gnn.data import (
    function_trees,
    import_graph,
    karate_club,
    open_graphs,
    open_nodes,
    read_ogb,
    read_planetoid,
    read_tu,
)


def test_the_karate_club_is_that_of_the_paper():
    club = karate_club()
    degrees = np.bincount(club.edge_index[1], minlength=34)
    assert (club.num_nodes, club.num_edges) == (34, 156)
    assert (degrees[0], degrees[33], degrees[32], degrees[11]) == (16, 17, 12, 1)
    assert np.bincount(club.labels).tolist() == [17, 17]
    assert set(map(tuple, club.edge_index.T)) == set(map(tuple, club.edge_index[::-1].T))
    nodes = open_nodes(None)
    assert (nodes.train.tolist(), len(nodes.test)) == ([0, 33], 32)


@pytest.fixture
def source(tmp_path):
    """Two packages of three modules, a file that is not Python, and a module without a package."""
    for package in ("first", "second"):
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text("from . import a\n")
        (folder / "a.py").write_text("import alone\nfrom .b import f\n\ndef f(x):\n    return x + 1\n")
        (folder / "b.py").write_text("def f(x, y):\n    for z in x:\n        yield z, y\n")
    (tmp_path / "alone.py").write_text("import first.b\n")
    (tmp_path / "broken.py").write_text("def :\n")
    return tmp_path


def test_the_import_graph_joins_modules_that_import_each_other(source):
    graph, names, classes = import_graph(source, least=3)
    assert names == ["alone", "first", "first.a", "first.b", "second", "second.a", "second.b"]
    pairs = {(names[a], names[b]) for a, b in graph.edge_index.T}
    assert pairs == {pair for a, b in [
        ("first", "first.a"), ("first.a", "alone"), ("first.a", "first.b"), ("alone", "first.b"),
        ("second", "second.a"), ("second.a", "alone"), ("second.a", "second.b"),
    ] for pair in ((a, b), (b, a))}  # fmt: skip
    assert (classes, graph.labels.tolist()) == (("first", "second"), [-100, 0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(graph.x[:, -1], np.log1p(np.bincount(graph.edge_index[1])), rtol=1e-6)


def test_functions_become_trees(source):
    graphs, classes = function_trees(source)
    assert (classes, [graph.labels for graph in graphs]) == (("first", "second"), [0, 0, 1, 1])
    for graph in graphs:
        assert graph.num_edges == 2 * (graph.num_nodes - 1)
        assert (graph.x.sum(axis=1) == 1).all()
    with pytest.raises(DataError, match="functions of fewer than two packages"):
        function_trees(source / "first")
    (source / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.py file"):
        import_graph(source / "empty")


def test_tudataset_folders(tmp_path):
    write = lambda part, text: (tmp_path / f"T_{part}.txt").write_text(text)  # noqa: E731
    write("A", "1, 2\n2, 1\n4, 3\n3, 4\n")
    write("graph_indicator", "1\n1\n2\n2\n2\n")
    write("graph_labels", "5\n-1\n")
    write("node_labels", "0\n2\n2\n0\n0\n")
    write("node_attributes", "0.5\n1\n2\n3\n4\n")
    write("edge_labels", "1\n1\n0\n1\n")
    first, second = (loaded := read_tu(tmp_path)).graphs
    assert (loaded.num_classes, first.labels, second.labels) == (2, 1, 0)
    assert first.x.tolist() == [[0.5, 1, 0], [1, 0, 1]]
    assert (second.num_nodes, second.edge_index.tolist()) == (3, [[1, 0], [0, 1]])
    assert second.edge_attr.tolist() == [[1, 0], [0, 1]]
    write("A", "1, 9\n")
    with pytest.raises(DataError, match="nodes from 1 to 9, expected 1 to 5"):
        read_tu(tmp_path)
    write("A", "1, two\n")
    with pytest.raises(DataError, match=r"T_A\.txt cannot be read as numbers"):
        open_graphs(str(tmp_path))


class Csr:
    """The parts of a scipy.sparse.csr_matrix that a pickle holds: its name, and these attributes."""

    def __init__(self, dense):
        rows, self.indices = np.nonzero(dense)
        self.data, self._shape = dense[rows, self.indices], dense.shape
        self.indptr = np.concatenate([[0], np.bincount(rows, minlength=len(dense)).cumsum()])


Csr.__module__, Csr.__qualname__, Csr.__name__ = "scipy.sparse.csr", "csr_matrix", "csr_matrix"


def write_planetoid(folder, monkeypatch):
    """Four nodes to train on, and the test nodes 6 and 4; node 5 is missing, as some of CiteSeer's are."""
    import sys
    import types

    module = types.ModuleType("scipy.sparse.csr")
    module.csr_matrix = Csr
    for name in ("scipy", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "scipy.sparse.csr", module)
    x, classes = np.eye(7, 3, dtype=np.float32) + 1, np.eye(2)[[0, 1, 0, 1, 1, 0, 0]]
    neighbours = defaultdict(list, {0: [1, 1], 1: [0], 4: [6], 6: [4], 2: [2]})
    parts = {"allx": Csr(x[:4]), "tx": Csr(x[[6, 4]]), "y": classes[:2], "ally": classes[:4], "ty": classes[[6, 4]]}
    for part, value in {**parts, "graph": neighbours}.items():
        (folder / f"ind.tiny.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.tiny.test.index").write_text("6\n4\n")
    return x


def test_planetoid_folders(tmp_path, monkeypatch):
    x = write_planetoid(tmp_path, monkeypatch)
    (graph,), num_classes, split = read_planetoid(tmp_path)
    assert num_classes == 2
    assert graph.labels.tolist() == [0, 1, 0, 1, 1, -100, 0]
    assert graph.edge_index.tolist() == [[1, 0, 6, 4], [0, 1, 4, 6]]
    rows = x / x.sum(axis=1, keepdims=True)
    rows[5] = 0
    np.testing.assert_allclose(graph.x, rows, rtol=1e-6)
    assert {name: numbers.tolist() for name, numbers in split.items()} == {
        "train": [0, 1], "valid": [2, 3], "test": [4, 6]
    }  # fmt: skip
    nodes = open_nodes(str(tmp_path))
    assert (nodes.train.tolist(), nodes.test.tolist()) == ([0, 1], [4, 6])


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


def test_a_hostile_planetoid_file_is_refused(tmp_path, monkeypatch):
    write_planetoid(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ind.tiny.graph").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=r"ind\.tiny\.graph cannot be read: it names \w+\.system"):
        read_planetoid(tmp_path)
    assert not (tmp_path / "hostile").exists()


def test_ogb_folders(tmp_path):
    def write(name, text):
        path = tmp_path / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))

    tmp_path = tmp_path / "ogbg_molx"  # the name of a dataset whose files hold each edge once
    write("raw/edge", "0,1\n1,2\n0,1\n")
    write("raw/num-node-list", "3\n2\n")
    write("raw/num-edge-list", "2\n1\n")
    write("raw/node-feat", "1\n2\n3\n4\n5\n")
    write("raw/edge-feat", "7\n8\n9\n")
    write("raw/graph-label", "1.0\n0\n")
    write("split/scaffold/train", "0\n")
    write("split/scaffold/test", "1\n")
    data = open_graphs(str(tmp_path))
    first, second = data.graphs
    assert (first.edge_index.tolist(), first.edge_attr[:, 0].tolist()) == ([[0, 1, 1, 2], [1, 0, 2, 1]], [7, 7, 8, 8])
    assert (second.x.tolist(), second.labels, data.train.tolist(), data.test.tolist()) == ([[4], [5]], 0, [0], [1])
    (directed, _), *_ = read_ogb(tmp_path, add_inverse_edge=False)
    assert (directed.edge_index.tolist(), directed.edge_attr[:, 0].tolist()) == ([[0, 1], [1, 2]], [7, 8])
    write("raw/graph-label", "1,0\n0,1\n")
    with pytest.raises(DataError, match=r"graph-label\.csv\.gz has 2 labels in a row"):
        open_graphs(str(tmp_path))
    write("raw/graph-label", "0.5\n1\n")
    with pytest.raises(DataError, match=r"holds 0\.5, which is no class"):
        open_graphs(str(tmp_path))
    write("raw/graph-label", "1\n1\n1\n")
    with pytest.raises(DataError, match="3 labels for 2 graphs of 5 nodes together"):
        open_graphs(str(tmp_path))
    write("raw/num-node-list", "3\n3\n")
    with pytest.raises(DataError, match="5 rows of nodes and 3 edges, but the lists of counts add up to 6 and 3"):
        open_graphs(str(tmp_path))


def test_a_directed_graph_of_ogb_stays_directed(tmp_path):
    for name, edges in (("ogbn_arxiv", [[0, 1], [1, 2]]), ("ogbn-products", [[0, 1, 1, 2], [1, 0, 2, 1]])):
        (tmp_path / name / "raw").mkdir(parents=True)
        files = {"edge": "0,1\n1,2\n", "num-node-list": "3\n", "num-edge-list": "2\n", "node-label": '4\n""\n9\n'}
        for part, text in files.items():
            (tmp_path / name / "raw" / f"{part}.csv.gz").write_bytes(gzip.compress(text.encode()))
        (graph,), num_classes, _ = read_ogb(tmp_path / name)
        assert (graph.edge_index.tolist(), graph.labels.tolist(), num_classes) == (edges, [0, -100, 1], 2)
    assert "3 nodes, 2 directed edges" in open_nodes(str(tmp_path / "ogbn_arxiv")).description
    assert "3 nodes, 4 edges" in open_nodes(str(tmp_path / "ogbn-products")).description


def test_a_graph_that_does_not_fit_together_is_an_error():
    x, edges = np.ones((3, 2), np.float32), np.zeros((2, 1), np.int32)
    with pytest.raises(DataError, match=r"labels have shape \(2,\), expected one for each of 3 nodes"):
        Graph(x, edges, np.zeros(2, np.int32))
    with pytest.raises(DataError, match="edge 0 has the source 5"):
        Graph(x, edges + 5)
    with pytest.raises(DataError, match="labels have dtype float64, expected integers"):
        Graph(x, edges, 0.7)
    with pytest.raises(DataError, match="a label is -1, expected the number of a class from 0 on, or -100 for none"):
        Graph(x, edges, np.array([0, -1, -100]))
