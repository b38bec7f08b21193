"""Roots, blocks and Distributed Shampoo: against definitions in float64, and on 8 simulated devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from scratch_core.errors import ConfigError
from scratch_core.parallel import make_mesh
from scratch_core.train import Trainer
from scratch_optim import (
    distributed_shampoo,
    inverse_root_by_eigenvalues,
    inverse_root_by_newton,
    shampoo,
)
from scratch_optim.blocks import Cut, Stacks, merged_shape


def matrix(rng, size, condition):
    """A symmetric matrix with eigenvalues from 1 down to 1 / condition, and a function for its exact root."""
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    eigenvalues = np.logspace(0, -np.log10(condition), size)
    return (q * eigenvalues) @ q.T, lambda p: (q * eigenvalues ** (-1 / p)) @ q.T


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_both_roots_equal_the_definition_far_from_the_identity(random, p):
    with jax.enable_x64(True):
        a, exact = matrix(random, 12, 1e5)
        newton, error = jax.jit(partial(inverse_root_by_newton, p=p, ridge=0.0))(1e3 * a)
        by_eigenvalues = jax.jit(partial(inverse_root_by_eigenvalues, p=p, ridge=0.0))(1e3 * a)
        assert error < 1e-6
        expected = 1e3 ** (-1 / p) * exact(p)
        np.testing.assert_allclose(newton, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(by_eigenvalues, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_the_fourth_root_of_two():
    """An iteration for -1/2 that passes near the identity fails here."""
    for root in (
        inverse_root_by_newton(2 * jnp.eye(3), 4, ridge=0.0)[0],
        inverse_root_by_eigenvalues(2 * jnp.eye(3), 4),
    ):
        np.testing.assert_allclose(root, 2**-0.25 * np.eye(3), atol=1e-5)


def test_the_ridge_gives_a_singular_matrix_a_root():
    one = jnp.ones((4, 4))  # eigenvalues 4, 0, 0, 0
    newton, error = inverse_root_by_newton(one, 2, ridge=1e-2)
    assert error < 1e-5
    np.testing.assert_allclose(newton, inverse_root_by_eigenvalues(one, 2, ridge=1e-2), atol=1e-3)


def test_tensors_are_read_as_matrices_with_nearly_equal_sides():
    assert merged_shape((512, 8, 64)) == (512, 512)
    assert merged_shape((3, 3, 64, 128)) == (576, 128)
    assert merged_shape((1, 7, 1)) == (7,)
    assert merged_shape((5, 3)) == (5, 3)


@pytest.mark.parametrize("shape", [(), (5,), (7, 4), (2, 3, 5), (1, 9, 1, 4)])
@pytest.mark.parametrize("merge", [True, False])
def test_blocks_are_the_array_again(random, shape, merge):
    x = jnp.asarray(random.standard_normal(shape), jnp.float32)
    cut = Cut.of(shape, 4, merge=merge)
    blocks = cut.blocks(x)
    assert blocks.shape == (cut.count, *cut.block)
    assert max(cut.block) <= 4
    np.testing.assert_array_equal(cut.array(blocks), x)


def test_stacks_are_the_leaves_again(random):
    leaves = [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in [(6, 4), (3,), (12, 4), (8, 8)]]
    stacks = Stacks(leaves, 4, merge=True, multiple=8)
    found = stacks.stack(leaves)
    assert {block: len(stack) for block, stack in found.items()} == {(3, 4): 8, (3,): 8, (4, 4): 8}
    for again, x in zip(stacks.unstack(found), leaves, strict=True):
        np.testing.assert_array_equal(again, x)


PARAMETERS = {"a": (6, 8), "b": (5,), "c": (3, 2, 2)}
SCALES = {name: np.logspace(0, 2, max(1, int(np.prod(shape)))).reshape(shape) for name, shape in PARAMETERS.items()}


def train(optimizer, names=tuple(PARAMETERS), steps=12):
    """Return the parameters after some steps on a badly scaled quadratic with a rotating part."""
    params = {name: jnp.full(PARAMETERS[name], 0.5) for name in names}

    def loss(p):
        return sum((SCALES[k] * (x - 0.1) ** 2).sum() for k, x in p.items()) + (p["a"].sum(0) @ p["a"].sum(0)) / 9

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_same(found, expected, tolerance):
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("b2", [0.9, 1.0])
def test_each_block_is_shampoo_by_its_definition(random, b2):
    """Two blocks of 4 x 4 with full-rank statistics, in float64; with SGD's length, a step is eq. 2 up to a factor."""
    with jax.enable_x64(True):
        settings = {"b1": 0.0, "b2": b2, "epsilon": 0.0, "graft": "sgd", "start": 1, "every": 1}
        optimizer = distributed_shampoo(1.0, block_size=4, **settings)
        state, statistics = optimizer.init(jnp.zeros((8, 4))), np.zeros((2, 2, 4, 4))
        for g in random.standard_normal((3, 8, 4)):
            updates, state = optimizer.update(jnp.asarray(g), state)
            expected = []
            for block, sides in zip(np.split(g, 2), statistics, strict=True):
                for side, product in zip(sides, (block @ block.T, block.T @ block), strict=True):
                    side[:] = b2 * side + (1.0 if b2 == 1 else 1 - b2) * product
                left, right = ((v * w**-0.25) @ v.T for w, v in map(np.linalg.eigh, sides))
                expected.append(left @ block @ right)
            expected = np.concatenate(expected)
            expected *= np.linalg.norm(g) / np.linalg.norm(expected)
            np.testing.assert_allclose(updates, -expected, atol=1e-5 * np.abs(expected).max())


