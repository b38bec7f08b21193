"""Entry points: the commands run a task, a model and an optimizer of another package like those of core."""

import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from scratch_core import data, load
from scratch_core.cli import main
from scratch_core.errors import ConfigError, MissingExtraError
from scratch_core.parallel import make_mesh
from scratch_core.registry import find
from scratch_core.tasks import Task, find_task
from scratch_core.testing import ModelContract, random_batch
from scratch_core.train import Trainer, find_optimizer
from scratch_core.vision.images import ImageProcessor

ENTRY_POINTS = """
[scratch.models]
heat = scratch_heat:SPEC

[scratch.architectures]
HeatForNodeRegression = scratch_heat:Heat

[scratch.tasks]
node_regression = scratch_heat:TASK

[scratch.optimizers]
averaged = scratch_heat:AVERAGED
"""


@pytest.fixture(scope="module")
def heat_path(install):
    return install("scratch_heat", ENTRY_POINTS)


@pytest.fixture
def heat(heat_path, tmp_path, monkeypatch):
    """The module of the package, which is installed; the working directory is empty."""
    monkeypatch.syspath_prepend(str(heat_path))
    monkeypatch.chdir(tmp_path)
    find("heat").model()
    return sys.modules["scratch_heat"]


def test_a_task_of_another_package_is_trained_resumed_and_predicts(heat, fails, logged, capsys):
    assert main(["train", "heat", "--accumulate", "4", "--steps", "30", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "data    rings of 12 nodes" in out
    assert "model   heat tiny, 6 parameters" in out
    assert "run     run: 30 steps of a ring of 12 nodes" in out
    assert "next: uv run scratch inspect run" in out
    lines = logged("run")
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert "nodes_per_second" in lines[-1]

    # What is saved and evaluated is the optimizer's average, before and after the resume.
    assert main(["train", "heat", "--resume", "run", "--steps", "40"]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 30 of 40" in out
    held_out = float(re.search(r"held-out loss ([0-9.]+)", out)[1])
    saved = heat.Heat.from_pretrained("run")
    assert held_out == pytest.approx(float(np.divide(*saved.loss(heat.ring(12, seed=99)))), abs=1e-4)
    trained, mean = replay(heat, 30, 40)
    np.testing.assert_allclose(saved.own.kernel[...], mean["own"]["kernel"], atol=1e-5)
    assert np.abs(trained["own"]["kernel"] - mean["own"]["kernel"]).max() > 1e-2

    assert main(["predict", "run", "1,0,0"]) == 0
    printed = capsys.readouterr().out
    assert float(printed.removeprefix("node 0: ")) == pytest.approx(float(saved.own.kernel[0, 0]), abs=1e-3)
    assert "give numbers with commas" in fails("predict", "run", "one,two")
    assert "cannot be changed" in fails("train", "heat", "--resume", "run", "--nodes", "5")
    assert "--nodes 1 must be at least 2" in fails("train", "heat", "--nodes", "1")
    assert "fine-tuning for node_regression has no default for --steps and --learning-rate" in fails(
        "train", "heat", "--start", "run"
    )
    shutil.copytree("run", "checkpoint")
    tuned = ["--start", "checkpoint", "--steps", "2", "--learning-rate", "1e-9", "--out", "tuned"]
    assert main(["train", "heat", *tuned]) == 0
    for name, value in load_file("tuned/model.safetensors").items():
        np.testing.assert_allclose(value, load_file("run/model.safetensors")[name], atol=1e-6)


def replay(heat, horizon, steps):
    """The same training in numpy: plain SGD at the schedule's rates, and the mean of the parameters after each step."""
    from scratch_core.train import warmup_cosine

    model, rates = heat.SPEC.model()(heat.HeatConfig(), rngs=nnx.Rngs(0)), warmup_cosine(0.1, horizon)
    parameters = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    mean = parameters
    for k in range(steps):
        batch = heat.ring(12, seed=100 + k)
        near = np.roll(batch["x"], 1, axis=0)
        error = batch["x"] @ parameters["own"]["kernel"] + near @ parameters["near"]["kernel"]
        error = error - batch["labels"][:, None]
        gradients = {
            "own": {"kernel": 2 * batch["x"].T @ error / 12},
            "near": {"kernel": 2 * near.T @ error / 12},
        }
        rate, share = float(rates(k)), 1 / (k + 1)
        parameters = jax.tree.map(lambda p, g, rate=rate: p - rate * g, parameters, gradients)
        mean = jax.tree.map(lambda m, p, share=share: m + (p - m) * share, mean, parameters)
    return parameters, mean


def test_a_batch_that_is_not_rows_is_split_and_placed_by_its_task(heat):
    batch, losses = heat.ring(8), []
    for options in ({}, {"accumulate": 4}, {"mesh": make_mesh(fsdp=4)}):
        model = heat.Heat(heat.HeatConfig(), rngs=nnx.Rngs(0))
        optimizer = find_optimizer("adamw").build(0.1, weight_decay=0.0, decayed=())
        trainer = Trainer(model, optimizer, handling=heat.TASK, **options)
        losses.append([trainer.fit([batch] * 3, k + 1).loss for k in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)
    assert heat.TASK.count(batch) == 8


def test_the_contract_serves_a_task_of_another_package(heat):
    class Contract(ModelContract):
        model_class = heat.Heat
        decayed = ("near.kernel", "own.kernel")
        overfit_rate = 0.1

    Contract.setup_class()
    contract = Contract()
    contract.test_is_registered()
    contract.test_overfits_one_batch()
    contract.test_meshes_give_the_losses_of_one_device()
    contract.test_weight_decay_acts_on_these_parameters_alone()
    contract.test_saved_and_loaded_is_the_same(Path.cwd())


def test_unknown_tasks_and_optimizers_are_named_with_the_installed_ones():
    with pytest.raises(ConfigError, match=r"the task 'magic' \(installed: .*causal_lm.*, image_classification"):
        find_task("magic")
    with pytest.raises(ConfigError, match=r"the optimizer 'magic' \(installed: adamw"):
        find_optimizer("magic")


@pytest.mark.parametrize("name", ["causal_lm", "image_classification"])
def test_a_task_names_its_contract(name):
    task = find_task(name)
    module, _, contract = task.contract.partition(":")
    assert isinstance(task, Task)
    assert task.name == name
    assert issubclass(getattr(__import__(module, fromlist=[contract]), contract), ModelContract)


def test_noise_fits_the_configuration():
    class Config:
        vocab_size, num_channels, num_classes = 7, 2, 5

        def __init__(self, image_size):
            self.image_size = image_size

    batch = random_batch("causal_lm", Config(None), 3)
    assert batch["input_ids"].shape == (3, 32)
    assert batch["input_ids"].max() == 6
    for size, side in ((None, 32), (16, 16), ((8, 8), 8)):
        batch = random_batch("image_classification", Config(size), 4)
        assert batch["images"].shape == (4, side, side, 2)
        assert set(batch["labels"]) <= set(range(5))


@pytest.mark.parametrize(
    ("extra", "blocked", "use"),
    [
        ("images", "PIL", lambda folder: data.read_image(folder / "photo.png")),
        ("images", "PIL", lambda folder: data.load_images(None, ImageProcessor((8, 8), mean=(0.5,), std=(0.5,)))),
        ("tokenizers", "tokenizers", lambda folder: data.load_tokenizer(folder)),
        ("hub", "huggingface_hub", lambda folder: load("owner/name")),
    ],
)
def test_a_missing_extra_is_named_with_its_command(extra, blocked, use, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingExtraError, match=rf"extra '{extra}' .*uv pip install 'scratch-core\[{extra}\]'"):
        use(tmp_path)
