"""The `scratch` command, from its arguments to its exit code; real processes where signals and start-up count."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scratch_core import models
from scratch_core.cli import main

HERE = Path(__file__).parent
SMALL = ["--steps", "12", "--batch-size", "4", "--sequence-length", "16", "--evaluation-tokens", "200"]


@pytest.fixture(scope="module")
def toy_path(tmp_path_factory):
    """A folder that, on sys.path, makes scratch_toy.py an installed model package."""
    folder = tmp_path_factory.mktemp("installed")
    about = folder / "scratch_toy-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-toy\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[scratch.models]\ntoy = scratch_toy:SPEC\n")
    (folder / "scratch_toy.py").write_text((HERE / "scratch_toy.py").read_text())
    return folder


@pytest.fixture
def toy(toy_path, tmp_path, monkeypatch):
    """The toy package is installed, and the working directory is empty."""
    monkeypatch.syspath_prepend(str(toy_path))
    monkeypatch.chdir(tmp_path)
    models.installed.cache_clear()
    yield
    models.installed.cache_clear()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the cat sat on the mat. " * 100)
    return str(path)


def lines(path):
    return [json.loads(line) for line in Path(path, "metrics.jsonl").read_text().splitlines()]


def fails(capsys, *arguments):
    """Run the command, which must fail with one line; return the line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("scratch: error: ")
    return error


