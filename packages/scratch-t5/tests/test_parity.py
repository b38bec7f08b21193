"""Golden checkpoints of transformers' T5ForConditionalGeneration, through the key table and back."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_gradients,
    check_round_trip,
    jitted,
    read_io,
    with_legacy_config,
)

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    model, io = scratch_core.load(GOLDEN / name), read_io(GOLDEN / name)
    ids, mask, inputs = io["input_ids"], io["attention_mask"], io["decoder_input_ids"]
    encoded = jitted(model, "encode")(ids, mask)
    assert_close(np.asarray(encoded)[mask == 1], io["encoder_last_hidden_state"][mask == 1], LOGITS, "encoder's output")
    assert_close(jitted(model, "hidden")(ids, inputs, mask), io["last_hidden_state"], LOGITS, "decoder's output")
    assert_close(jitted(model)(ids, inputs, mask), io["logits"], LOGITS, "logits")
    np.testing.assert_array_equal(model.decoder_inputs(jnp.asarray(io["labels"])), inputs)
    batch = {key: jnp.asarray(io[key]) for key in ("input_ids", "attention_mask", "labels")}
    check_gradients(model, lambda model: jnp.divide(*model.loss(batch)), io)

    new = io["generated_ids"].shape[1] - 1
    written = scratch_core.generate(
        model, io["gen.input_ids"], io["gen.attention_mask"], max_new_tokens=new, eos_token_id=model.config.eos_token_id
    )
    np.testing.assert_array_equal(written, io["generated_ids"][:, : written.shape[1]])


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_under_the_legacy_config(name, tmp_path):
    io = read_io(GOLDEN / name)
    model = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path / name))
    assert model.config == scratch_core.load(GOLDEN / name).config
    assert_close(
        jitted(model)(io["input_ids"], io["decoder_input_ids"], io["attention_mask"]), io["logits"], LOGITS, name
    )


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_beams_equal_the_references(name):
    golden = json.loads((GOLDEN / name / "beams.json").read_text())
    model, cases = scratch_core.load(GOLDEN / name), golden.pop("cases")
    assert len(cases) == 8
    for case in cases:
        ids, scores = scratch_core.beam_search(model, **golden, **case["settings"])
        np.testing.assert_array_equal(ids[..., 1:], case["new_ids"], str(case["settings"]))
        assert_close(scores, np.array(case["scores"]), 1e-4, str(case["settings"]))
