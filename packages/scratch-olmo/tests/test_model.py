"""What must hold of OLMo and OLMo 2 for any weights: the contract of decoders, their norms, the z-loss."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.testing import CausalLMContract, jitted, random_batch
from scratch_olmo import Olmo, Olmo2, Olmo2Config, OlmoConfig
from scratch_olmo.model import LayerNorm, NormedAttention

KERNELS = (
    "layers.*.attention.key.kernel",
    "layers.*.attention.out.kernel",
    "layers.*.attention.query.kernel",
    "layers.*.attention.value.kernel",
    "layers.*.feed_forward.down.kernel",
    "layers.*.feed_forward.gate.kernel",
    "layers.*.feed_forward.up.kernel",
)
SMALL = {"vocab_size": 128, "d_model": 64, "num_layers": 1, "num_heads": 4, "num_kv_heads": 4, "d_ff": 96}


class TestOlmo(CausalLMContract):
    """With a bound that clips a part of the features, and with tied embeddings, as in OLMo 1B."""

    model_class = Olmo
    config = OlmoConfig(**SMALL, tie_embeddings=True, clip_qkv=1.0)
    overfit_rate = 1e-2
    decayed = KERNELS


class TestOlmo2(CausalLMContract):
    """With its z-loss, and with fewer key/value heads than query heads, as in the 32B model."""

    model_class = Olmo2
    config = Olmo2Config(**SMALL | {"num_kv_heads": 2}, z_loss_weight=1e-5)
    overfit_rate = 1e-2
    decayed = ("head.kernel", *KERNELS)


@pytest.mark.parametrize(("model_class", "name"), [(Olmo, "tiny"), (Olmo2, "tiny")])
def test_the_initial_loss_is_that_of_a_uniform_guess(model_class, name):
    """ln V. Initial weights that give large logits would raise it."""
    config = getattr(model_class.Config, name)()
    model = model_class(config, rngs=nnx.Rngs(0))
    total, weight = jitted(model, "loss")(random_batch("causal_lm", config, 4))
    assert abs(float(total / weight) - math.log(config.vocab_size)) < 0.3


def test_every_matrix_of_olmo2_has_the_same_initial_distribution():
    """Standard deviation 0.02, truncated at three standard deviations, which lowers it by 1.3 %."""
    model = Olmo2(Olmo2Config.tiny(), rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if leaf.ndim > 1 and path[-1] != "scale":
            assert 0.018 < float(leaf[...].std()) < 0.021, path
            assert float(jnp.abs(leaf[...]).max()) <= 0.0601, path


def test_queries_of_olmo2_do_not_grow_with_the_weights():
    """QK-norm: weights a hundred times larger give the same queries and keys, normalised over all heads together."""
    config = Olmo2Config(**SMALL)
    attention = NormedAttention(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x_BTD = jax.random.normal(jax.random.key(0), (1, 3, 64))
    query, key, value = attention.project(x_BTD)
    for layer in (attention.query, attention.key, attention.value):
        layer.kernel[...] = 100 * layer.kernel[...]
    grown = attention.project(x_BTD)
    np.testing.assert_allclose(grown[0], query, atol=1e-3)
    np.testing.assert_allclose(grown[1], key, atol=1e-3)
    np.testing.assert_allclose(grown[2], 100 * value, rtol=1e-4)
    np.testing.assert_allclose(jnp.square(grown[0]).mean(axis=(2, 3)), 1.0, atol=1e-4)  # over all heads together


def test_the_norm_of_olmo_has_no_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 64)) * 7 + 3
    y = LayerNorm()(x)
    np.testing.assert_allclose([y.mean(axis=-1), y.std(axis=-1)], [[0, 0], [1, 1]], atol=1e-4)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(Olmo(OlmoConfig(**SMALL), rngs=nnx.Rngs(0))))]
    assert not [path for path in paths if "norm" in path]


def test_the_z_loss_counts_only_the_targets():
    """The loss with the z-loss minus the loss without it is the weight times the sum of log(Z)^2 over the targets."""
    batch = {
        "input_ids": jnp.array([[5, 9, 70, 3], [8, 2, 0, 0]]),
        "attention_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    plain = Olmo2(Olmo2Config(**SMALL), rngs=nnx.Rngs(0))
    config = dataclasses.replace(plain.config, z_loss_weight=0.5)
    models = (plain, Olmo2(config, rngs=nnx.Rngs(0)))
    (without, weight), (total, same) = (jitted(model, "loss")(batch) for model in models)
    log_z = jax.nn.logsumexp(jitted(plain)(batch["input_ids"], batch["attention_mask"]), axis=-1)
    expected = 0.5 * float((log_z[0, :3] ** 2).sum() + log_z[1, 0] ** 2)
    assert (float(weight), float(same)) == (4, 4)
    np.testing.assert_allclose(float(total - without), expected, rtol=1e-5)


def test_a_checkpoint_keeps_its_z_loss_weight_and_without_one_it_is_zero():
    config = Olmo2Config.tiny()
    assert Olmo2Config.from_hf(config.to_hf()).z_loss_weight == 1e-5
    fields = dataclasses.replace(config, z_loss_weight=0.0).to_hf()
    assert "z_loss_weight" not in fields
    assert Olmo2Config.from_hf(fields).z_loss_weight == 0


@pytest.mark.parametrize("config_class", [OlmoConfig, Olmo2Config])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "num_heads=3 must divide d_model=128"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"num_attention_heads": 0}, "num_heads=0 must be greater than 0"),
        ({"hidden_size": 132}, "d_model / num_heads = 33 must be even"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"is_causal": False}, "is_causal=False"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
        ({"z_loss_weight": -1.0}, "z_loss_weight=-1.0 must be in"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(config_class, change, message):
    with pytest.raises(ConfigError, match=message):
        config_class.from_hf({**config_class.tiny().to_hf(), **change})


def test_a_bound_of_zero_is_refused():
    with pytest.raises(ConfigError, match="clip_qkv=0\\.0 must be greater than 0"):
        OlmoConfig.from_hf({**OlmoConfig.tiny().to_hf(), "clip_qkv": 0})


def test_absent_token_ids_are_the_references_defaults_and_null_is_none():
    fields = OlmoConfig.tiny().to_hf()
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    null = OlmoConfig.from_hf({**fields, **dict.fromkeys(names)})
    assert (null.bos_token_id, null.eos_token_id, null.pad_token_id) == (None, None, None)
    absent = OlmoConfig.from_hf({name: value for name, value in fields.items() if name not in names})
    assert (absent.bos_token_id, absent.eos_token_id, absent.pad_token_id) == (None, 50_279, 1)


@pytest.mark.parametrize("model_class", [Olmo, Olmo2])
def test_biases_are_trained_and_saved_like_the_rest(model_class, tmp_path):
    model = model_class(model_class.Config(**SMALL, attention_bias=True), rngs=nnx.Rngs(0))
    model.layers[0].attention.query.bias[...] += 0.5
    model.save_pretrained(tmp_path)
    ids = np.ones((1, 4), np.int32)
    np.testing.assert_array_equal(model_class.from_pretrained(tmp_path)(ids), model(ids))
