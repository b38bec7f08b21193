"""Golden checkpoints of transformers' and timm's ResNets, through the key tables and back."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scratch_core
from scratch_core.losses import image_classification_loss
from scratch_core.testing import (
    assert_close,
    check_image_classifier,
    check_round_trip,
    read_io,
    read_tensors,
    with_legacy_config,
)
from scratch_core.train import Trainer

GOLDEN = Path(__file__).parent / "golden"
EVALUATED = ["basic", "bottleneck", "timm"]


@pytest.mark.parametrize("name", EVALUATED)
def test_equals_the_reference(name):
    check_image_classifier(GOLDEN / name)


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_the_legacy_config_says_the_same(name, tmp_path):
    assert (
        scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path)).config == scratch_core.load(GOLDEN / name).config
    )


@pytest.mark.parametrize("name", [*EVALUATED, "training"])
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


def test_running_statistics_after_training_steps_equal_the_reference():
    io = read_io(GOLDEN / "training")
    model = scratch_core.load(GOLDEN / "training")
    trainer = Trainer(model, optax.sgd(0.05), image_classification_loss)
    batches = [
        {"images": jnp.asarray(images.transpose(0, 2, 3, 1)), "labels": jnp.asarray(labels)}
        for images, labels in zip(io["pixel_values"], io["labels"])
    ]
    for step, expected in enumerate(io["losses"]):
        outcome = trainer.fit(batches, step + 1)
        assert_close(outcome.loss, expected, 1e-5, f"loss of step {step + 1}")
    ours = scratch_core.to_hf(model)
    names = [name for name in io if "running" in name]
    assert len(names) == 32
    for name in io:
        if name.startswith("after."):
            assert_close(ours[name.removeprefix("after.")], io[name], 1e-5, name)
    assert ours["resnet.embedder.embedder.normalization.num_batches_tracked"] == 5
    before = read_tensors(GOLDEN / "training")
    moved = [np.abs(io[name] - before[name.removeprefix("after.")]).max() for name in names]
    assert min(moved) > 1e-2  # large beside the tolerance of 1e-5
