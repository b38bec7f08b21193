"""What must hold of Template whatever its weights: causality, caching, padding, training, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.losses import causal_lm_loss
from scratch_core.testing import (
    check_causal,
    check_decoding,
    check_meshes,
    check_two_traces,
    overfit_one_batch,
    random_batch,
)
from scratch_template import SPEC, Template, TemplateConfig


@pytest.fixture(scope="module")
def model():
    return Template(TemplateConfig.tiny(), rngs=nnx.Rngs(0))


def test_logits_have_the_shape_of_the_tokens(model):
    logits = model(jnp.ones((2, 7), jnp.int32))
    assert (logits.shape, logits.dtype) == ((2, 7, 264), jnp.float32)


def test_no_token_reads_a_later_one(model):
    check_causal(model)


def test_cached_chunked_and_padded_decoding_equal_the_full_pass(model):
    check_decoding(model)


def test_generation_compiles_twice(model):
    check_two_traces(model)


def test_overfits_one_batch():
    model = Template(TemplateConfig.tiny(), rngs=nnx.Rngs(0))
    overfit_one_batch(model, *random_batch(SPEC, model.config))


def test_gradients_are_finite_with_padding(model):
    batch = {"input_ids": jnp.ones((2, 6), jnp.int32), "attention_mask": jnp.array([[1] * 6, [0] * 6])}
    gradients = nnx.jit(nnx.grad(lambda model: causal_lm_loss(model, batch)[0]))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_meshes_give_the_losses_of_one_device():
    check_meshes("template")


def test_saved_and_loaded_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = Template.from_pretrained(tmp_path / "saved")
    ids = np.ones((1, 4), np.int32)
    np.testing.assert_array_equal(loaded(ids), model(ids))


@pytest.mark.parametrize("preset", SPEC.presets)
def test_config_survives_a_round_trip(preset):
    config = SPEC.config(preset)
    assert TemplateConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "2 \\* num_heads=6 must divide d_model=64"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        TemplateConfig.from_hf({**TemplateConfig.tiny().to_hf(), **change})
