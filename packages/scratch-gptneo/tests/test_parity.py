"""Comparison with golden checkpoints of transformers' GPTNeoForCausalLM, loaded and saved through the key table."""

import json
from pathlib import Path

import numpy as np
import pytest
import scratch_core
from safetensors.numpy import save_file
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_causal_lm,
    check_round_trip,
    jitted,
    read_io,
    read_tensors,
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


def test_round_trip_keeps_every_byte(tmp_path):
    check_round_trip(GOLDEN / "gpt-neo", tmp_path)


def test_a_checkpoint_without_a_head_loads_whole(tmp_path):
    """GPTNeoModel saves no head and no "transformer."; older files hold the masks and a copy of the head."""
    fields = json.loads((GOLDEN / "gpt-neo" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": ["GPTNeoModel"]}))
    tensors = {key.removeprefix("transformer."): value for key, value in read_tensors(GOLDEN / "gpt-neo").items()}
    tensors |= {"h.1.attn.attention.bias": np.ones((1, 1, 64, 64), bool), "lm_head.weight": tensors["wte.weight"]}
    tensors |= {"h.1.attn.attention.masked_bias": np.array(-1e9, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    io = read_io(GOLDEN / "gpt-neo")
    real = io["attention_mask"] == 1
    logits = jitted(scratch_core.load(tmp_path))(io["input_ids"], io["attention_mask"])
    assert_close(np.asarray(logits)[real], io["logits"][real], LOGITS, "logits of a trunk")


def test_beams_equal_the_references():
    golden = json.loads((GOLDEN / "gpt-neo" / "beams.json").read_text())
    model, cases = scratch_core.load(GOLDEN / "gpt-neo"), golden.pop("cases")
    assert len(cases) == 6
    for case in cases:
        ids, scores = scratch_core.beam_search(model, **golden, **case["settings"])
        what = str(case["settings"])
        np.testing.assert_array_equal(ids[..., len(golden["input_ids"][0]) :], case["new_ids"], what)
        assert_close(scores, np.array(case["scores"]), 1e-4, what)