def test_newton_and_eigenvalues_give_the_same_training():
    settings = {"block_size": 4, "start": 2, "every": 3, "epsilon": 1e-4}
    newton, *_ = train(distributed_shampoo(0.05, **settings), "a")
    eigenvalues, *_ = train(distributed_shampoo(0.05, root="eigenvalues", **settings), "a")
    assert_same(newton, eigenvalues, 1e-4)


def test_until_the_start_it_is_the_grafted_method():
    settings = {"graft": "adam", "b1": 0.9, "b2": 0.999, "graft_epsilon": 0.0, "root": "eigenvalues"}
    ours, *_ = train(distributed_shampoo(0.05, start=100, **settings), "a")
    momentum_of_steps = optax.chain(
        optax.scale_by_adam(b1=0.0, b2=0.999, eps=0.0), optax.ema(0.9), optax.scale_by_learning_rate(0.05)
    )
    assert_same(ours, train(momentum_of_steps, "a")[0], 1e-5)


@pytest.mark.parametrize("graft", ["sgd", "adagrad", "rmsprop", "adam"])
def test_a_step_has_the_length_of_the_grafted_method(graft):
    gradients = [jnp.array([[1.0, 2.0], [3.0, -4.0]]), jnp.array([[0.5, 1.0], [-1.0, 2.0]])]
    settings = {"b1": 0.0, "b2": 0.9, "start": 1, "every": 1, "graft_epsilon": 0.0, "root": "eigenvalues"}
    optimizer = distributed_shampoo(1.0, graft=graft, **settings)
    state, squares = optimizer.init(gradients[0]), 0.0
    for t, g in enumerate(gradients, start=1):
        updates, state = optimizer.update(g, state)
        squares = squares + g**2 if graft == "adagrad" else 0.9 * squares + 0.1 * g**2
        divisor = {"sgd": 1.0, "adam": jnp.sqrt(squares / (1 - 0.9**t))}.get(graft, jnp.sqrt(squares))
        assert jnp.linalg.norm(updates) == pytest.approx(float(jnp.linalg.norm(g / divisor)), rel=1e-4)


def test_roots_are_refreshed_at_the_start_and_every_few_steps():
    g, changed = jnp.array([[1.0, 2.0], [3.0, -4.0]]), []
    optimizer = distributed_shampoo(0.1, start=3, every=4)
    state = optimizer.init(g)
    for t in range(1, 10):
        before = state.stacks["2x2"].roots[0]
        _, state = optimizer.update(g * t, state)
        if np.abs(state.stacks["2x2"].roots[0] - before).max() > 0:
            changed.append(t)
    assert changed == [3, 4, 8]


def test_a_root_that_fails_keeps_the_last_one():
    optimizer = distributed_shampoo(0.1, start=1, every=1)
    g = jnp.array([[1.0, 2.0], [3.0, -4.0]])
    _, state = optimizer.update(g, optimizer.init(g))
    kept = state.stacks["2x2"].roots[0]
    broken = state._replace(
        stacks={"2x2": state.stacks["2x2"]._replace(statistics=(jnp.full((1, 2, 2), jnp.nan),) * 2)}
    )
    _, after = optimizer.update(g, broken)
    np.testing.assert_array_equal(after.stacks["2x2"].roots[0], kept)


