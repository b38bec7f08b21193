"""What must hold of Llama whatever its weights: causality, caching, padding, training, sharding."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.config import read_rope
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.losses import causal_lm_loss
from scratch_core.models import count_parameters
from scratch_core.testing import (
    check_causal,
    check_decoding,
    check_meshes,
    check_two_traces,
    jitted,
    overfit_one_batch,
    random_batch,
)
from scratch_llama import SPEC, Llama, LlamaConfig


@pytest.fixture(scope="module")
def model():
    return Llama(LlamaConfig.tiny(), rngs=nnx.Rngs(0))


def test_logits_have_the_shape_of_the_tokens(model):
    logits = model(jnp.ones((2, 7), jnp.int32))
    assert (logits.shape, logits.dtype) == ((2, 7, 264), jnp.float32)


def test_no_token_reads_a_later_one(model):
    check_causal(model)


def test_cached_chunked_and_padded_decoding_equal_the_full_pass(model):
    check_decoding(model)


def test_generation_compiles_twice(model):
    check_two_traces(model)


def test_swapping_two_earlier_tokens_changes_the_last_logits(model):
    ids = np.array([[5, 9, 70, 3]])
    swapped = ids[:, [1, 0, 2, 3]]
    assert np.abs(np.asarray(model(ids) - model(swapped)))[0, -1].max() > 1e-4


def test_a_row_of_padding_alone_stays_finite(model):
    mask = np.array([[1, 1, 1], [0, 0, 0]])
    assert np.isfinite(model(np.ones((2, 3), np.int32), mask)).all()


def test_a_full_cache_is_an_error(model):
    _, cache = model.decode(np.ones((2, 6), np.int32), model.init_cache(2, 8))
    with pytest.raises(DataError, match="room for 8 tokens: row 0 holds 6 and gets 3"):
        model.decode(np.ones((2, 3), np.int32), cache)


def test_a_cache_of_another_batch_size_is_an_error(model):
    with pytest.raises(DataError, match="input_ids has 2 rows, the cache 1"):
        jitted(model, "decode")(np.ones((2, 3), np.int32), model.init_cache(1, 8))


def test_more_layers_than_tensors_are_refused_before_they_are_built(model, tmp_path):
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match=r"asks for 1,000,000,000 layers, the weights are \d+ tensors"):
        Llama.from_pretrained(tmp_path)


def test_overfits_one_batch():
    model = Llama(LlamaConfig.tiny(), rngs=nnx.Rngs(0))
    overfit_one_batch(model, *random_batch(SPEC, model.config))


def test_gradients_are_finite_with_padding(model):
    batch = {"input_ids": jnp.ones((2, 6), jnp.int32), "attention_mask": jnp.array([[1] * 6, [0] * 6])}
    gradients = nnx.jit(nnx.grad(lambda model: causal_lm_loss(model, batch)[0]))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_meshes_give_the_losses_of_one_device():
    check_meshes("llama")


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("llama2_7b", 6_738_415_616), ("llama3_8b", 8_030_261_248), ("llama3_2_1b", 1_235_814_400)],
)
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    assert count_parameters(Llama, SPEC.config(preset)) == parameters


@pytest.mark.parametrize("preset", SPEC.presets)
def test_config_survives_a_round_trip(preset):
    config = SPEC.config(preset)
    assert LlamaConfig.from_hf(config.to_hf()) == config


def test_biases_are_trained_and_saved_like_the_rest(tmp_path):
    config = dataclasses.replace(LlamaConfig.tiny(), attention_bias=True, mlp_bias=True)
    model = Llama(config, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    ids = np.ones((1, 4), np.int32)
    np.testing.assert_array_equal(Llama.from_pretrained(tmp_path)(ids), model(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers='four' must be int"),
        ({"rms_norm_eps": float("nan")}, "norm_epsilon=nan"),
        ({"eos_token_id": ["a"]}, "eos_token_id=\\['a'\\] must be a list of integers"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps has 401 digits"),
        ({"hidden_size": 10**30}, "less than 2\\*\\*31"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_hf({**LlamaConfig.tiny().to_hf(), **change})


def test_linear_rope_scaling_is_read():
    fields = {"rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    np.testing.assert_allclose(read_rope(fields).frequencies(8) * 2, read_rope({}).frequencies(8))
