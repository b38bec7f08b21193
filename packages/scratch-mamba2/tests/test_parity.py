"""Comparison with golden checkpoints of transformers' Mamba2ForCausalLM, loaded and saved through the key table."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scratch_core
from flax import nnx
from scratch_core.testing import (
    assert_close,
    check_causal_lm,
    check_round_trip,
    jitted,
    read_io,
    with_legacy_config,
)
from scratch_mamba2 import Mamba2

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    check_causal_lm(GOLDEN / name, read_io(GOLDEN / name))


@pytest.mark.parametrize("name", NAMES)
def test_the_legacy_config_gives_the_same_configuration(name, tmp_path):
    model = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path / name))
    assert model.config == scratch_core.load(GOLDEN / name).config


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


@pytest.mark.parametrize("chunk_size", [4, 5])
def test_chunk_size_does_not_change_the_logits(chunk_size):
    """The reference's own logits differ by 2e-6 between chunk sizes."""
    io, model = read_io(GOLDEN / "mamba2-groups"), scratch_core.load(GOLDEN / "mamba2-groups")
    expected = np.asarray(jitted(model)(io["input_ids"]))
    other = Mamba2(dataclasses.replace(model.config, chunk_size=chunk_size), rngs=nnx.Rngs(1))
    nnx.update(other, nnx.state(model))
    assert_close(np.asarray(jitted(other)(io["input_ids"])), expected, 5e-6, f"chunk_size={chunk_size}")
