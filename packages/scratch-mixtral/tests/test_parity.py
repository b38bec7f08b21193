"""Comparison with a golden checkpoint of transformers' MixtralForCausalLM, loaded and saved through the key table."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scratch_core
from scratch_core.testing import (
    LOGITS,
    LOSS,
    assert_close,
    check_causal_lm,
    check_round_trip,
    jitted,
    read_io,
    with_legacy_config,
)
from scratch_mixtral.model import balance_loss_hf

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
def test_routers_and_their_loss_equal_the_references(name):
    io = read_io(GOLDEN / name)
    ids, mask, real = io["input_ids"], io["attention_mask"], io["attention_mask"] == 1
    config = scratch_core.load(GOLDEN / name).config
    model = scratch_core.load(GOLDEN / name, config=dataclasses.replace(config, output_router_logits=True))
    _, routers = jitted(model, "hidden_and_router_logits")(ids, mask)
    for layer, logits_BTE in enumerate(routers):
        assert_close(np.asarray(logits_BTE)[real], io[f"router_logits.{layer}"][real], LOGITS, f"router {layer}")
    assert_close(balance_loss_hf(routers, config.experts_per_token, mask), io["aux_loss"], LOSS, "balancing loss")
    total, weight = jitted(model, "loss")({key: io[key] for key in ("input_ids", "attention_mask", "labels")})
    assert_close(total / weight, io["loss_with_aux"], LOSS, "loss with the balancing loss")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


def test_beams_equal_the_references():
    golden = json.loads((GOLDEN / "mixtral" / "beams.json").read_text())
    model, cases = scratch_core.load(GOLDEN / "mixtral"), golden.pop("cases")
    assert len(cases) == 6
    for case in cases:
        ids, scores = scratch_core.beam_search(model, **golden, **case["settings"])
        what = str(case["settings"])
        np.testing.assert_array_equal(ids[..., len(golden["input_ids"][0]) :], case["new_ids"], what)
        assert_close(scores, np.array(case["scores"]), 1e-4, what)