def test_train_then_everything_else(toy, text, capsys):
    assert main(["train", "toy", "--data", text, "--learning-rate", "0.1", *SMALL, "--steps", "100"]) == 0
    out = capsys.readouterr().out
    assert "sample before training" in out
    assert "sample after training" in out
    bits = {name: float(value) for name, value in re.findall(r"  (.+?) +([0-9.]+)\n", out)}
    assert bits["this model"] < 2.5 < bits["unigram counts"]
    assert bits["bigram counts"] < bits["unigram counts"]
    assert 'next: uv run scratch generate runs/toy-tiny --prompt "' in out
    assert {"config.json", "model.safetensors", "scratch_tokenizer.json", "metrics.jsonl", "checkpoints"} <= set(
        os.listdir("runs/toy-tiny")
    )
    assert [line["step"] for line in lines("runs/toy-tiny")] == [1, *range(10, 101, 10)]

    assert main(["generate", "runs/toy-tiny", "--prompt", "the ", "--max-new-tokens", "20", "--temperature", "0"]) == 0
    assert re.fullmatch(r"the .{10,20}\n", capsys.readouterr().out)
    assert "the model has 300" in fails(capsys, "generate", "runs/toy-tiny", "--prompt", "x" * 280)

    assert main(["inspect", "runs/toy-tiny"]) == 0
    out = capsys.readouterr().out
    count = 264 * 16 * 2 + 264
    assert "ToyForCausalLM, read by Toy of scratch-toy" in out
    assert f"parameters    {count:,} in 3 tensors" in out
    assert f"F32 {count:,}" in out

    assert main(["models"]) == 0
    assert re.search(rf"toy +tiny +{count:,} +causal_lm +scratch-toy 0\.1\.0", capsys.readouterr().out)

    assert main(["convert", "runs/toy-tiny", "orbax"]) == 0
    assert main(["convert", "orbax", "back"]) == 0
    before, after = load_file("runs/toy-tiny/model.safetensors"), load_file("back/model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert json.loads(Path("back/config.json").read_text()) == json.loads(Path("runs/toy-tiny/config.json").read_text())
    assert main(["generate", "back", "--max-new-tokens", "5"]) == 0
    assert "not empty" in fails(capsys, "convert", "runs/toy-tiny", "back")

    # A second run of the same name does not touch the first; an explicit folder is refused.
    weights = Path("runs/toy-tiny/model.safetensors").read_bytes()
    assert main(["train", "toy", "--data", text, *SMALL]) == 0
    assert Path("runs/toy-tiny-2/model.safetensors").exists()
    assert "holds another run" in fails(capsys, "train", "toy", "--data", text, *SMALL, "--out", "runs/toy-tiny")
    assert Path("runs/toy-tiny/model.safetensors").read_bytes() == weights

    # --resume keeps the run's own options, whatever the defaults are, and refuses others.
    assert "--seed 3 cannot be changed" in fails(capsys, "train", "toy", "--resume", "runs/toy-tiny-2", "--seed", "3")
    assert main(["train", "toy", "--resume", "runs/toy-tiny-2", "--steps", "14"]) == 0
    assert "resumed at step 12 of 14" in capsys.readouterr().out
    assert [line["step"] for line in lines("runs/toy-tiny-2")] == [1, 10, 12, 14]
    Path(text).write_text("another text " * 100)
    assert "the data is not what" in fails(capsys, "train", "toy", "--resume", "runs/toy-tiny-2")


def test_a_run_that_starts_from_a_checkpoint_no_longer_needs_it(toy, text, capsys):
    assert main(["train", "toy", "--data", text, *SMALL, "--seed", "7", "--out", "first"]) == 0
    shutil.copytree("first", "checkpoint")
    start = load_file("checkpoint/model.safetensors")
    assert main(["train", "toy", "--start", "checkpoint", "--data", text, *SMALL, "--learning-rate", "1e-9"]) == 0
    assert "model   toy from " in capsys.readouterr().out
    for name, value in load_file("runs/toy-tuned/model.safetensors").items():
        np.testing.assert_allclose(value, start[name], atol=1e-6)

    first = lines("runs/toy-tuned")[0]["loss"]
    shutil.rmtree("checkpoint")
    shutil.rmtree("runs/toy-tuned/checkpoints")  # as if it had been killed before the first of them
    assert main(["train", "toy", "--resume", "--steps", "14"]) == 0
    out = capsys.readouterr().out
    assert "sample before training" in out
    assert "saved in runs/toy-tuned" in out
    assert lines("runs/toy-tuned")[0]["loss"] == first
    assert "there is no folder checkpoint" in fails(capsys, "train", "toy", "--start", "checkpoint", "--data", text)
    Path("first/scratch_tokenizer.json").unlink()
    assert "first holds no tokenizer" in fails(capsys, "train", "toy", "--start", "first", "--data", text)


def test_bad_input_is_one_line_and_exit_code_2(toy, text, tmp_path, capsys):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("short")
    Path("binary").write_bytes(b"text\0" * 1000)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    Path("no_config").mkdir()
    train = ["train", "toy", "--data", text, *SMALL]
    for arguments, message in (
        (["train", "nothing"], "'nothing' is not installed (installed: "),
        ([*train, "--preset", "huge"], "unknown preset 'huge' of toy; known presets: tiny, narrow"),
        ([*train, "--preset", "narrow"], "vocab_size=100"),
        ([*train, "--data", "nowhere.txt"], "no such file or folder"),
        ([*train, "--data", "empty.txt"], "empty.txt is empty"),
        ([*train, "--data", "binary"], "binary holds a NUL byte"),
        ([*train, "--data", ""], "the name of the text is empty"),
        ([*train, "--data", "short.txt"], "fewer than one window"),
        ([*train, "--tokenizer", "full"], "holds no tokenizer"),
        ([*train, "--steps", "0"], "--steps 0 must be at least 1"),
        ([*train, "--batch-size", "-1"], "--batch-size -1 must be at least 1"),
        ([*train, "--accumulate", "3"], "--accumulate 3 must divide --batch-size 4"),
        ([*train, "--sequence-length", "1"], "--sequence-length 1 must be at least 2"),
        ([*train, "--sequence-length", "301"], "--sequence-length 301 is more than the 300 positions"),
        ([*train, "--learning-rate", "0"], "--learning-rate 0.0 must be above 0"),
        ([*train, "--learning-rate", "nan"], "--learning-rate nan must be above 0"),
        ([*train, "--seed", "-1"], "--seed -1"),
        ([*train, "--out", "full"], "full is not empty"),
        ([*train, "--out", text], "is a file"),
        (["train", "toy", "--resume"], "there is no run of toy"),
        (["train", "toy", "--resume", "full"], "there is no run"),
        (["generate", "nowhere"], "there is no folder nowhere"),
        (["generate", ""], "the folder's name is empty"),
        (["generate", "nowhere", "--seed", "-1"], "--seed -1 must be in 0"),
        (["generate", "no_config"], "has no config.json"),
        (["inspect", "nowhere"], "there is no folder nowhere"),
        (["convert", "nowhere", "there"], "there is no folder nowhere"),
        (["convert", "no_config", "there"], "has no config.json"),
    ):
        assert message in fails(capsys, *arguments), arguments
    # Nothing was made, nothing was overwritten.
    assert sorted(os.listdir(tmp_path)) == ["binary", "book.txt", "empty.txt", "full", "no_config", "short.txt"]
    assert Path("full/file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "4"), ("steps", 4.5), ("learning_rate", [1]), ("data", 5), ("seed", None), ("new", 1)]
)
def test_a_record_that_was_edited_is_one_line(toy, text, capsys, name, value):
    assert main(["train", "toy", "--data", text, *SMALL, "--out", "run"]) == 0
    record = json.loads(Path("run/run.json").read_text())
    record["options"][name] = value
    Path("run/run.json").write_text(json.dumps(record))
    assert "run.json is damaged, or of another version: " in fails(capsys, "train", "toy", "--resume", "run")


def test_inspect_counts_what_load_reads(toy, text, capsys):
    assert main(["train", "toy", "--data", text, *SMALL, "--out", "run"]) == 0
    shutil.copy("run/model.safetensors", "run/consolidated.safetensors")
    capsys.readouterr()
    assert main(["inspect", "run"]) == 0
    out = capsys.readouterr().out
    assert "in 3 tensors" in out
    assert "consolidated" not in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": 5}, "architectures=5 must be a list of names"),
        ({"architectures": [None]}, "architectures=[None] must be a list of names"),
        ({"d_model": "16"}, "config.json describes no Toy: "),
        ({"d_model": {"__float__": None}}, "config.json cannot be read as JSON"),
    ],
)
def test_a_hostile_config_is_one_line(toy, text, capsys, change, message):
    assert main(["train", "toy", "--data", text, *SMALL, "--out", "run"]) == 0
    fields = json.loads(Path("run/config.json").read_text()) | change
    Path("run/config.json").write_text(json.dumps(fields))
    assert message in fails(capsys, "generate", "run")


