"""What must hold of GPT-2 for any weights: the contract of decoders, and its configurations."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.testing import CausalLMContract
from scratch_gpt2 import GPT2, GPT2Config

TWO_LAYERS = dataclasses.replace(GPT2Config.tiny(), num_layers=2)
IDS = np.array([[5, 9, 70, 3]])


class TestGPT2(CausalLMContract):
    model_class = GPT2
    config = TWO_LAYERS
    decayed = (
        "layers.*.attention.out.kernel",
        "layers.*.attention.qkv.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.up.kernel",
    )


def test_the_initial_loss_is_that_of_a_uniform_guess():
    model = GPT2(TWO_LAYERS, rngs=nnx.Rngs(0))
    total, weight = model.loss({"input_ids": np.arange(64).reshape(2, 32)})
    assert abs(total / weight - np.log(TWO_LAYERS.vocab_size)) < 0.1


@pytest.mark.parametrize("kind", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_dropout_acts_only_in_training(kind):
    plain = GPT2(TWO_LAYERS, rngs=nnx.Rngs(0))
    model = GPT2(dataclasses.replace(TWO_LAYERS, **{kind: 0.5}), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(plain, nnx.Param))
    first, second = model(IDS), model(IDS)
    assert np.abs(first - second).max() > 1e-3
    model.eval()
    np.testing.assert_array_equal(model(IDS), plain(IDS))


def test_scale_by_layer_divides_scores_by_the_layers_number():
    plain, scaled = (
        GPT2(dataclasses.replace(TWO_LAYERS, scale_by_layer=on), rngs=nnx.Rngs(0)).layers for on in (False, True)
    )
    assert [layer.attention.scale for layer in plain] == [32**-0.5, 32**-0.5]
    assert [layer.attention.scale for layer in scaled] == [32**-0.5, 32**-0.5 / 2]


def test_a_text_longer_than_the_table_of_positions_is_an_error():
    model = GPT2(dataclasses.replace(TWO_LAYERS, max_positions=3), rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match="a text of 4 tokens needs 4 positions, the model has 3"):
        model(IDS)
    assert np.isfinite(model(IDS, np.array([[0, 1, 1, 1]]))).all()  # padding takes no position


def test_an_untied_head_is_saved(tmp_path):
    model = GPT2(dataclasses.replace(TWO_LAYERS, tie_embeddings=False), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(GPT2.from_pretrained(tmp_path)(IDS), model(IDS))


def test_absent_token_ids_are_the_references_defaults_and_null_is_none():
    fields = GPT2Config.small().to_hf()
    absent = {name: value for name, value in fields.items() if not name.endswith("token_id")}
    assert GPT2Config.from_hf(absent).eos_token_id == GPT2Config.from_hf(absent).bos_token_id == 50_256
    assert GPT2Config.from_hf({**fields, "eos_token_id": None, "bos_token_id": None}).eos_token_id is None
    assert GPT2Config.from_hf({**fields, "eos_token_id": [1, 2]}).to_hf()["eos_token_id"] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "num_heads=3 must divide d_model=128"),
        ({"activation_function": "swish"}, "activation_function='swish'"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"is_causal": False}, "is_causal=False"),
        ({"n_embd": None}, "no field 'n_embd'"),
        ({"n_layer": "four"}, "n_layer='four' must be int"),
        ({"attn_pdrop": 1.5}, "attention_dropout=1.5 must be at least 0 and less than 1"),
        ({"n_positions": 0}, "max_positions=0 must be greater than 0"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        GPT2Config.from_hf({**GPT2Config.tiny().to_hf(), **change})
