"""Blocks as a loop, scanned and rematerialised: the same outputs, gradients and random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.layers import Linear, run_blocks, scan_layers, unscan_layers
from scratch_core.weights import flatten
from scratch_core.weights.key_table import unstack


class Block(nnx.Module):
    def __init__(self, window, rngs, rate=0.3):
        self.linear = Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.window = window

    def __call__(self, x):
        return x + self.dropout(jnp.tanh(self.linear(x))) * self.window


class Stack(nnx.Module):
    def __init__(self, windows, scan=False):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Block(window, rngs) for window in windows])
        if scan:
            scan_layers(self)

    def __call__(self, x, **how):
        call = lambda block, x, cache: (block(x), cache)  # noqa: E731
        return run_blocks(self.layers, call, x, [None] * len(self.layers), **how)[0]


X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def twice(windows, scan=False, **how):
    """Two outputs of a stack in training mode, the gradient of the first, and all state after it."""
    graphdef, *states = nnx.split(Stack(windows, scan), nnx.Param, ...)

    def merge(parameters, rest):
        return nnx.merge(graphdef, nnx.State(parameters), nnx.State(rest))

    @jax.jit
    def run(parameters, rest):
        def loss(parameters):
            model = merge(parameters, rest)
            y = model(X, **how)
            return (y**2).sum(), (y, nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2]))

        gradients, (y, after) = jax.grad(loss, has_aux=True)(parameters)
        return unstack(flatten(gradients)), y, unstack(flatten(after)), merge(parameters, after)(X, **how)

    return run(*map(nnx.to_pure_dict, states))


def tolerant(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


@pytest.mark.parametrize("windows", [(1, 1, 1, 1), (1, 2, 1, 2)], ids=["one kind", "two kinds in turn"])
def test_all_ways_compute_the_same_and_draw_the_same_numbers(windows):
    loop = twice(windows)
    assert len(loop[0]) == 2 * len(windows)
    assert np.abs(loop[1] - loop[3]).max() > 0.1  # dropout draws anew
    for how in ({"scan": True}, {"remat": True}, {"scan": True, "remat": True}):
        gradients, y, after, again = twice(windows, **how)
        tolerant((gradients, y, again), (loop[0], loop[1], loop[3]))
        counts = [value for path, value in after.items() if path.endswith("count")]
        np.testing.assert_array_equal(counts, np.ones(len(windows)))


def test_a_scan_traces_each_kind_of_block_once_and_a_scanned_model_is_the_list_again():
    traced = []

    def call(block, x, cache):
        traced.append(block.window)
        return block(x), cache

    model = Stack((1, 2) * 4, scan=True)
    model.eval()
    y, _ = run_blocks(model.layers, call, X, [None] * 8)
    assert traced == [1, 2]
    assert [block.window for block in model.layers] == [1, 2] * 4
    unscan_layers(model)
    assert type(model.layers) is nnx.List
    tolerant(model(X), y)


def test_blocks_without_a_pattern_are_refused_with_the_reason():
    for windows in ((1, 2), (1, 1, 2), (1, 2, 1)):
        with pytest.raises(ConfigError, match=r"layers cannot be scanned.* differ in window: 1 and 2\): run them as"):
            Stack(windows, scan=True)


def test_scanned_blocks_with_caches_run_as_a_loop():
    model = Stack((1, 1, 1), scan=True)
    model.eval()
    x, caches = run_blocks(model.layers, lambda block, x, cache: (block(x), cache + 1), X, [0, 1, 2])
    assert caches == (1, 2, 3)
    tolerant(x, model(X))


def test_a_block_that_makes_a_variable_is_refused():
    def call(block, x, cache):
        block.seen = nnx.Variable(x.sum())
        return x, cache

    for model, remat in ((Stack((1, 1), scan=True), False), (Stack((1, 1)), True)):
        with pytest.raises(ConfigError, match="a Block makes new variables"):
            run_blocks(model.layers, call, X, [None] * 2, remat=remat)
