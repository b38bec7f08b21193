"""Properties of Template that hold whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from flax import nnx
from scratch_core.losses import causal_lm_loss
from scratch_template import Template, TemplateConfig


forward = nnx.jit(lambda model, *inputs: model(*inputs))
decode = nnx.jit(lambda model, *inputs: model.decode(*inputs))


@pytest.fixture(scope="module")
def model() -> Template:
    model = Template(TemplateConfig.tiny(), rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.fixture(scope="module")
def input_ids() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (2, 9), 0, 256)


def test_logits(model, input_ids):
    logits = forward(model, input_ids)
    assert logits.shape == (2, 9, model.config.vocab_size)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()


def test_a_token_changes_nothing_before_it(model, input_ids):
    before, after = forward(model, input_ids), forward(model, input_ids.at[:, 5].add(1))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=-1).all()


def test_padding_changes_nothing(model, input_ids):
    padded = jnp.pad(input_ids, ((0, 0), (3, 0)))
    mask = (jnp.arange(12) >= 3).astype(jnp.int32) * jnp.ones((2, 1), jnp.int32)
    np.testing.assert_allclose(forward(model, padded, mask)[:, 3:], forward(model, input_ids), atol=1e-5)


def test_cached_is_uncached(model, input_ids):
    cache = model.init_cache(2, 16)
    first, cache = decode(model, input_ids[:, :6], cache)
    second, cache = decode(model, input_ids[:, 6:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), forward(model, input_ids), atol=1e-5)


def test_gradients_are_finite_and_reach_every_parameter(model, input_ids):
    gradients = nnx.jit(nnx.grad(lambda m: causal_lm_loss(m, {"input_ids": input_ids})[0]))(model)
    for path, gradient in nnx.to_flat_state(gradients):
        values = np.asarray(gradient[...])
        assert np.isfinite(values).all(), path
        assert (values != 0).any(), path


def test_saved_and_loaded_is_the_same(model, input_ids, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = Template.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(forward(model, input_ids), forward(loaded, input_ids))
    assert loaded.config == model.config


@pytest.mark.parametrize("wrong", [{"num_heads": 3}, {"d_ff": 0}])
def test_sizes_that_cannot_be_built_are_refused(wrong):
    fields = {"vocab_size": 264, "d_model": 64, "num_layers": 2, "num_heads": 4, "d_ff": 192}
    with pytest.raises(scratch_core.ConfigError, match=next(iter(wrong))):
        TemplateConfig(**{**fields, **wrong})
