"""Golden checkpoints of transformers' Bert classes, through the key table and back."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from scratch_bert import SentenceEncoder
from scratch_bert.sentences import cosine_similarity
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_gradients,
    check_round_trip,
    jitted,
    read_io,
    read_tensors,
    with_legacy_config,
)

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TARGETS = ("labels", "next_sentence_label", "start_positions", "end_positions")
OUTPUTS = {
    "bert-pretraining": ("logits", "seq_relationship_logits"),
    "bert-question-answering": ("start_logits", "end_logits"),
    "bert-sentence-embedding": ("last_hidden_state", "pooler_output"),
}


def outputs(model, io):
    found = jitted(model)(*(io.get(name) for name in INPUTS))
    return found if isinstance(found, tuple) else (found,)


def check_outputs(model, io, name):
    """Compare what the call returns; outputs per token only at real tokens."""
    for key, found in zip(OUTPUTS.get(name, ("logits",)), outputs(model, io), strict=True):
        if key not in io:
            continue
        real = io["attention_mask"] == 1 if found.shape[:2] == io["input_ids"].shape else ...
        assert_close(np.asarray(found)[real], io[key][real], LOGITS, key)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    model, io = scratch_core.load(GOLDEN / name), read_io(GOLDEN / name)
    check_outputs(model, io, name)
    real = io["attention_mask"] == 1
    hidden = jitted(model, "hidden")(*(io.get(key) for key in INPUTS))
    assert_close(np.asarray(hidden)[real], io["last_hidden_state"][real], LOGITS, "last hidden state")
    if "loss" in io:
        batch = {key: jnp.asarray(io[key]) for key in (*INPUTS, *TARGETS) if key in io}
        check_gradients(model, lambda model: jnp.divide(*model.loss(batch)), io)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_under_the_legacy_config(name, tmp_path):
    model = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path / name))
    assert model.config == scratch_core.load(GOLDEN / name).config
    check_outputs(model, read_io(GOLDEN / name), name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bert-mlm-legacy-names"])
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


def test_old_names_are_written_as_new_ones(tmp_path):
    scratch_core.save(scratch_core.load(GOLDEN / "bert-mlm-legacy-names"), tmp_path)
    written, new = read_tensors(tmp_path), read_tensors(GOLDEN / "bert-mlm")
    assert written.keys() == new.keys()
    for key, tensor in new.items():
        assert written[key].tobytes() == tensor.tobytes(), key


def test_sentence_embeddings_equal_the_reference(tmp_path):
    io = read_io(GOLDEN / "bert-sentence-embedding")
    model = SentenceEncoder.from_pretrained(GOLDEN / "bert-sentence-embedding")
    found = jitted(model)(io["input_ids"], io["attention_mask"])
    assert_close(found, io["embeddings"], LOGITS, "embeddings")
    assert_close(cosine_similarity(found, found), io["cosine"], LOGITS, "cosines")
    check_round_trip(GOLDEN / "bert-sentence-embedding", tmp_path)