def test_eight_devices_take_the_trajectory_of_one_with_an_eighth_of_the_work():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("fsdp", "tensor"))
    settings = {"block_size": 2, "start": 2, "every": 2, "epsilon": 1e-3}
    one, state = train(distributed_shampoo(0.05, **settings))
    eight, sharded = train(distributed_shampoo(0.05, mesh=mesh, **settings))
    assert_same(eight, one, 2e-5)
    matrices = sharded.stacks["2x2"].statistics[0]
    assert {shard.data.shape[0] for shard in matrices.addressable_shards} == {matrices.shape[0] // 8}
    alone = state.stacks["2x2"].statistics[0]
    np.testing.assert_allclose(matrices[: len(alone)], alone, rtol=1e-3, atol=1e-3)

    big = {"a": jnp.ones((64, 64))}  # 64 blocks of 8 x 8
    work = {}
    for devices, m in ((1, None), (8, mesh)):
        optimizer = distributed_shampoo(0.05, block_size=8, start=2, mesh=m)
        state = optimizer.init(big)
        program = jax.jit(optimizer.update).lower(big, state, big).compile().as_text()
        # How many blocks a product of statistics or of eq. 2 has, and how often the loop over the roots runs.
        products = {int(n) for n in re.findall(r"f32\[(\d+),8,8\]\S* dot\(", program)}
        loops = {int(n) for n in re.findall(r"known_trip_count\D*(\d+)", program)}
        work[devices] = products, loops
    print(work)
    assert (work[1][0], work[8][0]) == ({64}, {8})
    assert 64 in work[1][1] - work[8][1]
    assert 8 in work[8][1] - work[1][1]


def test_a_sharded_state_is_saved_and_restored(tmp_path):
    mesh = make_mesh(data=4, fsdp=2)
    batch = {"x": np.ones((8, 8), np.float32)}

    def create():
        optimizer = distributed_shampoo(0.05, block_size=4, start=2, every=2, root="eigenvalues", mesh=mesh)
        model = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))
        loss = lambda model, batch: ((model(batch["x"]) ** 2).sum(), jnp.float32(8))  # noqa: E731
        return Trainer(model, optimizer, loss, mesh=mesh, folder=tmp_path)

    trainer = create()
    trainer.fit([batch] * 3, 3)
    trainer.close()
    restored = create()
    restored.restore()
    for name, state in trainer.state["optimizer"].stacks.items():
        for x, again in zip(jax.tree.leaves(state), jax.tree.leaves(restored.state["optimizer"].stacks[name])):
            np.testing.assert_array_equal(again, x)
            assert again.sharding == x.sharding
            assert {shard.data.shape[0] for shard in again.addressable_shards} == {x.shape[0] // 8}


@pytest.mark.parametrize("method", [shampoo, distributed_shampoo])
def test_bfloat16_parameters_weight_decay_and_masks(method):
    params = {"kernel": jnp.ones((2, 2), jnp.bfloat16), "bias": jnp.ones(2, jnp.bfloat16)}
    optimizer = method(0.5, weight_decay=0.5, mask=lambda p: {"kernel": True, "bias": False})
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert updates["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["kernel"], -0.25)
    np.testing.assert_array_equal(updates["bias"], 0)
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: distributed_shampoo(0.1, block_size=0), "block_size=0 must be an integer of at least 1"),
        (lambda: distributed_shampoo(0.1, exponent=0), "exponent=0 must be an integer of at least 1"),
        (lambda: distributed_shampoo(0.1, exponent=2.5), "exponent=2.5 must be an integer"),
        (lambda: distributed_shampoo(0.1, every=0), "every=0 must be an integer of at least 1"),
        (lambda: distributed_shampoo(0.1, graft="momentum"), "graft='momentum' must be one of: sgd, adagrad"),
        (lambda: distributed_shampoo(0.1, graft="adam", b2=1.0), "graft='adam' needs b2 below 1, not b2=1.0"),
        (lambda: distributed_shampoo(0.1, root="qr"), "root='qr' must be one of: newton, eigenvalues"),
        (lambda: distributed_shampoo(0.1, b1=1.0), "b1=1.0 must be at least 0 and below 1"),
        (lambda: distributed_shampoo(0.1, mesh="8x1"), "mesh='8x1' must be a jax.sharding.Mesh"),
        (lambda: distributed_shampoo(0.1, block_size=True), "block_size=True must be an integer"),
        (
            lambda: optax.inject_hyperparams(distributed_shampoo)(0.1).init(jnp.ones(2)),
            r"name it in static_args=\('block_size'",
        ),
        (lambda: distributed_shampoo(-0.1), "learning_rate=-0.1 must be above 0"),
        (lambda: distributed_shampoo(0.1).init({"n": jnp.ones(2, jnp.int32)}), "the parameter n has dtype int32"),
        (lambda: shampoo(0.1, epsilon=0.0), "epsilon=0.0 must be above 0"),
        (lambda: shampoo(0.1, b2=0.0), "b2=0.0 must be above 0 and at most 1"),
        (lambda: shampoo(0.1, graft="adam"), "graft='adam' must be None or one of: sgd, adagrad"),
        (lambda: shampoo(0.1, weight_decay=0.1).update(jnp.ones(2), shampoo(0.1).init(jnp.ones(2))), "needs the param"),
    ],
)
def test_a_wrong_setting_is_an_error_with_its_value(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
