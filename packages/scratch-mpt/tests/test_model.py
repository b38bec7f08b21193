"""What must hold of MPT for any weights: the contract of decoders, and its configurations."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.testing import CausalLMContract
from scratch_mpt import MPT, MPTConfig
from scratch_mpt.model import alibi_slopes

TWO_LAYERS = dataclasses.replace(MPTConfig.tiny(), num_layers=2)
IDS = np.array([[5, 9, 70, 3]])


class TestMPT(CausalLMContract):
    model_class = MPT
    config = TWO_LAYERS
    decayed = (
        "layers.*.attention.out.kernel",
        "layers.*.attention.qkv.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.up.kernel",
    )


def test_the_initial_loss_is_that_of_a_uniform_guess():
    model = MPT(TWO_LAYERS, rngs=nnx.Rngs(0))
    total, weight = model.loss({"input_ids": np.arange(64).reshape(2, 32)})
    assert abs(total / weight - np.log(TWO_LAYERS.vocab_size)) < 0.1


@pytest.mark.parametrize("kind", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_dropout_acts_only_in_training(kind):
    plain = MPT(TWO_LAYERS, rngs=nnx.Rngs(0))
    model = MPT(dataclasses.replace(TWO_LAYERS, **{kind: 0.5}), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(plain, nnx.Param))
    first, second = model(IDS), model(IDS)
    assert np.abs(first - second).max() > 1e-3
    model.eval()
    np.testing.assert_array_equal(model(IDS), plain(IDS))


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (8, [2**-n for n in range(1, 9)]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_slopes_are_the_papers(heads, expected):
    assert alibi_slopes(heads) == tuple(expected)
    assert alibi_slopes(heads, 16) == tuple(slope**2 for slope in expected)


def test_scores_fall_with_the_distance_by_the_slope():
    """With queries of zero, the scores are only the slopes times the distances."""
    attention = MPT(dataclasses.replace(TWO_LAYERS, num_heads=1), rngs=nnx.Rngs(0)).layers[0].attention
    D, T = TWO_LAYERS.d_model, 5
    kernel = jnp.zeros((D, 1, 3, D)).at[:, :, 2].set(jnp.eye(D)[:, None])
    attention.qkv.kernel[...], attention.out.kernel[...] = kernel, jnp.eye(D)[None]
    weights, _ = attention(jnp.eye(T, D)[None], jnp.arange(T)[None])
    expected = np.exp(-attention.slopes[0] * np.arange(T - 1, -1, -1))
    np.testing.assert_allclose(weights[0, -1, :T], expected / expected.sum(), rtol=1e-5)


def test_queries_keys_and_values_are_clipped():
    plain, clipped = (
        MPT(dataclasses.replace(TWO_LAYERS, clip_qkv=clip), rngs=nnx.Rngs(0)).layers[0].attention
        for clip in (None, 0.25)
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, TWO_LAYERS.d_model)), jnp.float32)
    positions = jnp.arange(6)[None]
    assert np.abs(plain(x, positions)[0] - clipped(x, positions)[0]).max() > 1e-2
    _, cache = clipped(x, positions, clipped.empty_cache(1, 6))
    assert np.abs(cache.key_BSKH).max() == np.abs(cache.value_BSKH).max() == 0.25


def test_the_softmax_scale_is_read():
    fields = MPTConfig.tiny().to_hf()
    config = MPTConfig.from_hf({**fields, "attn_config": {"softmax_scale": 0.5, "clip_qkv": 0}})
    assert (config.softmax_scale, config.clip_qkv) == (0.5, None)
    assert MPT(config, rngs=nnx.Rngs(0)).layers[0].attention.scale == 0.5


def test_fields_that_only_mosaicmls_code_reads_are_saved_under_its_name(tmp_path):
    """As in MPT-7B-StoryWriter, whose alibi_bias_max is 16."""
    model = MPT(dataclasses.replace(TWO_LAYERS, expansion_ratio=2, alibi_bias_max=16), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    again = MPT.from_pretrained(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS), model(IDS))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MPTForCausalLM"]


@pytest.mark.parametrize("change", [{"expansion_ratio": 2}, {"attn_config": {"alibi_bias_max": 16}}])
def test_fields_that_transformers_ignores_are_refused_in_a_model_of_transformers(change):
    fields = {"architectures": ["MptForCausalLM"], **MPTConfig.tiny().to_hf(), **change}
    with pytest.raises(ConfigError, match=r"(expansion_ratio=2|alibi_bias_max=16) in a model of transformers"):
        MPTConfig.from_hf(fields)
    config = MPTConfig.from_hf({**fields, "architectures": ["MPTForCausalLM"]})
    assert (config.expansion_ratio, config.alibi_bias_max) != (4, 8)


def test_an_untied_head_is_saved(tmp_path):
    model = MPT(dataclasses.replace(TWO_LAYERS, tie_embeddings=False), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(MPT.from_pretrained(tmp_path)(IDS), model(IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "num_heads=3 must divide d_model=128"),
        ({"d_model": None}, "no field 'd_model'"),
        ({"no_bias": False}, "no_bias=False"),
        ({"norm_type": "rmsnorm"}, "norm_type='rmsnorm'"),
        ({"logit_scale": 0.5}, "logit_scale=0.5"),
        ({"is_causal": False}, "is_causal=False"),
        ({"block_overrides": {"order": []}}, "block_overrides="),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, "ffn_type='mptglu'"),
        ({"ffn_config": {"ffn_act_fn": {"name": "relu"}}}, "ffn_act_fn={'name': 'relu'}"),
        ({"attn_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping=50.0"),
        ({"attn_config": {"alibi": False}}, "alibi=False"),
        ({"attn_config": {"qk_ln": True}}, "qk_ln=True"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type='multiquery_attention'"),
        ({"attn_config": {"clip_qkv": -1.0}}, "clip_qkv=-1.0 must be greater than 0"),
        ({"attn_config": "alibi"}, "attn_config='alibi' must be dict"),
        ({"emb_pdrop": 1.0}, "embedding_dropout=1.0 must be at least 0 and less than 1"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        MPTConfig.from_hf({**MPTConfig.tiny().to_hf(), **change})
