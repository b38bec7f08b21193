"""What must hold of Mamba-2 for any weights: the contract of decoders, states, padding, both layouts."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from flax import nnx
from safetensors.numpy import save_file
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.testing import (
    CACHED,
    CausalLMContract,
    assert_close,
    check_round_trip,
    jitted,
    read_tensors,
)
from scratch_mamba2 import Mamba2, Mamba2Config

SMALL = dataclasses.replace(Mamba2Config.tiny(), num_layers=2, num_groups=2, chunk_size=8)


@pytest.fixture(scope="module")
def model():
    return Mamba2(SMALL, rngs=nnx.Rngs(0))


class TestMamba2(CausalLMContract):
    model_class = Mamba2
    meshes = ("8x1", "1x4", "4x2")
    config = SMALL
    decayed = (
        "layers.*.mixer.conv.kernel",
        "layers.*.mixer.in_proj.kernel",
        "layers.*.mixer.out.kernel",
    )


def test_many_documents_in_a_chunk_stay_exact():
    """Each start adds -200 to the sums of log decays, whose rounding errors would be visible without the correction."""
    model = Mamba2(dataclasses.replace(SMALL, chunk_size=256), rngs=nnx.Rngs(0))
    model.eval()
    ids = np.random.default_rng(0).integers(1, SMALL.vocab_size, (128, 2)).astype(np.int32)
    documents = np.repeat(np.arange(128, dtype=np.int32), 2)[None]
    packed = nnx.jit(lambda model, ids, documents: model(ids, None, documents))(model, ids.reshape(1, -1), documents)
    assert_close(packed.reshape(128, 2, -1), np.asarray(jitted(model)(ids)), CACHED, "logits")


def test_a_row_among_many_gives_the_logits_of_the_row_alone():
    """For 256 rows or more, XLA's CPU compiler computed wrong products with a state that it knew to be zero."""
    sizes = {"num_heads": 8, "head_dim": 16, "d_state": 32, "chunk_size": 24}
    forward = jitted(Mamba2(Mamba2Config(10, 64, 1, **sizes), rngs=nnx.Rngs(0)))
    ids_BT = np.random.default_rng(0).integers(0, 10, (512, 24)).astype(np.int32)
    few = np.concatenate([np.asarray(forward(rows)) for rows in np.split(ids_BT, 16)])
    assert_close(forward(ids_BT), few, CACHED, "512 rows at once")


def test_the_size_of_the_cache_is_constant(model):
    def bytes_held(cache):
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(cache)]

    empty = model.init_cache(2, 16)
    assert bytes_held(model.init_cache(2, 100_000)) == bytes_held(empty)
    _, after = jitted(model, "decode")(np.ones((2, 40), np.int32), empty)
    assert bytes_held(after) == bytes_held(empty)


def test_decoding_resumes_from_a_saved_state(model, tmp_path):
    ids = np.random.default_rng(0).integers(0, 264, (2, 20)).astype(np.int32)
    decode = jitted(model, "decode")
    _, cache = decode(ids[:, :13], model.init_cache(2))
    leaves, structure = jax.tree.flatten(cache)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        cache = jax.tree.unflatten(structure, [saved[name] for name in saved.files])
    logits, _ = decode(ids[:, 13:], cache)
    assert_close(logits, np.asarray(jitted(model)(ids))[:, 13:], CACHED, "logits after the saved state")


def test_padding_may_stand_anywhere_and_hold_anything(model):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 264, (2, 12)).astype(np.int32)
    mask = np.array([[1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0], [0] * 12])
    other = np.where(mask == 1, ids, rng.integers(0, 264, ids.shape)).astype(np.int32)
    forward, decode = jitted(model), jitted(model, "decode")
    alone = np.asarray(forward(ids[:1, mask[0] == 1]))[0]
    for each in (ids, other):
        logits = np.asarray(forward(each, mask))
        assert_close(logits[0, mask[0] == 1], alone, CACHED, "row with holes")
        assert np.isfinite(logits).all()
    # A row of padding alone leaves its state unchanged, in a chunk and in a step.
    _, before = decode(ids, model.init_cache(2))
    for length in (12, 1):
        _, after = decode(other[:, :length], before, mask[:, :length])
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            np.testing.assert_array_equal(a[1], b[1])


def test_groups_are_independent():
    """The heads of group 1 read the B and C of group 1: changing those of group 0 does not change them."""
    from scratch_mamba2 import ssd

    rng = np.random.default_rng(0)
    x, B_, C_ = rng.normal(size=(1, 9, 4, 3)), rng.normal(size=(1, 9, 2, 5)), rng.normal(size=(1, 9, 2, 5))
    changed = B_.copy()
    changed[:, :, 0] += 1
    log_a = -np.ones((1, 9, 4))
    y, _ = ssd.quadratic(*map(jnp.float32, (x, log_a, B_, C_)))
    moved, _ = ssd.quadratic(*map(jnp.float32, (x, log_a, changed, C_)))
    change_H = np.abs(moved - y).max(axis=(0, 1, 3))
    assert change_H[:2].min() > 1e-3
    np.testing.assert_array_equal(change_H[2:], 0)


