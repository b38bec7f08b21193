"""At capacity 1.0, Mixture-of-Depths equals golden checkpoints of transformers' LlamaForCausalLM."""

from pathlib import Path

import numpy as np
import pytest
import scratch_core
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_causal_lm,
    check_round_trip,
    jitted,
    read_io,
    with_legacy_config,
)

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_plain_transformer(name):
    check_causal_lm(GOLDEN / name, read_io(GOLDEN / name))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_plain_transformer_under_the_legacy_config(name, tmp_path):
    io = read_io(GOLDEN / name)
    model = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path / name))
    assert model.config == scratch_core.load(GOLDEN / name).config
    real = io["attention_mask"] == 1
    logits = np.asarray(jitted(model)(io["input_ids"], io["attention_mask"]))
    assert_close(logits[real], io["logits"][real], LOGITS, name)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)
