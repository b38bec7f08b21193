"""Mixture of experts: three ways to route, and several ways to compute the same sum of experts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core import ConfigError
from scratch_core.layers import (
    Experts,
    expert_capacity,
    expert_choice_routing,
    load_balancing_loss,
    switch_routing,
    top_k_routing,
)
from scratch_core.layers.expert_dispatch import block_shape, grouped_dot, take_rows

D, F, E = 12, 20, 6


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def experts():
    return Experts(D, F, E, activation=jax.nn.silu, rngs=nnx.Rngs(0))


def test_the_gates_of_top_k_are_the_softmax_of_the_largest_logits():
    logits_TE = normal(9, E)
    routing = top_k_routing(logits_TE, 2)
    for logits_E, expert_K, gate_K in zip(np.asarray(logits_TE), *map(np.asarray, routing), strict=True):
        best = np.argsort(-logits_E)[:2]
        np.testing.assert_array_equal(expert_K, best)
        np.testing.assert_allclose(gate_K, np.exp(logits_E[best]) / np.exp(logits_E[best]).sum(), rtol=1e-5)


def test_switch_sends_each_token_to_its_best_expert_while_it_has_room():
    """Expert 1 is the best for tokens 0 to 4, and takes three of them; their gate is the probability itself."""
    logits_TE = jnp.zeros((6, 3)).at[:5, 1].set(2.0).at[5, 2].set(1.0)
    routing = switch_routing(logits_TE, capacity=3)
    np.testing.assert_array_equal(routing.expert_TK[:, 0], [1, 1, 1, 3, 3, 2])
    p = np.exp(2) / (np.exp(2) + 2)
    np.testing.assert_allclose(routing.gate_TK[:, 0], [p, p, p, 0, 0, np.e / (np.e + 2)], rtol=1e-6)


def test_where_experts_choose_all_have_the_same_load():
    logits_TE = normal(10, E)
    routing = expert_choice_routing(logits_TE, capacity=4)
    probability_TE = np.asarray(jax.nn.softmax(logits_TE))
    for e in range(E):
        best = np.argsort(-probability_TE[:, e])[:4]
        np.testing.assert_array_equal(routing.token_EC[e], best)
        np.testing.assert_allclose(routing.gate_EC[e], probability_TE[best, e])


def test_capacity_is_the_share_of_an_expert_times_its_factor():
    assert expert_capacity(64, 8, 1.0) == 8
    assert expert_capacity(65, 8, 1.25) == 11
    assert expert_capacity(4, 2, 8.0) == 4
    with pytest.raises(ConfigError, match="capacity_factor=0 must be greater than 0"):
        expert_capacity(4, 2, 0)


def test_the_balancing_loss_is_its_formula_over_the_tokens_that_count():
    logits_TE, mask_T = normal(7, E), np.array([1, 1, 0, 1, 0, 1, 1])
    for k in (1, 2):
        sent, mean = np.zeros(E), np.zeros(E)
        for t in np.flatnonzero(mask_T):
            probability = np.exp(logits_TE[t]) / np.exp(logits_TE[t]).sum()
            mean += probability / mask_T.sum()
            sent[np.argsort(-probability)[:k]] += 1 / mask_T.sum()
        np.testing.assert_allclose(
            load_balancing_loss(logits_TE, k, jnp.asarray(mask_T)), E * (sent * mean).sum(), 1e-5
        )
    np.testing.assert_allclose(load_balancing_loss(jnp.zeros((7, E))), 1.0)  # equal probabilities
    np.testing.assert_allclose(load_balancing_loss(100 * jax.nn.one_hot(jnp.zeros(7, int), E)), E)  # all in one


ROUTERS = {
    "top-1": lambda logits_TE: top_k_routing(logits_TE, 1),
    "top-2": lambda logits_TE: top_k_routing(logits_TE, 2),
    "all": lambda logits_TE: top_k_routing(logits_TE, E),
    "switch": lambda logits_TE: switch_routing(logits_TE, 2),
    "expert choice": lambda logits_TE: expert_choice_routing(logits_TE, min(3, len(logits_TE))),
}


@pytest.mark.parametrize(("name", "tokens"), [*((name, 120) for name in ROUTERS), ("top-2", 1), ("switch", 5)])
def test_computing_the_chosen_experts_is_computing_all(name, tokens, experts):
    """In values, and in the gradients with respect to the input, the router and the experts."""
    graphdef, parameters = nnx.split(experts)
    x_TD, router_DE, out_TD = normal(tokens, D), normal(D, E, seed=1), normal(tokens, D, seed=2)

    def loss(parameters, x_TD, router_DE, sparse):
        experts, routing = nnx.merge(graphdef, parameters), ROUTERS[name](x_TD @ router_DE)
        if not sparse:
            y_TD = experts.dense(x_TD, routing.weights(tokens if name == "expert choice" else E))
        elif name == "expert choice":
            y_TD = experts.chosen(x_TD, routing)
        else:
            y_TD = experts(x_TD[None], routing)[0]
        return (y_TD * out_TD).sum(), y_TD

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    dense, sparse = (run(parameters, x_TD, router_DE, kind) for kind in (False, True))
    for expected, actual in zip(jax.tree.leaves(dense), jax.tree.leaves(sparse), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(sparse[0]))


def test_a_product_of_few_rows_reads_the_kernel_in_pieces():
    """The kernel is 640 KB: three pieces, of a size that divides the 160 inputs."""
    x_NRI, kernel_EIO, expert_N = normal(3, 4, 160), normal(2, 160, 1024), jnp.array([1, 0, 2])
    y_NRO = grouped_dot(x_NRI, kernel_EIO, expert_N)
    np.testing.assert_allclose(y_NRO[:2], jnp.einsum("NRI,NIO->NRO", x_NRI[:2], kernel_EIO[::-1]), atol=1e-4)
    assert not y_NRO[2].any()  # an empty block


def test_taking_rows_has_the_gradient_of_indexing():
    x, index, weight = normal(4, 3), jnp.array([2, 0, 4, 2]), normal(4, 3, seed=1)
    places = jnp.array([[1, 4], [4, 4], [0, 3], [4, 4]])

    def take(x):
        return (take_rows(x, index, places) * weight).sum()

    def plain(x):
        return (jnp.concatenate([x, jnp.zeros((1, 3))])[index] * weight).sum()

    for ours, theirs in zip(jax.value_and_grad(take)(x), jax.value_and_grad(plain)(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_experts_compute_in_their_dtype():
    experts = Experts(D, F, E, activation=jax.nn.silu, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x_BTD, routing = normal(2, 3, D), top_k_routing(normal(6, E), 2)
    y_BTD = experts(x_BTD, routing)
    assert y_BTD.dtype == experts.dense(x_BTD.reshape(6, D), routing.weights(E)).dtype == jnp.bfloat16
    assert experts.gate.kernel.dtype == jnp.float32


def test_the_compiled_program_computes_the_chosen_experts_alone():
    """Top-2 of 16 experts: an eighth of the operations of the dense form, plus the rows that fill up the blocks."""
    D, F, E, T, k = 16, 32, 16, 1024, 2
    experts = Experts(D, F, E, activation=jax.nn.silu, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(experts)
    routing, x_TD = top_k_routing(normal(T, E), k), normal(T, D, seed=1)

    def sparse(state, x_TD, routing):
        return nnx.merge(graphdef, state)(x_TD[None], routing)

    def dense(state, x_TD, routing):
        return nnx.merge(graphdef, state).dense(x_TD, routing.weights(E))

    dense_flops = jax.jit(dense).lower(state, x_TD, routing).compile().cost_analysis()["flops"]
    assert dense_flops > 2 * 3 * T * E * D * F

    N, R = block_shape(T * k, E)
    program = jax.jit(sparse).lower(state, x_TD, routing).compile()
    loops = re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', program.as_text())
    assert set(loops) - {str(T * k)} == {str(N)}  # some versions write the slots of the choices in a loop, too
    flops = program.cost_analysis()["flops"]  # XLA counts the body of each loop once
    body = 2 * 3 * R * D * F
    assert body < flops < 1.1 * body + 40 * T * k * (E + D)  # beside the products: sorting, gates, activations
    print(f"dense {dense_flops / 1e6:.1f} MFLOP, dispatched {body * N / 1e6:.1f} MFLOP in {N} blocks of {R} rows")
    assert body * N <= (k / E + R / T) * dense_flops