def test_step_sizes_are_clipped():
    limits = (0.5, 0.6)
    model = Mamba2(dataclasses.replace(SMALL, dt_limit=limits), rngs=nnx.Rngs(0))
    mixer = model.layers[0].mixer
    wide = jnp.linspace(-30.0, 30.0, SMALL.num_heads)[None, None]
    channels = SMALL.d_inner + 2 * SMALL.num_groups * SMALL.d_state
    _, dt, _, _ = mixer.select(jnp.zeros((1, 1, channels)), wide)
    assert (float(dt.min()), float(dt.max())) == pytest.approx(limits)
    # In decoding, the step size is clipped as in a chunk.
    ids = np.arange(6)[None]
    _, cache = jitted(model, "decode")(ids[:, :5], model.init_cache(1))
    last, _ = jitted(model, "decode")(ids[:, 5:], cache)
    assert_close(last, np.asarray(jitted(model)(ids))[:, 5:], CACHED, "logits of the last step")


def test_initial_parameters_are_in_the_published_ranges():
    mixer = Mamba2(SMALL, rngs=nnx.Rngs(0)).layers[0].mixer
    dt, rate = jax.nn.softplus(mixer.dt_bias[...]), jnp.exp(mixer.A_log[...])
    assert all((dt > 0.000999) & (dt < 0.1001))
    assert all((rate > 0.999) & (rate < 16.001))
    assert float(jnp.abs(mixer.out.kernel[...]).max()) <= (SMALL.d_inner * SMALL.num_layers) ** -0.5


# The config.json of the authors' own checkpoints, with small sizes.
STATE_SPACES = {
    "d_model": 32,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 101,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 8},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


@pytest.fixture
def state_spaces(tmp_path):
    """A folder in the authors' layout: their config.json, "embedding" for "embeddings", padded rows, a tied head."""
    config = Mamba2Config.from_hf(STATE_SPACES)
    model = Mamba2(dataclasses.replace(config, layout="hf"), rngs=nnx.Rngs(0))
    tensors = scratch_core.to_hf(model)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    folder = tmp_path / "state-spaces"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STATE_SPACES))
    save_file(tensors, folder / "model.safetensors")
    return folder, model


def test_the_authors_layout_loads_and_is_written_back(state_spaces, tmp_path):
    folder, original = state_spaces
    model = scratch_core.load(folder)
    assert model.embedding.embedding.shape == (112, 32)  # 101 tokens in rows up to a multiple of 16
    ids = np.arange(10)[None]
    np.testing.assert_array_equal(jitted(model)(ids), jitted(original)(ids))
    check_round_trip(folder, tmp_path)
    assert json.loads((tmp_path / "once" / "config.json").read_text()) == STATE_SPACES


def test_a_tied_head_in_the_file_must_equal_the_embedding(state_spaces):
    folder, _ = state_spaces
    tensors = read_tensors(folder)
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    scratch_core.load(folder)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: must equal backbone\.embedding\.weight"):
        scratch_core.load(folder)


@pytest.mark.parametrize("change", [{}, {"use_bias": True, "conv_bias": False, "tie_embeddings": False}])
@pytest.mark.parametrize("layout", ["hf", "state-spaces"])
def test_what_is_saved_loads_again(layout, change, tmp_path):
    model = Mamba2(dataclasses.replace(SMALL, layout=layout, **change), rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    again = scratch_core.load(tmp_path)
    ids = np.ones((1, 4), np.int32)
    np.testing.assert_array_equal(jitted(again)(ids), jitted(model)(ids))


def test_infinity_is_read_in_both_spellings(tmp_path):
    fields = SMALL.to_hf()
    for spelled in ("[0.0, Infinity]", '[0.0, {"__float__": "Infinity"}]'):
        (tmp_path / "config.json").write_text(
            json.dumps({**fields, "time_step_limit": 0}).replace(
                '"time_step_limit": 0', f'"time_step_limit": {spelled}'
            )
        )
        read = scratch_core.config.read_json(tmp_path / "config.json")
        assert Mamba2Config.from_hf(read).dt_limit == (0.0, math.inf)


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (SMALL.to_hf(), {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (SMALL.to_hf(), {"expand": 3}, r"expand \* hidden_size = 3 \* 128 must equal num_heads \* head_dim = 4 \* 64"),
        (SMALL.to_hf(), {"n_groups": 3}, "num_groups=3 must divide num_heads=4"),
        (SMALL.to_hf(), {"time_step_limit": [0.0]}, "time_step_limit"),
        (SMALL.to_hf(), {"time_step_limit": [0.2, 0.1]}, "0 <= low < high"),
        (SMALL.to_hf(), {"vocab_size": None}, "no field 'vocab_size'"),
        (STATE_SPACES, {"ssm_cfg": {"layer": "Mamba1"}}, "layer='Mamba1'"),
        (STATE_SPACES, {"ssm_cfg": {}}, "layer='Mamba1'"),
        (STATE_SPACES, {"ssm_cfg": {"layer": "Mamba2", "d_ssm": 16}}, "d_ssm=16"),
        (STATE_SPACES, {"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, "headdim=7 must divide"),
        (STATE_SPACES, {"attn_layer_idx": [1]}, r"attn_layer_idx=\[1\]"),
        (STATE_SPACES, {"d_intermediate": 64}, "d_intermediate=64"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(fields, change, message):
    with pytest.raises(ConfigError, match=message):
        Mamba2Config.from_hf({**fields, **change})


def test_an_absent_token_id_is_the_references_default_and_null_is_none():
    fields = Mamba2Config.tiny().to_hf()
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    absent = Mamba2Config.from_hf({name: value for name, value in fields.items() if name not in names})
    assert (absent.bos_token_id, absent.eos_token_id, absent.pad_token_id) == (0, 2, 1)
    null = Mamba2Config.from_hf({**fields, **dict.fromkeys(names)})
    assert (null.bos_token_id, null.eos_token_id, null.pad_token_id) == (None, None, None)
    assert null.to_hf()["eos_token_id"] is None
