"""`scratch train t5` and `scratch predict`, from the shell to the files: pairs, and texts with gaps."""

import dataclasses
import json

import pytest
from flax import nnx
from scratch_core import cli
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_t5 import T5, T5Config

SMALL = ["--start", "model", "--batch-size", "8", "--source-length", "16", "--target-length", "4"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Work in a folder with a small random model, ``model``, from which the runs start."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(T5Config.tiny(), num_layers=1, num_decoder_layers=1)
    T5(config, rngs=nnx.Rngs(0)).save_pretrained("model")
    ByteTokenizer().save("model")


def test_it_learns_pairs_and_predict_writes_the_target(capsys, tmp_path):
    """The target is the last letter of the source, so that all but reading the source fails."""
    rows = [{"source": f"{a}{b}{c}", "target": c} for a in "abcdefg" for b in "hijk" for c in "xy"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [*SMALL, "--data", "pairs.jsonl", "--steps", "60", "--learning-rate", "5e-3", "--out", "run"]
    assert cli.main(["train", "t5", *options]) == 0
    out = capsys.readouterr().out
    assert "pairs.jsonl: 56 pairs, 6 held out" in out
    assert "held-out exact match 6 of 6; always the most frequent target: " in out
    assert cli.main(["predict", "run", "ahy"]) == 0
    assert capsys.readouterr().out == "y\n"
    (tmp_path / "in.jsonl").write_text('{"text": "ahy", "id": 1}\n')
    assert cli.main(["predict", "run", "in.jsonl", "--out", "out.jsonl"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"text": "ahy", "id": 1, "prediction": "y"}
    capsys.readouterr()
    assert cli.main(["train", "t5", "--resume", "run", "--steps", "62"]) == 0
    assert "resumed at step 60 of 62" in capsys.readouterr().out


def test_it_fills_gaps(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    options = [*SMALL, "--data", "t.txt", "--learning-rate", "1e-3", "--out", "gaps"]
    assert cli.main(["train", "t5", *options, "--steps", "2", "--scan", "--remat"]) == 0
    out = capsys.readouterr().out
    assert "gaps to fill" in out
    assert "held-out right tokens" in out


def test_a_source_without_a_token_is_an_error(capsys):
    assert cli.main(["predict", "model", ""]) == 2
    assert "the source '' holds no token: give a text" in capsys.readouterr().err
