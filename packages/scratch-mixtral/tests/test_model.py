"""What must hold of Mixtral for any weights: the contract of decoders, its routing, and its configurations."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.losses import causal_lm_loss
from scratch_core.parallel import make_mesh, shard_batch, shard_model
from scratch_core.testing import CausalLMContract, assert_close, jitted, random_batch
from scratch_core.train import Trainer
from scratch_mixtral import Mixtral, MixtralConfig
from scratch_mixtral.model import balance_loss_hf, balance_loss_switch

CONFIG = dataclasses.replace(MixtralConfig.tiny(), num_layers=2, d_model=64, head_dim=16, d_ff=48)
ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)


class TestMixtral(CausalLMContract):
    model_class = Mixtral
    config = CONFIG
    token_loss = staticmethod(causal_lm_loss)
    decayed = (
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.experts.down.kernel",
        "layers.*.feed_forward.experts.gate.kernel",
        "layers.*.feed_forward.experts.up.kernel",
        "layers.*.feed_forward.router.kernel",
    )


@pytest.fixture(scope="module")
def batch():
    return random_batch("causal_lm", CONFIG)


def losses(mesh, batch):
    trainer = Trainer(Mixtral(ONE_LAYER, rngs=nnx.Rngs(0)), optax.adam(1e-3), mesh=mesh)
    return [float(trainer.train_step(batch)["loss"]) for _ in range(3)]


@pytest.fixture(scope="module")
def losses_on_one_device(batch):
    return np.array(losses(None, batch))


@pytest.mark.parametrize("sizes", [{"expert": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}], ids=["8", "2x2x2"])
def test_experts_on_eight_devices_give_the_losses_of_one(sizes, batch, losses_on_one_device):
    assert_close(losses(make_mesh(**sizes), batch), losses_on_one_device, 1e-5, f"losses of 3 steps on {sizes}")


def test_tokens_move_between_devices_and_experts_do_not(batch):
    """The program gathers tokens, choices and gates with one all-gather each, and sums with a reduce-scatter."""
    model, mesh = Mixtral(ONE_LAYER, rngs=nnx.Rngs(0)), make_mesh(expert=8)
    shard_model(model, mesh)
    kernel = model.layers[0].feed_forward.experts.gate.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (1, 64, 48)
    graphdef, state = nnx.split(model)
    ids = shard_batch(batch, mesh)["input_ids"]
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state).hidden(ids))
    program = forward.lower(state, ids).compile().as_text()
    names = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
    found = {name: len(re.findall(rf" {name}(?:-start)?\(", program)) for name in names}
    assert found == {"all-gather": 3, "reduce-scatter": 1, "all-reduce": 0, "all-to-all": 0, "collective-permute": 0}


def test_a_batch_that_the_mesh_does_not_divide_gives_the_same_logits():
    model = Mixtral(ONE_LAYER, rngs=nnx.Rngs(0))
    ids = np.arange(15, dtype=np.int32).reshape(3, 5)
    expected = np.asarray(jitted(model)(ids))
    shard_model(model, make_mesh(expert=4, tensor=2))
    assert_close(jitted(model)(ids), expected, 1e-5, "logits")


def test_the_loss_adds_the_weighted_balancing_loss_if_the_config_says_so(batch):
    with_router = Mixtral(CONFIG, rngs=nnx.Rngs(0))
    without = Mixtral(dataclasses.replace(CONFIG, output_router_logits=False), rngs=nnx.Rngs(0))
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, batch["input_ids"].shape)).at[:, :2].set(1)
    batch = {"input_ids": batch["input_ids"], "attention_mask": mask}
    total, weight = jitted(with_router, "loss")(batch)
    plain, same_weight = jitted(without, "loss")(batch)
    assert weight == same_weight
    _, routers = jitted(with_router, "hidden_and_router_logits")(batch["input_ids"], mask)
    balance = balance_loss_hf(routers, CONFIG.experts_per_token, mask)
    np.testing.assert_allclose(total / weight, plain / weight + CONFIG.router_loss_weight * balance, rtol=1e-6)


def test_equal_load_gives_the_value_that_each_formula_predicts():
    """Each of 8 experts is the best of one token and the second best of another."""
    logits_8E = jnp.asarray(4 * np.eye(8) + 2 * np.roll(np.eye(8), 1, axis=1))
    routers = (logits_8E[None], logits_8E[None], logits_8E[None])
    np.testing.assert_allclose(balance_loss_hf(routers, 2), 2, rtol=1e-6)  # experts of a token
    np.testing.assert_allclose(balance_loss_switch(routers), 3, rtol=1e-6)  # layers


def test_only_switchs_loss_detects_layers_that_use_few_experts():
    """Layer 0 uses the first half of the experts, layer 1 the second half: over both layers, all are used equally."""
    first = np.kron([[1, 0]], np.tile(np.eye(4), (2, 1))) * 20
    routers = (jnp.asarray(first)[None], jnp.asarray(np.roll(first, 4, axis=1))[None])
    np.testing.assert_allclose(balance_loss_hf(routers, 1), 1, rtol=1e-5)
    np.testing.assert_allclose(balance_loss_switch(routers), 4, rtol=1e-5)  # 2 for each layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"is_causal": False}, "is_causal=False"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"num_experts_per_tok": 9}, "experts_per_token=9 must be at most num_experts=8"),
        ({"num_local_experts": 0}, "num_experts=0 must be greater than 0"),
        ({"sliding_window": 0}, "window=0 must be greater than 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"router_aux_loss_coef": float("nan")}, "router_loss_weight=nan must be a finite number"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        MixtralConfig.from_hf({**MixtralConfig.tiny().to_hf(), **change})


def test_absent_token_ids_are_the_references_defaults_and_null_is_none():
    fields = MixtralConfig.mixtral_8x7b().to_hf()
    absent = {name: value for name, value in fields.items() if not name.endswith("token_id")}
    assert MixtralConfig.from_hf(absent).bos_token_id == 1
    assert MixtralConfig.from_hf(absent).eos_token_id == 2
    null = MixtralConfig.from_hf(fields | {"bos_token_id": None, "eos_token_id": None})
    assert (null.bos_token_id, null.eos_token_id) == (None, None)
