"""What must hold of GPT-Neo for any weights: the contract of decoders, and its configurations."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.testing import CausalLMContract, jitted
from scratch_gptneo import GPTNeo, GPTNeoConfig

TWO_LAYERS = dataclasses.replace(GPTNeoConfig.tiny(), num_layers=2, window=8)
IDS = np.array([[5, 9, 70, 3]])


class TestGPTNeo(CausalLMContract):
    model_class = GPTNeo
    config = TWO_LAYERS
    decayed = (
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.up.kernel",
    )


def test_the_initial_loss_is_that_of_a_uniform_guess():
    model = GPTNeo(TWO_LAYERS, rngs=nnx.Rngs(0))
    total, weight = model.loss({"input_ids": np.arange(64).reshape(2, 32)})
    assert abs(total / weight - np.log(TWO_LAYERS.vocab_size)) < 0.1


@pytest.mark.parametrize("kind", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_dropout_acts_only_in_training(kind):
    plain = GPTNeo(TWO_LAYERS, rngs=nnx.Rngs(0))
    model = GPTNeo(dataclasses.replace(TWO_LAYERS, **{kind: 0.5}), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(plain, nnx.Param))
    first, second = model(IDS), model(IDS)
    assert np.abs(first - second).max() > 1e-3
    model.eval()
    np.testing.assert_array_equal(model(IDS), plain(IDS))


def test_every_second_layer_caches_a_ring_of_its_window():
    model = GPTNeo(TWO_LAYERS, rngs=nnx.Rngs(0))
    cache = model.init_cache(batch_size=2, capacity=40)
    assert [(layer.is_ring, layer.capacity) for layer in cache.layers] == [(False, 40), (True, 8)]


def test_a_local_layer_attends_only_within_its_window():
    model = GPTNeo(dataclasses.replace(TWO_LAYERS, num_layers=1, attention=("local",)), rngs=nnx.Rngs(0))
    ids = np.arange(20)[None]
    changed = ids.copy()
    changed[0, 3] = 99
    moved = np.abs(np.asarray(jitted(model)(ids) - jitted(model)(changed)))[0].max(axis=-1)
    assert (moved[3:11] > 0).all()
    assert (moved[11:] == 0).all()


@pytest.mark.parametrize(
    ("groups", "pattern"),
    [
        ([[["global", "local"], 2]], ("global", "local")),
        ([[["global"], 4]], ("global",)),
        ([[["global"], 2], [["local"], 2]], ("global", "global", "local", "local")),
        ([[["local", "global", "global"], 1], [["local"], 1]], ("local", "global", "global")),
    ],
)
def test_attention_types_are_read_as_a_pattern_and_written_again(groups, pattern):
    fields = {**GPTNeoConfig.tiny().to_hf(), "attention_types": groups, "attention_layers": None}
    config = GPTNeoConfig.from_hf(fields)
    assert config.attention == pattern
    assert GPTNeoConfig.from_hf(config.to_hf()) == config
    assert config.to_hf()["attention_layers"] == [kind for kinds, times in groups for kind in kinds * times]


def test_a_text_longer_than_the_table_of_positions_is_an_error():
    model = GPTNeo(dataclasses.replace(TWO_LAYERS, max_positions=3), rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match="a text of 4 tokens needs 4 positions, the model has 3"):
        model(IDS)
    assert np.isfinite(model(IDS, np.array([[0, 1, 1, 1]]))).all()  # padding takes no position


def test_an_untied_head_is_saved(tmp_path):
    model = GPTNeo(dataclasses.replace(TWO_LAYERS, tie_embeddings=False), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(GPTNeo.from_pretrained(tmp_path)(IDS), model(IDS))


def test_absent_token_ids_are_the_references_defaults_and_null_is_none():
    fields = GPTNeoConfig.neo_125m().to_hf()
    absent = {name: value for name, value in fields.items() if not name.endswith("token_id")}
    assert GPTNeoConfig.from_hf(absent).eos_token_id == GPTNeoConfig.from_hf(absent).bos_token_id == 50_256
    assert GPTNeoConfig.from_hf({**fields, "eos_token_id": None, "bos_token_id": None}).eos_token_id is None
    assert GPTNeoConfig.from_hf({**fields, "eos_token_id": [1, 2]}).to_hf()["eos_token_id"] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must divide d_model=128"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"hidden_size": None}, "no field 'hidden_size'"),
        ({"attention_types": [[["global", "local"], 1]]}, "gives 2 layers, num_layers=4"),
        ({"attention_types": [[["global", "local"], 10**9]]}, "gives more layers than num_layers=4"),
        ({"attention_types": [["global", 4]]}, "must be a list of \\[kinds, repeats\\]"),
        ({"attention_types": [[["global", "sparse"], 2]]}, "has 'sparse'"),
        ({"attention_layers": ["global"] * 4}, "attention_layers=.*'global', 'global'.* must give the same layers"),
        ({"is_causal": False}, "is_causal=False"),
        ({"window_size": 0}, "window=0 must be greater than 0"),
        ({"resid_dropout": 1.0}, "residual_dropout=1.0 must be at least 0 and less than 1"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        GPTNeoConfig.from_hf({**GPTNeoConfig.tiny().to_hf(), **change})
