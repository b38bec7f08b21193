"""Protects `scratch train` and `scratch predict` of images, from the shell to the files, with the smallest ResNet.

The tests need all parts together: a killed and resumed run equals an undisturbed run, a frozen trunk keeps every bit,
and an error is one line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scratch_core import cli
from scratch_core.data import load_digits

STEPS = 150  # a signal sent after the second checkpoint must arrive before the last step
MIXED = ["--mixup", "0.2", "--flip", "--crop", "1", "--label-smoothing", "0.1", "--save-every", "15"]
TRAIN = ["train", "resnet", "--data", "photos", "--image-size", "8", "--batch-size", "8", *MIXED]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with only ``photos``: a folder of images for each of three digits."""
    place, digits = tmp_path_factory.mktemp("work"), load_digits()
    for label in range(3):
        folder = place / "photos" / "abc"[label] / "nested"
        folder.mkdir(parents=True)
        for i, image in enumerate(digits.train_images[digits.train_labels == label][:20]):
            Image.fromarray((image * 15).astype(np.uint8)).convert("RGB").save(folder / f"{i:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.fixture(scope="module")
def trained(place):
    """An undisturbed run."""
    assert cli.main([*TRAIN, "--steps", str(STEPS), "--out", "trained"]) == 0
    return place / "trained"


def scratch(place, *arguments):
    command = [sys.executable, "-m", "scratch_core.cli", *arguments]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}  # as here, to share compiled code
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(running, number, run, step):
    """Send a signal as soon as the run has a checkpoint of ``step`` or later; return what it printed."""
    while running.poll() is None and not any(
        int(path.name) >= step for path in (run / "checkpoints").glob("*") if path.name.isdigit()
    ):
        time.sleep(0.01)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == (-number if number == signal.SIGKILL else 128 + number), err
    assert "Traceback" not in err
    return out


def fails(capsys, *arguments):
    """Run the command, which must fail with one line; return the line."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("scratch: error: ")
    return error


def test_a_killed_and_resumed_run_equals_an_undisturbed_run(trained, place, capsys):
    run = place / "killed"
    end(scratch(place, *TRAIN, "--steps", str(STEPS), "--out", "killed"), signal.SIGKILL, run, 15)
    assert not (run / "model.safetensors").exists()
    out = end(scratch(place, "train", "resnet", "--resume", "killed"), signal.SIGTERM, run, 30)
    assert "resumed at step " in out
    assert "to resume: uv run scratch train resnet --resume killed" in out
    assert cli.main(["train", "resnet", "--resume", "killed"]) == 0
    assert f" of {STEPS}\n" in capsys.readouterr().out

    assert (run / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run, trained)
    ]
    for name in ("step", "loss", "gradient_norm", "learning_rate"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]


def test_training_prints_its_accuracy_and_predict_shows_an_image(trained, place, capsys):
    assert cli.main(["train", "resnet", "--resume", "trained"]) == 0  # nothing left to train: prints the results again
    out = capsys.readouterr().out
    assert "60 images of 3 classes" in out
    assert "48 to train on, 12 held out" in out
    right = int(out.partition("held-out accuracy ")[2].partition("(")[2].partition(" of 12)")[0])
    assert right >= 10
    assert Image.open("trained/confusion.png").size[1] > 100
    assert cli.main(["predict", "trained", "trained/example.png"]) == 0
    answers = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
    assert {answer[-1] for answer in answers} == {"a", "b", "c"}
    shares = [float(answer[0]) for answer in answers]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert Image.open("trained/example-looked.png").size == (512, 512)


@pytest.mark.parametrize("frozen", [True, False])
def test_fine_tuning_on_other_classes(trained, place, frozen):
    (place / "pair").mkdir(exist_ok=True)
    for name in "bc":
        if not (place / "pair" / name).exists():
            (place / "pair" / name).symlink_to(place / "photos" / name / "nested")
    out = "frozen" if frozen else "tuned"
    options = ["--start", "trained", "--data", "pair", "--steps", "30", "--batch-size", "8", "--out", out]
    assert cli.main(["train", "resnet", *options, *(["--freeze"] if frozen else [])]) == 0
    before, after = load_file("trained/model.safetensors"), load_file(f"{out}/model.safetensors")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert after["classifier.1.bias"].shape == (2,)
    assert changed == head if frozen else changed > head | {n for n in before if "running_mean" in n}
    assert json.loads(Path(out, "config.json").read_text())["id2label"] == {"0": "b", "1": "c"}
    assert Path(out, "preprocessor_config.json").read_text() == Path("trained/preprocessor_config.json").read_text()


def test_a_run_that_starts_from_a_checkpoint_no_longer_needs_it(trained, place):
    shutil.copytree("trained", "copied")
    options = ["--start", "copied", "--data", "photos", "--batch-size", "8", "--freeze", "--out", "alone"]
    assert cli.main(["train", "resnet", *options, "--steps", "5"]) == 0
    shutil.rmtree("copied")
    assert cli.main(["train", "resnet", "--resume", "alone", "--steps", "10"]) == 0
    assert cli.main(["train", "resnet", "--resume", "alone"]) == 0
    before, after = load_file("trained/model.safetensors"), load_file("alone/model.safetensors")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


def test_an_error_is_one_line(trained, place, capsys):
    assert "--freeze needs a checkpoint" in fails(capsys, *TRAIN, "--freeze")
    assert "there is no folder nowhere" in fails(capsys, *TRAIN, "--start", "nowhere")
    assert "there is no folder nowhere" in fails(capsys, *TRAIN, "--data", "nowhere")
    for value in ("-1", "nan", "inf"):
        assert f"--weight-decay {float(value)} must be" in fails(capsys, *TRAIN, "--weight-decay", value)
    assert "mixup=-1.0 at least 0" in fails(capsys, *TRAIN, "--mixup", "-1")
    assert "--image-size 0" in fails(capsys, *TRAIN, "--image-size", "0")
    assert "the preset resnet50 of resnet has no default for --steps and --learning-rate: give them" in fails(
        capsys, *TRAIN, "--preset", "resnet50"
    )
    assert "must be at least patch_size=4" in fails(capsys, "train", "vit", "--image-size", "3")
    assert "reads 32 x 32 pixels only" in fails(capsys, "train", "cnn", "--image-size", "8")
    assert "trained holds ResNetForImageClassification" in fails(capsys, "train", "vit", "--start", "trained")
    picture = place / "photos" / "b" / "nested" / "03.png"
    whole = picture.read_bytes()
    try:
        picture.write_bytes(whole[: len(whole) // 2])
        assert "03.png is damaged or truncated" in fails(capsys, *TRAIN)
        assert "03.png is damaged or truncated" in fails(capsys, "predict", "trained", str(picture))
        picture.unlink()
        assert "the data is not what trained was trained on" in fails(capsys, "train", "resnet", "--resume", "trained")
    finally:
        picture.write_bytes(whole)
