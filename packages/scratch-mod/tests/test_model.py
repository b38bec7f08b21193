"""What must hold of Mixture-of-Depths for any weights: the contract of decoders, routing, causality, saving.

There is no reference implementation. The proof is these properties, and that the model equals the plain transformer at
capacity 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.losses import causal_lm_loss
from scratch_core.testing import CausalLMContract, jitted
from scratch_core.testing.decoding import check_causal
from scratch_core.train import Trainer
from scratch_mod import MixtureOfDepths, MixtureOfDepthsConfig
from scratch_mod.model import Block, RoutedBlock

SMALL = dataclasses.replace(
    MixtureOfDepthsConfig.tiny(), d_model=64, d_ff=96, head_dim=16, num_layers=2, capacity=0.25, predictor_size=16
)


class TestMixtureOfDepths(CausalLMContract):
    model_class = MixtureOfDepths
    config = SMALL
    token_loss = staticmethod(causal_lm_loss)
    decayed = (
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.gate.kernel",
        "layers.*.feed_forward.up.kernel",
        "layers.*.predictor.down.kernel",
        "layers.*.predictor.up.kernel",
        "layers.*.router.kernel",
    )
    overfit_rate = 1e-2
    lora_patterns = ("*.attention.*", "*.feed_forward.*")

    @classmethod
    def setup_class(cls):
        """Build the model with embeddings so large that its predictor chooses some tokens and not others."""
        super().setup_class()
        cls.fresh = cls.create()
        cls.fresh.eval()
        cls.model.embedding.embedding[...] *= 20

    @property
    def untrained(self):
        """The model with its initial weights."""
        return self.fresh

    def test_the_predictor_chooses_some_tokens_and_the_cache_holds_only_these(self):
        ids = np.arange(20, dtype=np.int32)[None]
        x_BTD, _ = self.model.layers[0](self.model.embed(ids, None), jnp.arange(20)[None])
        chosen = np.flatnonzero(self.model.layers[1].predictor(x_BTD)[0] > 0)
        assert 4 <= len(chosen) <= 16
        _, cache = jitted(self.model, "decode")(ids, self.model.init_cache(1, 24))
        held = np.asarray(cache.layers[1].position_BS[0])
        np.testing.assert_array_equal(held[held >= 0], chosen)
        np.testing.assert_array_equal(np.asarray(cache.layers[0].position_BS[0])[:20], np.arange(20))

    def test_choosing_the_highest_scores_looks_ahead_and_the_predictor_does_not(self):
        """The test of causality, which the predictor passes above, fails for top-k routing."""
        model = self.create()
        model.train()
        with pytest.raises(AssertionError):
            check_causal(model)

    def test_the_training_loss_includes_the_predictors_loss(self):
        model, batch = self.create(), {"input_ids": np.arange(24, dtype=np.int32).reshape(2, 12)}
        model.train()
        (total, weight), (logits, penalty) = nnx.jit(lambda m, b: (m.loss(b), m.route(b["input_ids"])))(model, batch)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], batch["input_ids"][:, 1:, None], axis=-1)
        np.testing.assert_allclose(total, penalty - picked.sum(), rtol=1e-5)
        assert weight == 22
        assert 0.5 < penalty / 24 < 1.0  # an untrained predictor guesses: ln 2 for each token

    def test_the_predictors_loss_trains_only_the_predictor(self):
        model = self.create()
        ids = np.arange(24, dtype=np.int32).reshape(2, 12)
        gradients = nnx.jit(nnx.grad(lambda model: model.route(ids)[1]))(model)
        moved = {".".join(map(str, path)) for path, g in nnx.to_flat_state(gradients) if np.abs(g[...]).max() > 0}
        assert moved == {f"layers.1.predictor.{name}" for name in ("up.kernel", "up.bias", "down.kernel", "down.bias")}

    def test_the_router_learns_from_the_cross_entropy(self):
        model = self.create()
        batch = {"input_ids": np.arange(24, dtype=np.int32).reshape(2, 12)}
        gradients = nnx.jit(nnx.grad(lambda model: model.loss(batch)[0]))(model)
        assert np.abs(gradients["layers"][1]["router"]["kernel"][...]).max() > 1e-6

    def test_padding_on_either_side_gives_one_loss(self):
        """How many tokens are chosen depends only on a row's real tokens, so padding does not change its loss."""
        model = self.create()
        loss = nnx.jit(lambda model, batch: model.loss(batch))
        ids = np.arange(100, 109, dtype=np.int32)
        alone = loss(model, {"input_ids": ids[None]})
        for padding in ((0, 6), (6, 0)):
            batch = {
                "input_ids": np.pad(ids, padding)[None],
                "attention_mask": np.pad(np.ones_like(ids), padding)[None],
            }
            np.testing.assert_allclose(loss(model, batch), alone, rtol=1e-5)

    def test_micro_batches_of_unequal_length_equal_the_large_batch(self):
        ids = np.random.default_rng(0).integers(0, 256, (4, 12)).astype(np.int32)
        mask = (np.arange(12) < np.array([12, 5, 8, 3])[:, None]).astype(np.int32)
        steps = []
        for accumulate in (1, 4):
            trainer = Trainer(self.create(), optax.sgd(0.1), accumulate=accumulate)
            metrics = trainer.train_step({"input_ids": ids, "attention_mask": mask})
            steps.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
        np.testing.assert_allclose(steps[1], steps[0], rtol=1e-5)


