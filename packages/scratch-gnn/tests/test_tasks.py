"""The three tasks through the commands: train, resume, predict, and errors."""

import csv
import json
import re

import numpy as np
import pytest
from flax import nnx
from scratch_core import load
from scratch_core.cli import main
from scratch_core.errors import ConfigError
from scratch_core.parallel import make_mesh
from scratch_core.tasks import find_task
from scratch_core.train import Trainer, find_optimizer
from scratch_gnn import SPEC, GNNConfig, Graph, NodeClassifier
from scratch_gnn.batching import pad_graph
from scratch_gnn.data import karate_club
from scratch_gnn.pictures import layout
from scratch_gnn.tasks.common import check_fits
from scratch_gnn.tasks.graphs import Collated
from scratch_gnn.tasks.links import LinkSplit, ranking


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_two_labels_split_the_karate_club(capsys, tmp_path):
    assert main(["train", "gnn", "--steps", "60", "--out", "run"]) == 0
    assert main(["train", "gnn", "--resume", "run", "--steps", "80"]) == 0
    out = capsys.readouterr().out
    assert "the karate club: 34 members, 78 pairs, 2 labels" in out
    assert "resumed at step 60 of 80" in out
    right = int(re.findall(r"\((\d+) of 32\)", out)[-1])
    assert right >= 27
    assert main(["predict", "run", "--out", "predicted"]) == 0
    rows = list(csv.DictReader((tmp_path / "predicted/predictions.csv").open()))
    assert len(rows) == 34
    assert sum(row["label"] == row["answer"] for row in rows[1:33]) == right
    assert np.load("predicted/embeddings.npy").shape == (34, 2)
    picture = (tmp_path / "predicted/graph.svg").read_text()
    assert (picture.count("<line"), picture.count("<circle")) == (156, 36)
    assert load("run").config.labels == ("instructor", "officer")
    with pytest.raises(ConfigError, match="run reads 34 features of a node, the data has 5"):
        check_fits(load("run"), 5, (), "run")
    with pytest.raises(ConfigError, match="run knows the classes instructor, officer; the data has left, right"):
        check_fits(load("run"), 34, ("left", "right"), "run")


def test_nodes_are_trained_on_samples_of_their_neighbours(capsys):
    sampled = ["--fanout", "4,3", "--batch-size", "2", "--steps", "30", "--out", "run"]
    assert main(["train", "gnn", *sampled]) == 0
    assert "30 steps of 2 nodes and up to 4 x 3 neighbours" in capsys.readouterr().out
    assert "--fanout 4 must have a number for each of 2 layers" in fails(capsys, "train", "gnn", "--fanout", "4")
    assert "--fanout x must be numbers with commas" in fails(capsys, "train", "gnn", "--fanout", "x")


def test_attention_is_drawn(capsys, tmp_path):
    assert main(["train", "gnn", "--preset", "gat", "--steps", "2", "--out", "run"]) == 0
    opacities = re.findall(r'stroke-opacity="([0-9.]+)"', (tmp_path / "run/attention.svg").read_text())
    assert len(set(opacities)) > 10


def write_tu(folder):
    """Rings (class -1) and stars (class 1) of 4 to 7 nodes, as a TUDataset."""
    edges, owner, labels, first = [], [], [], 1
    for number in range(24):
        nodes = 4 + number % 4
        pairs = [(i, (i + 1) % nodes) for i in range(nodes)] if number % 2 else [(0, i) for i in range(1, nodes)]
        edges += [f"{first + a}, {first + b}\n{first + b}, {first + a}" for a, b in pairs]
        owner += [str(number + 1)] * nodes
        labels.append("-1" if number % 2 else "1")
        first += nodes
    folder.mkdir()
    for name, lines in (("A", edges), ("graph_indicator", owner), ("graph_labels", labels)):
        (folder / f"SHAPES_{name}.txt").write_text("\n".join(lines) + "\n")


