"""Comparison with golden checkpoints of transformers' OlmoForCausalLM and Olmo2ForCausalLM, loaded and saved."""

import json
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
def test_equals_the_reference(name):
    check_causal_lm(GOLDEN / name, read_io(GOLDEN / name))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_under_the_legacy_config(name, tmp_path):
    io = read_io(GOLDEN / name)
    model = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path / name))
    assert model.config == scratch_core.load(GOLDEN / name).config
    real = io["attention_mask"] == 1
    assert_close(
        np.asarray(jitted(model)(io["input_ids"], io["attention_mask"]))[real], io["logits"][real], LOGITS, name
    )


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


@pytest.mark.parametrize("name", ["olmo-clip", "olmo2"])
def test_beams_equal_the_references(name):
    golden = json.loads((GOLDEN / name / "beams.json").read_text())
    model, cases = scratch_core.load(GOLDEN / name), golden.pop("cases")
    assert len(cases) == 6
    for case in cases:
        ids, scores = scratch_core.beam_search(model, **golden, **case["settings"])
        what = str(case["settings"])
        np.testing.assert_array_equal(ids[..., len(golden["input_ids"][0]) :], case["new_ids"], what)
        assert_close(scores, np.array(case["scores"]), 1e-4, what)
