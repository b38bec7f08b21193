"""`scratch train --mesh`: the same run on any number of devices and processes."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_core import ConfigError
from scratch_core.cli import main
from scratch_core.parallel import born_sharded, make_mesh, parse_mesh
from scratch_core.train import Trainer

TOY = "scratch_toy"
POINTS = """[scratch.models]
toy = scratch_toy:SPEC
"""
FEW = ("--steps", "5", "--batch-size", "8", "--sequence-length", "12", "--evaluation-tokens", "90")
FEW += ("--learning-rate", "1e-2")


@pytest.fixture(scope="module")
def toy(install):
    return install(TOY, POINTS)


@pytest.fixture
def workplace(toy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(toy))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine ten eleven twelve " * 30)
    return tmp_path


def train(*arguments):
    assert main(["train", "toy", *arguments]) == 0


def test_the_command_gives_the_same_losses_on_every_mesh(workplace, logged, monkeypatch):
    monkeypatch.setattr("scratch_core.tasks.causal_lm.SAMPLE_TOKENS", 0)
    monkeypatch.setitem(Trainer.__init__.__kwdefaults__, "log_every", 1)
    losses = {}
    for name, mesh in {"1x1": "fsdp=1", "8x1": "fsdp=8", "1x4": "tensor=4", "4x2": "fsdp=4,tensor=2"}.items():
        train("--data", "text.txt", "--out", name, "--mesh", mesh, *FEW)
        losses[name] = [line["loss"] for line in logged(name)]
        assert len(losses[name]) == 5
        np.testing.assert_allclose(losses[name], losses["1x1"], atol=1e-5, err_msg=name)


def test_a_run_may_be_resumed_on_other_meshes(workplace, logged, monkeypatch):
    monkeypatch.setattr("scratch_core.tasks.causal_lm.SAMPLE_TOKENS", 0)
    monkeypatch.setitem(Trainer.__init__.__kwdefaults__, "log_every", 1)
    train("--data", "text.txt", "--out", "whole", *FEW, "--steps", "6", "--schedule", "constant")
    train("--data", "text.txt", "--out", "moved", *FEW, "--steps", "2", "--schedule", "constant", "--mesh", "fsdp=8")
    train("--resume", "moved", "--steps", "4", "--mesh", "fsdp=4,tensor=2")
    train("--resume", "moved", "--steps", "6", "--mesh", "fsdp=1")
    whole, moved = ([line["loss"] for line in logged(run)] for run in ("whole", "moved"))
    assert len(moved) == 6
    np.testing.assert_allclose(moved, whole, atol=1e-5)


def test_each_variable_is_made_where_it_stays(workplace):
    module = importlib.import_module(TOY)
    mesh = make_mesh(fsdp=4, tensor=2)
    build = lambda: module.Toy(module.ToyConfig(), rngs=nnx.Rngs(0))  # noqa: E731
    model, plain = born_sharded(build, mesh), build()
    kernel = model.head.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 132)}
    assert model.mesh is mesh
    for ours, theirs in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(plain)), strict=True):
        if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("text", ["fsdp", "fsdp=0", "fsdp=2,fsdp=2", "model=2", "fsdp=2;tensor=2", ""])
def test_a_mesh_that_cannot_be_read_is_an_error(text):
    with pytest.raises(ConfigError, match="is not an axis with its size"):
        parse_mesh(text)


def test_options_that_do_not_fit_together(workplace, fails):
    assert "--coordinator needs a --mesh" in fails("train", "toy", *FEW, "--coordinator", "auto", "--out", "a")
    assert "needs an --out" in fails("train", "toy", *FEW, "--coordinator", "auto", "--mesh", "fsdp=8")
    assert "needs 4096 devices" in fails("train", "toy", *FEW, "--mesh", "fsdp=4096", "--data", "text.txt")
    assert "must divide the batch of 9" in fails(
        "train", "toy", *FEW, "--batch-size", "9", "--mesh", "fsdp=8", "--data", "text.txt"
    )
