"""What must hold of Gemma and Gemma 2 for any weights: the contract of decoders, and their configurations."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.testing import CausalLMContract, jitted
from scratch_gemma import Gemma, Gemma2, Gemma2Config, GemmaConfig

DECAYED = (
    "layers.*.attention.key.kernel",
    "layers.*.attention.out.kernel",
    "layers.*.attention.query.kernel",
    "layers.*.attention.value.kernel",
    "layers.*.feed_forward.down.kernel",
    "layers.*.feed_forward.gate.kernel",
    "layers.*.feed_forward.up.kernel",
)
SMALL = {"d_model": 64, "d_ff": 96, "head_dim": 24}


class TestGemma(CausalLMContract):
    model_class = Gemma
    config = dataclasses.replace(GemmaConfig.tiny(), **SMALL, num_layers=1)
    decayed = DECAYED
    overfit_rate = 1e-2


class TestGemma2(CausalLMContract):
    model_class = Gemma2
    config = dataclasses.replace(Gemma2Config.tiny(), **SMALL, num_layers=2, window=6)
    decayed = DECAYED
    overfit_rate = 1e-2


def test_gemma2_attends_to_a_window_in_layers_0_2_and_to_everything_in_the_others():
    """In a single layer, the logits at position 9 depend on token 4 (5 positions back) and not on token 3 (6 back)."""
    config = dataclasses.replace(TestGemma2.config, num_layers=1)
    forward = jitted(Gemma2(config, rngs=nnx.Rngs(0)))
    ids = np.arange(10, dtype=np.int32)[None]
    moved = {}
    for position in (3, 4):
        changed = ids.copy()
        changed[0, position] = 77
        moved[position] = np.abs(np.asarray(forward(changed) - forward(ids)))[0, 9].max()
    assert moved[3] == 0
    assert moved[4] > 1e-6
    windows = [layer.attention.window for layer in Gemma2(TestGemma2.config, rngs=nnx.Rngs(0)).layers]
    assert windows == [6, None]


def test_gemma2_caches_only_the_window_in_its_sliding_layers():
    cache = TestGemma2.model_class(TestGemma2.config, rngs=nnx.Rngs(0)).init_cache(1, 500)
    assert [layer.capacity for layer in cache.layers] == [6, 500]
    assert cache.capacity == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"is_causal": False}, "is_causal=False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        GemmaConfig.from_hf({**GemmaConfig.tiny().to_hf(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*implemented: .'sliding_attention'"),
        ({"sliding_window": None}, "no field 'sliding_window'"),
        ({"attn_logit_softcapping": 0.0}, "attention_cap=0.0 must be greater than 0"),
        ({"query_pre_attn_scalar": "d"}, "query_pre_attn_scalar='d' must be int"),
    ],
)
def test_a_gemma2_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        Gemma2Config.from_hf({**Gemma2Config.tiny().to_hf(), **change})


@pytest.mark.parametrize("config_class", [GemmaConfig, Gemma2Config])
def test_absent_fields_are_the_references_defaults_and_null_is_none(config_class):
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields = {name: value for name, value in config_class.tiny().to_hf().items() if name in sizes}
    read = config_class.from_hf({**fields, "num_attention_heads": 16})
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (2, 1, 0)
    assert (read.head_dim, read.num_kv_heads) == (256, {GemmaConfig: 16, Gemma2Config: 4}[config_class])
    null = config_class.from_hf({**fields, "num_key_value_heads": 1, "eos_token_id": None, "bos_token_id": None})
    assert (null.bos_token_id, null.eos_token_id, null.pad_token_id) == (None, None, 0)


def test_a_cap_of_gemma2_is_off_if_config_json_has_null():
    fields = {**Gemma2Config.tiny().to_hf(), "attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = Gemma2Config.from_hf(fields)
    assert (config.attention_cap, config.logit_cap) == (None, None)
    del fields["attn_logit_softcapping"], fields["final_logit_softcapping"]
    config = Gemma2Config.from_hf(fields)
    assert (config.attention_cap, config.logit_cap) == (50.0, 30.0)


def test_googles_first_files_say_gelu_and_mean_its_tanh_form():
    fields = GemmaConfig.tiny().to_hf()
    assert GemmaConfig.from_hf({**fields, "hidden_act": "gelu", "hidden_activation": None}) == GemmaConfig.tiny()