def test_graphs_of_a_tudataset_are_told_apart(capsys, tmp_path):
    write_tu(tmp_path / "SHAPES")
    data = ["--data", "SHAPES"]
    options = "--task graph_classification --preset sage --steps 40 --batch-size 8 --learning-rate 0.02 --out run"
    assert main(["train", "gnn", *options.split(), *data]) == 0
    assert "held-out accuracy 100.00 % (4 of 4)" in capsys.readouterr().out
    assert main(["predict", "run", *data]) == 0
    rows = list(csv.DictReader((tmp_path / "run/predictions.csv").open()))
    assert [row["part"] for row in rows].count("test") == 4
    assert "24 graphs, but this task reads one" in fails(capsys, "train", "gnn", *data)
    assert "--data nowhere is no folder: give karate" in fails(capsys, "train", "gnn", "--data", "nowhere")


def test_links_are_found(capsys, tmp_path):
    options = ["--task", "link_prediction", "--data", "karate", "--steps", "60", "--out", "run"]
    assert main(["train", "gnn", *options]) == 0
    out = capsys.readouterr().out
    assert "7 links held out" in out
    assert re.search(r"held-out ROC AUC 0\.\d+, average precision 0\.\d+; at random 0\.5", out)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert main(["predict", "run", "--data", "karate"]) == 0
    assert len(list(csv.DictReader((tmp_path / "run/predictions.csv").open()))) == 14


def test_links_to_train_on_and_links_to_test_on_are_disjoint():
    split = LinkSplit(karate_club())
    train, test = (set(map(tuple, pairs.T.tolist())) for pairs in (split.train, split.test))
    assert (len(train), len(test), len(train & test)) == (71, 7, 0)
    read = set(map(tuple, split.batch["edge_index"].T.tolist()))
    assert not read & {pair for a, b in test for pair in ((a, b), (b, a))}
    batch = split.held_out()
    unlinked = set(map(tuple, batch["pairs"][:, batch["labels"] == 0].T.tolist()))
    assert not unlinked & (train | test)


def test_ranking_equals_its_definition(random):
    labels = random.integers(0, 2, 60)
    scores = np.round(random.normal(size=60) + labels, 1)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    precision, recall = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        now = labels[chosen].sum() / labels.sum()
        precision, recall = precision + (now - recall) * labels[chosen].mean(), now
    np.testing.assert_allclose(ranking(scores, labels), (np.mean(pairs), precision))


def test_batches_are_a_function_of_the_step():
    graphs = [Graph(np.full((2, 1), i, np.float32), np.zeros((2, 0), np.int32), i % 2) for i in range(10)]
    batches, again = (Collated(graphs, np.arange(10), 5, seed=3) for _ in range(2))
    first, second = batches[0], batches[1]
    seen = sorted(np.concatenate([batch["x"][batch["graph"] < 5, 0] for batch in (first, second)]).tolist())
    assert seen == sorted([float(i) for i in range(10)] * 2)
    np.testing.assert_array_equal(again[1]["x"], second["x"])


def test_edges_over_8_devices_and_parts_of_the_labels_give_the_steps_of_one_device():
    """Each device holds an eighth of the edges, and the compiler adds the sums of all devices."""
    batch, task, losses = pad_graph(karate_club()), find_task("node_classification"), []
    mesh = make_mesh(fsdp=8)
    edges = task.place(batch, mesh)["edge_index"]
    assert {shard.data.shape for shard in edges.addressable_shards} == {(2, edges.shape[1] // 8)}
    for options in ({}, {"mesh": mesh}, {"accumulate": 4}):
        model = NodeClassifier(GNNConfig(34, 8, 2, conv="gat", heads=2), rngs=nnx.Rngs(0))
        optimizer = find_optimizer("adamw").build(0.01, weight_decay=0.0, decayed=())
        trainer = Trainer(model, optimizer, handling=task, **options)
        losses.append([float(trainer.train_step(batch)["loss"]) for _ in range(3)])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-5)
    assert task.count(batch) == 34


def test_a_layout_puts_neighbours_together():
    edges = karate_club().edge_index
    place = layout(34, edges)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    assert place.min() >= 0
    assert place.max() <= 1
    assert apart[edges[0], edges[1]].mean() < 0.7 * apart[np.triu_indices(34, 1)].mean()


def test_recipes_are_for_presets():
    assert SPEC.recipes.keys() == SPEC.presets.keys()