def test_debug_shows_the_traceback(toy):
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        main(["--debug", "inspect", "nowhere"])


def test_arguments_that_cannot_be_parsed_are_one_line_too(toy, capsys):
    for arguments, message in (
        (["train", "toy", "--stepz", "3"], "--stepz"),
        (["train", "toy", "--steps", "many"], "--steps: invalid literal for int() with base 10: 'many'"),
        (["train", "toy", "--steps"], "Missing value for argument '--steps'"),
        (["generate", "x", "--dtype", "int3"], "invalid choice 'int3' for argument '--dtype'"),
        (["predict", "folder"], "An image file. (required)"),
        (["fly"], "fly"),
        ([], "{models, train, generate, convert, inspect, predict, doctor}"),
    ):
        assert message in fails(capsys, *arguments), arguments


def process(toy_path, cwd, *arguments):
    environment = os.environ | {"PYTHONPATH": str(toy_path)}
    return subprocess.Popen(
        [sys.executable, "-m", "scratch_core.cli", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from scratch_core.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*{'jax', 'flax', 'orbax', 'grain', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.split() == []
    for command in ("models", "train", "generate", "convert", "inspect"):
        assert f"• {command} " in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_goes_on(toy_path, text, tmp_path, number):
    running = process(toy_path, tmp_path, "train", "toy", "--data", text, *SMALL, "--steps", "1000000")
    run = tmp_path / "runs" / "toy-tiny"
    for _ in range(1200):
        if (run / "metrics.jsonl").exists() and len(lines(run)) >= 3:
            break
        time.sleep(0.1)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 128 + number
    assert "Traceback" not in err
    step = int(re.search(rf"stopped by {number.name} after step (\d+) of 1000000, saved in runs/toy-tiny", out)[1])
    assert "to go on: uv run scratch train toy --resume runs/toy-tiny" in out
    assert (run / "model.safetensors").exists()
    if number == signal.SIGTERM:  # once is enough
        return
    resumed = process(toy_path, tmp_path, "train", "toy", "--resume", "--steps", str(step + 30))
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert f"resumed at step {step} of {step + 30}" in out
    assert "next: uv run scratch generate runs/toy-tiny" in out
    steps = [line["step"] for line in lines(run)]
    assert steps == sorted(set(steps))
    assert steps[-1] == step + 30