def routed_block() -> tuple[RoutedBlock, jax.Array, jax.Array]:
    """A routed block, 2 x 12 random inputs and their positions."""
    block = RoutedBlock(SMALL, dtype=jnp.float32, rngs=nnx.Rngs(1))
    return block, jax.random.normal(jax.random.key(0), (2, 12, 64)), jnp.tile(jnp.arange(12), (2, 1))


def test_the_highest_scores_are_processed_as_a_text_of_their_own_and_the_others_pass():
    """Equation 2, token by token: a plain block over the chosen tokens alone, at their positions in the text."""
    block, x_BTD, positions_BT = routed_block()
    y_BTD, chosen_BT = jitted(block, "choose_from_all")(x_BTD, positions_BT)
    scores_BT = np.asarray(x_BTD @ block.router.kernel[...])[..., 0]
    for row in range(2):
        chosen = np.sort(np.argsort(scores_BT[row])[-3:])  # a quarter of 12
        np.testing.assert_array_equal(np.flatnonzero(chosen_BT[row]), chosen)
        alone = Block.__call__(block, x_BTD[row : row + 1, chosen], jnp.asarray(chosen)[None])[0][0]
        x = np.asarray(x_BTD[row])
        expected = x.copy()
        expected[chosen] += (alone - x[chosen]) / (1 + np.exp(-scores_BT[row, chosen, None]))
        np.testing.assert_allclose(y_BTD[row], expected, atol=1e-5)
        others = np.setdiff1d(np.arange(12), chosen)
        np.testing.assert_array_equal(y_BTD[row, others], x[others])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_routed_block_that_processes_all_with_weight_one_is_the_plain_block(deterministic):
    block, x_BTD, positions_BT = routed_block()
    x_BTD = x_BTD.at[..., 0].set(1.0)
    block.router.kernel[...] = jnp.zeros((64, 1)).at[0].set(40.0)  # the sigmoid of 40 is 1
    block.predictor.down.bias[...] = jnp.full(1, 1e3)
    block.deterministic, block.routed_tokens = deterministic, lambda length: length
    expected, _ = Block.__call__(block, x_BTD, positions_BT)
    np.testing.assert_allclose(jitted(block)(x_BTD, positions_BT)[0], expected, atol=1e-5)


def test_at_capacity_1_nothing_is_routed():
    model = MixtureOfDepths(dataclasses.replace(SMALL, capacity=1.0), rngs=nnx.Rngs(0))
    assert [type(layer) for layer in model.layers] == [Block, Block]


@pytest.mark.parametrize(("route_every", "routed"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (4, [3])])
def test_the_last_of_every_few_blocks_is_routed(route_every, routed):
    config = dataclasses.replace(SMALL, num_layers=4, route_every=route_every)
    assert [layer for layer in range(4) if config.is_routed(layer)] == routed


def flops(config: MixtureOfDepthsConfig, length: int) -> float:
    """Floating-point operations of the forward pass in training mode, as the compiler counts them."""
    model = MixtureOfDepths(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state).hidden(ids))
    return forward.lower(state, jnp.zeros((1, length), jnp.int32)).compile().cost_analysis()["flops"]


def test_the_compiled_program_does_less_for_a_smaller_capacity():
    """A routed block costs C/T for its matrices and (C/T)^2 for its scores: two blocks cost 1 + C/T instead of 2."""
    dense, half, eighth = (flops(dataclasses.replace(SMALL, capacity=c), 256) for c in (1.0, 0.5, 0.125))
    print(f"FLOPs of 256 tokens: dense {dense:,.0f}, capacity 0.5 {half / dense:.3f}, 0.125 {eighth / dense:.3f}")
    assert half / dense < 0.76
    assert 0.5 < eighth / dense < 0.57


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0.0}, "capacity=0.0 must be greater than 0"),
        ({"capacity": 1.5}, "capacity=1.5 must be greater than 0 and at most 1"),
        ({"route_every": 0}, "route_every=0 must be greater than 0"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"is_causal": False}, "is_causal=False"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"capacity": None}, "no field 'capacity'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        MixtureOfDepthsConfig.from_hf({**MixtureOfDepthsConfig.tiny().to_hf(), **change})


def test_the_share_is_rounded_up_once():
    config = dataclasses.replace(SMALL, capacity=0.3)
    assert [config.routed_tokens(length) for length in (0, 1, 3, 10, 11)] == [0, 1, 1, 3, 4]
