"""What must hold of Llama for any weights: the contract of decoders, and its configurations."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.layers import read_rope, scan_layers
from scratch_core.parallel import make_mesh
from scratch_core.testing import CausalLMContract, random_batch
from scratch_core.train import Trainer
from scratch_core.train.precision import compute_in
from scratch_core.weights import to_hf
from scratch_llama import Llama, LlamaConfig


class TestLlama(CausalLMContract):
    model_class = Llama
    meshes = ("8x1", "1x4", "4x2")
    config = dataclasses.replace(LlamaConfig.tiny(), num_layers=2)
    decayed = (
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.gate.kernel",
        "layers.*.feed_forward.up.kernel",
    )


def test_scanned_layers_have_the_same_files_and_train_on_a_mesh():
    plain, scanned = (Llama(TestLlama.config, rngs=nnx.Rngs(0)) for _ in range(2))
    scan_layers(scanned)
    assert scanned.layers.kinds[0].attention.query.kernel.shape[0] == len(scanned.layers) == 2
    assert scanned.init_cache(3, 8).layers[1].key_BSKH.shape == plain.init_cache(3, 8).layers[1].key_BSKH.shape
    files = to_hf(plain)
    for found in (to_hf(scanned), to_hf(scanned, nnx.state(scanned, nnx.Param))):
        assert found.keys() == files.keys()
        for key, value in found.items():
            np.testing.assert_array_equal(value, files[key], key)
    batch = random_batch("causal_lm", plain.config, 8)
    expected = nnx.jit(lambda model: jnp.divide(*model.loss(batch)))(plain)
    trainer = Trainer(scanned, optax.sgd(0.1), mesh=make_mesh(fsdp=4, tensor=2))
    assert scanned.layers.kinds[0].feed_forward.up.kernel[...].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    np.testing.assert_allclose(trainer.train_step(batch)["loss"], expected, atol=1e-5)


def test_compute_in_bfloat16_gives_the_model_that_dtype_bfloat16_gives():
    given = Llama(TestLlama.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    changed = Llama(TestLlama.config, rngs=nnx.Rngs(0))
    assert nnx.graphdef(given) != nnx.graphdef(changed)
    compute_in(changed, jnp.bfloat16)
    assert nnx.graphdef(given) == nnx.graphdef(changed)


def test_a_config_with_more_layers_than_tensors_is_refused_before_layers_are_built(tmp_path):
    model = Llama(LlamaConfig.tiny(), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match=r"asks for 1,000,000,000 layers, the weights are \d+ tensors"):
        Llama.from_pretrained(tmp_path)


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
        ({"is_causal": False}, "is_causal=False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers='four' must be int"),
        ({"rms_norm_eps": float("nan")}, "norm_epsilon=nan"),
        ({"eos_token_id": ["a"]}, "eos_token_id=\\['a'\\] must be a list of integers"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps has 1329 bits, too many for a number"),
        ({"hidden_size": 10**30}, "less than 2\\*\\*31"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_hf({**LlamaConfig.tiny().to_hf(), **change})


def test_linear_rope_scaling_is_read():
    fields = {"rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    np.testing.assert_allclose(read_rope(fields).frequencies(8) * 2, read_rope({}).frequencies(8))


def test_an_absent_token_id_is_the_references_default_and_null_is_none():
    fields = LlamaConfig.tiny().to_hf()
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    absent = LlamaConfig.from_hf({name: value for name, value in fields.items() if name not in names})
    assert (absent.bos_token_id, absent.eos_token_id, absent.pad_token_id) == (1, 2, None)
    null = LlamaConfig.from_hf({**fields, **dict.fromkeys(names)})
    assert (null.bos_token_id, null.eos_token_id, null.pad_token_id) == (None, None, None)
    assert LlamaConfig.from_hf(null.to_hf()) == null


def test_swish_is_silu():
    fields = LlamaConfig.tiny().to_hf()
    assert LlamaConfig.from_hf({**fields, "hidden_act": "swish"}) == LlamaConfig.from_hf(fields)


def test_llama3_scaling_without_an_original_length_uses_max_position_embeddings():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    fields = {**LlamaConfig.tiny().to_hf(), "rope_scaling": scaling}
    assert LlamaConfig.from_hf(fields).rope.scaling.original_length == fields["max_position_embeddings"]
