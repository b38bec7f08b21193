"""Comparison with golden checkpoints of transformers' LlamaForCausalLM, loaded and saved through the key table."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from flax import nnx
from safetensors.numpy import load_file
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_causal_lm,
    check_round_trip,
    jitted,
    read_io,
    with_legacy_config,
)
from scratch_core.train import add_lora, load_lora, merge_lora, save_lora
from scratch_llama import Llama, LlamaConfig

GOLDEN, ADAPTER = Path(__file__).parent / "golden", Path(__file__).parent / "adapter"
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


def test_computing_in_bfloat16_is_as_close_as_the_reference_in_bfloat16():
    io = read_io(GOLDEN / "llama2-bf16")
    real = io["attention_mask"] == 1
    model = scratch_core.load(GOLDEN / "llama2-bf16", dtype=jnp.bfloat16)
    assert model.embedding.embedding.dtype == jnp.bfloat16
    ours = np.asarray(jitted(model)(io["input_ids"], io["attention_mask"]))[real]
    noise = np.abs(io["logits_bf16"] - io["logits"])[real].max()
    assert np.abs(ours - io["logits"][real]).max() < 1.5 * noise


def test_an_adapter_of_peft_gives_its_logits_and_is_written_back(tmp_path):
    model, io = scratch_core.load(GOLDEN / "llama3"), read_io(ADAPTER)
    assert len(load_lora(model, ADAPTER)) == 4 * 2 + 1
    assert_close(jitted(model)(io["input_ids"]), io["logits"], LOGITS, "adapted logits")
    merged = merge_lora(model)
    assert_close(jitted(merged)(io["input_ids"]), io["logits"], LOGITS, "merged logits")
    merged.save_pretrained(tmp_path / "merged")
    again = scratch_core.load(tmp_path / "merged")
    np.testing.assert_array_equal(again.head.kernel, merged.head.kernel)
    save_lora(model, tmp_path)
    theirs, ours = (load_file(folder / "adapter_model.safetensors") for folder in (ADAPTER, tmp_path))
    assert {key for key in theirs if ".lora_" in key} == ours.keys()  # PEFT also stores the adapted head
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], key)
    with pytest.raises(CheckpointError, match=r"lm_head.base_layer.weight, which is not the base's"):
        load_lora(scratch_core.load(GOLDEN / "llama3-plain"), ADAPTER)


def test_an_adapter_on_a_tied_head_is_refused():
    model = Llama(dataclasses.replace(LlamaConfig.tiny(), tie_embeddings=True, num_layers=1), rngs=nnx.Rngs(0))
    for pattern in ("head", "embedding", "*embedding*"):
        with pytest.raises(ConfigError, match=r"its embedding \(tie_embeddings=True\), one array with two uses"):
            add_lora(model, "*.query", pattern, rngs=nnx.Rngs(0))


def test_beams_equal_the_references():
    golden = json.loads((GOLDEN / "llama2" / "beams.json").read_text())
    model, cases = scratch_core.load(GOLDEN / "llama2"), golden.pop("cases")
    assert len(cases) == 27
    for case in cases:
        ids, scores = scratch_core.beam_search(model, **golden, **case["settings"])
        what = str(case["settings"])
        np.testing.assert_array_equal(ids[..., len(golden["input_ids"][0]) :], case["new_ids"], what)
        assert_close(scores, np.array(case["scores"]), 1e-4, what)
