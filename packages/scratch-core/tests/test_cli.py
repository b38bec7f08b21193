"""The `scratch` command, from its arguments to its exit code; real processes where signals and start-up count."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from scratch_core.cli import main
from scratch_core.registry import find
from scratch_core.train import Trainer

SMALL = ["--steps", "12", "--batch-size", "4", "--sequence-length", "16", "--evaluation-tokens", "200"]
LOGGED = sorted({1, *range(10, 61, 10), *range(14, 61, 14)})  # of 60 steps; the held-out data has two batches
ENTRY_POINTS = """
[scratch.models]
toy = scratch_toy:SPEC

[scratch.architectures]
ToyForCausalLM = scratch_toy:Toy
"""


@pytest.fixture(scope="module")
def toy_path(install):
    """The folder of the installed toy package."""
    return install("scratch_toy", ENTRY_POINTS)


@pytest.fixture(scope="module")
def trained(toy_path, tmp_path_factory):
    """The result of a run of 60 steps: the folder with ``book.txt`` and ``runs``, and the printed text."""
    place = tmp_path_factory.mktemp("trained")
    (place / "book.txt").write_text("the cat sat on the mat. " * 100)
    arguments = ["train", "toy", "--data", "book.txt", "--learning-rate", "0.2", *SMALL, "--steps", "60"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.syspath_prepend(str(toy_path))
        patch.chdir(place)
        assert main(arguments) == 0
    return place, printed.getvalue()


@pytest.fixture
def toy(toy_path, tmp_path, monkeypatch):
    """The toy package is installed, and the working directory is empty."""
    monkeypatch.syspath_prepend(str(toy_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the cat sat on the mat. " * 100)
    return str(path)


@pytest.fixture
def run(toy, trained):
    """A copy of the trained run in the working directory, with its text where run.json expects it."""
    shutil.copytree(trained[0] / "runs/toy-tiny", "run")
    return Path("run")


def test_training_shows_what_was_learned(trained, logged):
    place, out = trained
    assert "sample before training" in out
    assert "sample after training" in out
    bits = {name: float(value) for name, value in re.findall(r"  (.+?) +([0-9.]+)\n", out)}
    assert bits["this model"] < 2.5 < bits["unigram counts"]
    assert bits["bigram counts"] < bits["unigram counts"]
    assert 'next: uv run scratch generate runs/toy-tiny --prompt "' in out
    run = place / "runs/toy-tiny"
    files = {"config.json", "model.safetensors", "scratch_tokenizer.json", "metrics.jsonl", "checkpoints", "run.json"}
    assert files <= set(os.listdir(run))
    assert [line["step"] for line in logged(run)] == LOGGED
    assert [line["step"] for line in logged(run) if "held_out_loss" in line] == [14, 28, 42, 56, 60]
    assert "tokens_per_second" in logged(run)[-1]


def test_generate_inspect_models_and_convert(run, fails, capsys):
    assert main(["generate", "run", "--prompt", "the ", "--max-new-tokens", "20", "--temperature", "0"]) == 0
    assert re.fullmatch(r"the .{10,20}\n", capsys.readouterr().out)
    assert "the model has 300" in fails("generate", "run", "--prompt", "x" * 280)
    assert "of the task causal_lm, which has no `scratch predict`: a language model continues a text" in fails(
        "predict", "run", "photo.png"
    )

    assert main(["inspect", "run"]) == 0
    out = capsys.readouterr().out
    count = 264 * 16 * 2 + 264
    assert "ToyForCausalLM, read by Toy of scratch-toy" in out
    assert f"parameters    {count:,} in 3 tensors" in out
    assert f"F32 {count:,}" in out

    assert main(["models"]) == 0
    assert re.search(rf"toy +tiny +{count:,} +causal_lm +scratch-toy 0\.1\.0", capsys.readouterr().out)

    assert main(["convert", "run", "orbax"]) == 0
    assert main(["convert", "orbax", "back"]) == 0
    before, after = load_file("run/model.safetensors"), load_file("back/model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert json.loads(Path("back/config.json").read_text()) == json.loads(Path("run/config.json").read_text())
    assert main(["generate", "back", "--max-new-tokens", "5"]) == 0
    assert "not empty" in fails("convert", "run", "back")


def test_a_second_run_does_not_touch_the_first(run, text, fails, capsys):
    Path("runs").mkdir()
    run.rename("runs/toy-tiny")
    weights = Path("runs/toy-tiny/model.safetensors").read_bytes()
    assert main(["train", "toy", "--data", text, *SMALL]) == 0
    assert Path("runs/toy-tiny-2/model.safetensors").exists()
    assert "holds another run" in fails("train", "toy", "--data", text, *SMALL, "--out", "runs/toy-tiny")
    assert Path("runs/toy-tiny/model.safetensors").read_bytes() == weights


def test_resume_keeps_the_options_of_the_run_and_its_schedule(run, trained, fails, logged, capsys):
    for name, value, own in (("seed", "3", "0"), ("batch-size", "16", "4"), ("out", "x", "None"), ("task", "x", "")):
        message = fails("train", "toy", "--resume", "run", f"--{name}", value)
        assert f"--{name} {value} cannot be changed: the run run has {own}" in message
    # A value that equals the recorded one is no change, even if it is not the default.
    assert main(["train", "toy", "--resume", "run", "--steps", "64", "--batch-size", "4", "--learning-rate=0.2"]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 60 of 64" in out
    assert "sample before" not in out
    before, after = logged(trained[0] / "runs/toy-tiny"), logged("run")
    assert [line["step"] for line in after] == [*LOGGED, 64]
    assert after[:-1] == before
    # More steps do not stretch the cosine: the rate stays at its final value, a tenth of the peak.
    record = json.loads(Path("run/run.json").read_text())
    assert (record["horizon"], record["options"]["steps"]) == (60, 64)
    assert after[-2]["learning_rate"] == pytest.approx(0.0201, abs=1e-4)
    assert after[-1]["learning_rate"] == pytest.approx(0.02)
    assert main(["train", "toy", "--resume", "run"]) == 0
    assert "64 steps of 4 x 16 tokens" in capsys.readouterr().out


def test_a_run_keeps_the_best_model_and_its_curves_show_the_held_out_loss(
    toy, text, fails, logged, capsys, monkeypatch
):
    evaluate = Trainer.evaluate

    def rising(self, *arguments):
        return evaluate(self, *arguments) | {"loss": {3: 1.0, 6: 2.0, 9: 3.0}.get(self.step, 4.0)}

    monkeypatch.setattr(Trainer, "evaluate", rising)
    train = ["train", "toy", "--data", text, *SMALL, "--evaluate-every", "3"]
    assert main([*train, "--patience", "2", "--keep-best", "1", "--keep", "1", "--out", "best"]) == 0
    out = capsys.readouterr().out
    assert "12 steps of 4 x 16 tokens, evaluated after every 3 steps" in out
    assert "stopped early after step 9: 2 evaluations without a lower held-out loss than 1.0000 after step 3\n" in out
    assert "best    step 3 has the lowest held-out loss: its model is saved" in out
    assert [line["step"] for line in logged("best") if "held_out_loss" in line] == [3, 6, 9]
    assert sorted(path.name for path in Path("best/checkpoints").iterdir() if path.name.isdigit()) == ["3", "9"]
    shown = float(re.search(r"this model +([0-9.]+)", out)[1])  # of the model that is saved, in bits per byte
    assert shown == pytest.approx(1 / np.log(2), rel=0.02)
    best = ocp.load_checkpointables(Path("best/checkpoints/3").absolute())["state"]["parameters"]["head"]["kernel"]
    np.testing.assert_array_equal(load_file("best/model.safetensors")["head.weight"], np.asarray(best).T)
    assert "held-out loss</text>" in Path("best/curves.svg").read_text()

    saved = Path("best/model.safetensors").read_bytes()
    assert main(["train", "toy", "--resume", "best"]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 9 of 12" in out
    assert "stopped early after step 9" in out
    assert Path("best/model.safetensors").read_bytes() == saved
    assert main(["train", "toy", "--resume", "best", "--patience", "0"]) == 0  # it resumes at the newest step
    assert [line["step"] for line in logged("best")] == [1, 3, 6, 9, 10, 12]
    assert "--keep-best 1 needs --evaluate-every N with N above 0" in fails(*train, "--keep-best", "1",
                                                                             "--evaluate-every", "0")  # fmt: skip
    assert "the held-out data is too large for one by default: give --evaluate-every N" in fails(
        "train", "toy", "--data", text, *SMALL, "--patience", "1"
    )


def test_a_run_begins_with_the_options_of_another(run, toy, text, fails, logged, capsys):
    train = ["train", "toy", "--data", text, *SMALL, "--learning-rate", "0.1", "--seed", "3", "--no-norms"]
    assert main([*train, "--out", "first"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"config +--task=causal_lm --preset=tiny --steps=12 --batch-size=4 --learning-rate=0.1", out)
    assert "--seed=3" in out
    assert "--no-norms" in out
    assert main(["train", "toy", "--config", "first/run.json", "--out", "second"]) == 0
    first, second = (json.loads(Path(name, "run.json").read_text()) for name in ("first", "second"))
    assert first == second
    assert {"python", "scratch-core", "scratch-toy", "jax", "jaxlib", "flax", "optax", "numpy"} <= set(
        first["versions"]
    )
    assert first["device"] == jax.devices()[0].device_kind
    assert Path("first/model.safetensors").read_bytes() == Path("second/model.safetensors").read_bytes()
    assert main(["train", "toy", "--config", "first/run.json", "--steps", "2", "--start", "run", "--out", "third"]) == 0
    third = json.loads(Path("third/run.json").read_text())
    assert third["options"] == first["options"] | {"steps": 2, "start": str(run.absolute())}
    with pytest.raises(SystemExit):
        main(["train", "toy", "--config", "first/run.json", "--help"])
    assert "(default: 12)" in capsys.readouterr().out

    def refused(message, **fields):
        Path("mine.json").write_text(json.dumps({"options": first["options"]} | fields))
        assert message in fails("train", "toy", "--config", "mine.json", "--out", "fourth")

    options = first["options"]
    refused("mine.json: batchsize is no option of causal_lm; the nearest is batch_size", options={"batchsize": 3})
    refused("mine.json: steps='12' must be int", options=options | {"steps": "12"})
    refused("mine.json: evaluate_every=True must be int | None", options=options | {"evaluate_every": True})
    refused("mine.json: preset=['tiny'] must be a text", options=options | {"preset": ["tiny"]})
    refused("--config mine.json is of llama, not of toy: write `scratch train llama ...`", model="llama")
    refused('--config mine.json: "options" must be an object, found [1]', options=[1])
    refused("--steps 0 must be at least 1", options=options | {"steps": 0})
    assert "--config nowhere.json: there is no such file" in fails("train", "toy", "--config", "nowhere.json")
    assert "leave one of them out" in fails("train", "toy", "--config", "first/run.json", "--resume", "first")


def test_a_run_of_other_data_is_refused(toy, text, fails):
    assert main(["train", "toy", "--data", text, *SMALL, "--out", "run"]) == 0
    Path(text).write_text("another text " * 100)
    record = Path("run/run.json").read_text()
    assert "the data is not what" in fails("train", "toy", "--resume", "run", "--steps", "20")
    assert Path("run/run.json").read_text() == record


def test_lora_trains_adapters_beside_a_checkpoint_and_saves_them_alone_and_merged(run, text, fails, capsys):
    tune = ["train", "toy", "--data", text, *SMALL, "--learning-rate", "0.1", "--lora", "head", "--lora-rank", "2"]
    assert "--lora needs a checkpoint to --start from" in fails(*tune)
    assert "['*.query'] match no linear layer of Toy; it has head" in fails(
        *tune, "--lora", "*.query", "--start", "run"
    )
    assert main([*tune, "--start", "run"]) == 0
    assert "lora    560 parameters in 1 layers" in capsys.readouterr().out
    start, tuned = load_file("run/model.safetensors"), load_file("runs/toy-tuned/model.safetensors")
    adapter = load_file("runs/toy-tuned/adapter/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.head.lora_{letter}.weight"] for letter in "AB")
    assert np.abs(b).max() > 0.01
    np.testing.assert_allclose(tuned["head.weight"], start["head.weight"] + 16 / 2 * b @ a, atol=5e-5)
    np.testing.assert_array_equal(tuned["embedding.weight"], start["embedding.weight"])
    assert main(["train", "toy", "--resume", "--steps", "14"]) == 0
    assert main(["generate", "runs/toy-tuned", "--prompt", "the", "--max-new-tokens", "3"]) == 0


def test_a_run_with_every_option_of_the_step_logs_them_draws_its_curves_and_resumes(toy, text, fails, logged, capsys):
    options = ["--schedule", "wsd", "--average", "0.9", "--dtype", "bfloat16", "--norms", "--scan", "--remat"]
    assert main(["train", "toy", "--data", text, *SMALL, "--learning-rate", "0.1", *options, "--out", "run"]) == 0
    first, last = logged("run")[0], logged("run")[-1]
    assert first["gradient_norms"].keys() == {"embedding", "head"}
    assert 0 < last["model_flops_utilisation"] < 1
    assert "<svg" in Path("run/curves.svg").read_text()
    assert load_file("run/model.safetensors")["head.weight"].dtype == np.float32
    assert main(["train", "toy", "--resume", "run", "--steps", "14"]) == 0
    assert main(["plot", "run", "run", "--out", "both.svg"]) == 0
    assert "curves: both.svg" in capsys.readouterr().out
    assert "elsewhere has no logged step" in fails("plot", "elsewhere")


def test_a_run_that_starts_from_a_checkpoint_no_longer_needs_it(run, text, fails, logged, capsys):
    shutil.copytree(run, "checkpoint")
    start = load_file("checkpoint/model.safetensors")
    assert main(["train", "toy", "--start", "checkpoint", "--data", text, *SMALL, "--learning-rate", "1e-9"]) == 0
    assert "model   toy from " in capsys.readouterr().out
    for name, value in load_file("runs/toy-tuned/model.safetensors").items():
        np.testing.assert_allclose(value, start[name], atol=1e-6)

    first = logged("runs/toy-tuned")[0]["loss"]
    shutil.rmtree("checkpoint")
    shutil.rmtree("runs/toy-tuned/checkpoints")
    assert "holds no step, so training would begin again" in fails("train", "toy", "--resume", "--steps", "14")
    Path("runs/toy-tuned/checkpoints").mkdir()  # as if the run had been killed before its first checkpoint
    Path("runs/toy-tuned/config.json").unlink()
    assert main(["train", "toy", "--resume", "--steps", "14"]) == 0
    out = capsys.readouterr().out
    assert "no checkpoint was saved yet: the run starts again at step 0" in out
    assert "sample before training" in out
    assert "saved in runs/toy-tuned" in out
    assert logged("runs/toy-tuned")[0]["loss"] == first
    assert "there is no folder checkpoint" in fails("train", "toy", "--start", "checkpoint", "--data", text)
    Path("run/scratch_tokenizer.json").unlink()
    assert "run holds no tokenizer" in fails("train", "toy", "--start", "run", "--data", text)


def test_bad_input_is_one_line_and_exit_code_2(toy, text, tmp_path, fails):
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
        ([*train, "--optimizer", "magic"], "the optimizer 'magic' (installed: adamw"),
        ([*train, "--task", "magic"], "--task magic: toy has no such task; choose one of: causal_lm"),
        ([*train, "--weight-decay", "-1"], "--weight-decay -1.0 must be at least 0"),
        ([*train, "--steps", "0"], "--steps 0 must be at least 1"),
        ([*train, "--batch-size", "-1"], "--batch-size -1 must be at least 1"),
        ([*train, "--keep", "0"], "--keep 0 must be at least 1"),
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
        (["predict", "nowhere", "photo.png"], "there is no folder nowhere"),
        (["predict", "no_config", "photo.png"], "has no config.json"),
        (["generate", "nowhere"], "there is no folder nowhere"),
        (["generate", ""], "the folder's name is empty"),
        (["predict", "", "photo.png"], "the folder's name is empty"),
        (["train", ""], "model '' is not installed"),
        (["generate", "nowhere", "--seed", "-1"], "--seed -1 must be in 0"),
        (["generate", "no_config"], "has no config.json"),
        (["inspect", "nowhere"], "there is no folder nowhere"),
        (["convert", "nowhere", "there"], "there is no folder nowhere"),
        (["convert", "no_config", "there"], "has no config.json"),
    ):
        assert message in fails(*arguments), arguments
    # Nothing was made, nothing was overwritten.
    assert sorted(os.listdir(tmp_path)) == ["binary", "book.txt", "empty.txt", "full", "no_config", "short.txt"]
    assert Path("full/file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "4"),
        ("steps", 4.5),
        ("learning_rate", [1]),
        ("data", 5),
        ("seed", None),
        ("new", 1),
        ("horizon", 0),
        ("options", 5),
    ],
)
def test_a_record_that_was_edited_is_one_line(run, fails, name, value):
    record = json.loads(Path("run/run.json").read_text())
    (record if name in ("horizon", "options") else record["options"])[name] = value
    Path("run/run.json").write_text(json.dumps(record))
    assert "run.json is damaged, or of another version: " in fails("train", "toy", "--resume", "run")


def test_inspect_counts_what_load_reads(run, capsys):
    shutil.copy("run/model.safetensors", "run/consolidated.safetensors")
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
def test_a_hostile_config_is_one_line(run, fails, change, message):
    fields = json.loads(Path("run/config.json").read_text()) | change
    Path("run/config.json").write_text(json.dumps(fields))
    assert message in fails("generate", "run")


def test_a_closed_pipe_ends_the_output_silently_and_a_full_disk_with_one_line(run, toy_path):
    """`scratch inspect RUN | true` ends with 0, and `> /dev/full` with one line that names the output."""
    environment = os.environ | {"PYTHONPATH": str(toy_path)}
    command = [sys.executable, "-m", "scratch_core.cli", "inspect", run]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    expected = "scratch: error: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_weights_that_are_not_finite_write_no_text_unless_allowed(run, fails, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "diverged")
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name][0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    assert f"{name} holds NaN or infinity" in fails("generate", str(folder), "--prompt", "the")
    arguments = ["generate", str(folder), "--prompt", "the", "--max-new-tokens", "3", "--allow-nonfinite"]
    assert main(arguments) == 0


def test_debug_shows_the_traceback(toy):
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        main(["--debug", "inspect", "nowhere"])


def test_arguments_that_cannot_be_parsed_are_one_line_too(toy, fails):
    for arguments, message in (
        (["train", "toy", "--stepz", "3"], "--stepz"),
        (["train", "toy", "--steps", "many"], "--steps: invalid literal for int() with base 10: 'many'"),
        (["train", "toy", "--steps"], "Missing value for argument '--steps'"),
        (["generate", "x", "--dtype", "int3"], "invalid choice 'int3' for argument '--dtype'"),
        (["predict"], "FOLDER"),
        (["train", "--steps", "3", "toy"], "--steps comes too early: write `scratch train NAME ...`"),
        (["fly"], "fly"),
        ([], "{models, train, generate, convert, inspect, predict, plot, plan, doctor}"),
    ):
        assert message in fails(*arguments), arguments


def test_the_preset_gives_the_defaults_and_where_it_has_none_they_are_asked_for(toy, text, fails, capsys):
    narrow = ["train", "toy", "--data", text, "--preset", "narrow"]
    assert "the preset narrow of toy has no default for --steps: give it on the command line" in fails(*narrow)
    recipes = find("toy").recipes
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(recipes, "narrow")
        message = "the preset narrow of toy has no default for --steps and --learning-rate: give them on the command"
        assert message in fails(*narrow)
        assert "--learning-rate: give it" in fails(*narrow, "--steps", "12")
        patch.setitem(recipes, "tiny", {"stepz": 3})
        assert "the recipe of toy tiny names no option of causal_lm: stepz" in fails("train", "toy")
    assert "vocab_size=100" in fails(*narrow, "--steps", "12")  # every option has a value, so the model is built
    for arguments, steps, rate in (([], "600", "0.003"), (["--preset", "narrow"], "(required)", "0.001"),
                                   (["--start", "anything"], "600", "2e-05")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["train", "toy", *arguments, "--help"])
        words = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert re.search(rf"--steps INT Number of updates in total\. \(?(default: )?{re.escape(steps)}", words), words
        assert re.search(rf"before the decay\. \(default: {rate}\)", words), words


def process(toy_path, cwd, *arguments):
    # As many devices as in this process, so that both can use one compilation cache.
    environment = os.environ | {"PYTHONPATH": str(toy_path), "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
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
    for command in ("models", "train", "generate", "convert", "inspect", "predict"):
        assert f"• {command} " in done.stdout


def wait_for_steps(run, logged):
    for _ in range(1200):
        if (run / "metrics.jsonl").exists() and len(logged(run)) >= 3:
            return
        time.sleep(0.1)


def test_a_closed_terminal_saves(toy_path, text, tmp_path, logged):
    run = tmp_path / "runs" / "toy-tiny"
    terminal, end = pty.openpty()
    code = (  # the terminal becomes that of the process, as in a shell
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    )
    train = ["-m", "scratch_core.cli", "train", "toy", "--data", text, *SMALL, "--steps", "1000000"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, *train],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(toy_path), "JAX_NUM_CPU_DEVICES": str(jax.device_count())},
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    )
    os.close(end)
    wait_for_steps(run, logged)
    os.close(terminal)  # the system sends SIGHUP, and every later write is an error
    try:
        assert running.wait(timeout=120) == 128 + signal.SIGHUP
    finally:
        running.kill()
    assert (run / "model.safetensors").exists()
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert not (run / "run.lock").exists()


def test_a_signal_saves_and_resume_continues(toy_path, text, tmp_path, logged):
    running = process(toy_path, tmp_path, "train", "toy", "--data", text, *SMALL, "--steps", "1000000")
    run = tmp_path / "runs" / "toy-tiny"
    wait_for_steps(run, logged)
    running.send_signal(signal.SIGINT)
    try:
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err
    step = int(re.search(r"stopped by SIGINT after step (\d+) of 1000000, saved in runs/toy-tiny", out)[1])
    assert "to resume: uv run scratch train toy --resume runs/toy-tiny" in out
    assert (run / "model.safetensors").exists()
    resumed = process(toy_path, tmp_path, "train", "toy", "--resume", "--steps", str(step + 30))
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert f"resumed at step {step} of {step + 30}" in out
    assert "next: uv run scratch generate runs/toy-tiny" in out
    steps = [line["step"] for line in logged(run)]
    assert steps == sorted(set(steps))
    assert steps[-1] == step + 30
