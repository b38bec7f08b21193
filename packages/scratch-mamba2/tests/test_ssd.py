"""The forms of the operator are one operator: same outputs, same final state, same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scratch_mamba2 import ssd

FORMS = {
    "quadratic": ssd.quadratic,
    "chunked": partial(ssd.chunked, chunk_size=8),
    "chunked, associative": partial(ssd.chunked, chunk_size=8, pass_states=ssd.states_by_associative_scan),
    "block rows": partial(ssd.block_rows, chunk_size=8),
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
DECAY = {"usual": (-1.0, 0.0), "near zero": (-1e-6, 0.0), "strong": (-200.0, -20.0), "mixed": (-200.0, 0.0)}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def make(dtype, *, T=24, G=1, B=2, H=4, P=3, N=5, decay="usual", state=True, seed=0):
    rng = np.random.default_rng(seed)
    low, high = DECAY[decay]
    log_a_BTH = rng.uniform(low, high, (B, T, H))
    if decay == "mixed":  # strong steps between steps that keep nearly everything
        log_a_BTH = np.where(rng.random((B, T, H)) < 0.5, log_a_BTH, log_a_BTH * 1e-4)
    # Divided by T so that outputs are of order one and the tolerances mean what they say.
    arrays = [rng.normal(size=(B, T, H, P)), log_a_BTH, rng.normal(size=(B, T, G, N)) / T, rng.normal(size=(B, T, G, N))]
    arrays.append(rng.normal(size=(B, H, P, N)) / N if state else np.zeros((B, H, P, N)))
    return [jnp.asarray(each, dtype) for each in arrays]


def by_hand(x, log_a, B_, C_, h):
    """Eq. 1 in NumPy float64, loops and all: what every form has to equal."""
    x, log_a, B_, C_, h = (np.asarray(each, np.float64) for each in (x, log_a, B_, C_, h))
    R = x.shape[2] // B_.shape[2]
    y, h = np.zeros_like(x), h.copy()
    for b, t, n in np.ndindex(x.shape[:3]):
        h[b, n] = np.exp(log_a[b, t, n]) * h[b, n] + np.outer(x[b, t, n], B_[b, t, n // R])
        y[b, t, n] = h[b, n] @ C_[b, t, n // R]
    return y, h


def close(found, expected, dtype, scale=1.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 7, 8, 24, 29])
def test_every_form_equals_the_recurrence(dtype, T, G):
    arrays = make(dtype, T=T, G=G)
    expected = by_hand(*arrays)
    close(ssd.recurrent(*arrays), expected, dtype)
    for form in FORMS.values():
        close(jax.jit(form)(*arrays), expected, dtype)


@pytest.mark.parametrize("decay", DECAY)
def test_extreme_decay(dtype, decay):
    arrays = make(dtype, T=64, decay=decay)
    expected = by_hand(*arrays)
    close(ssd.recurrent(*arrays), expected, dtype)
    for form in [*FORMS.values(), partial(ssd.chunked, chunk_size=64)]:
        close(form(*arrays), expected, dtype)


def test_running_sums_alone_would_not_do():
    """What the second float in `semiseparable_mask` is for: without it this very case is off by more than 1e-5."""
    log_a = jnp.where(jnp.arange(64) < 32, -200.0, -0.37)
    exact = np.exp(np.cumsum(np.asarray(log_a, np.float64))[:, None] - np.cumsum(np.asarray(log_a, np.float64)))
    sums = jnp.cumsum(log_a)
    plain = jnp.exp(sums[:, None] - sums)
    assert np.abs(np.tril(plain - exact)).max() > 1e-5
    assert np.abs(ssd.semiseparable_mask(log_a) - np.tril(exact)).max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", ["usual", "strong", "mixed"])
def test_gradients_equal_the_recurrence(dtype, form, decay):
    arrays = make(dtype, T=21, G=2, decay=decay)
    target = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), dtype)

    def loss(function, arrays):
        y_BTHP, state_BHPN = function(*arrays)
        return jnp.sum(target * y_BTHP) + jnp.sum(jnp.sin(state_BHPN))

    expected = jax.grad(partial(loss, ssd.recurrent))(arrays)
    found = jax.grad(partial(loss, FORMS[form]))(arrays)
    for a, b in zip(found, expected):
        assert np.isfinite(a).all()
        close(a, b, dtype, scale=max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("form", FORMS)
def test_state_passes_from_call_to_call(dtype, form):
    x, log_a, B_, C_, h = make(dtype, T=29)
    whole = FORMS[form](x, log_a, B_, C_, h)
    parts = []
    for start, stop in [(0, 11), (11, 12), (12, 29)]:
        y, h = FORMS[form](x[:, start:stop], log_a[:, start:stop], B_[:, start:stop], C_[:, start:stop], h)
        parts.append(y)
    close((jnp.concatenate(parts, axis=1), h), whole, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_no_state_is_a_state_of_zeros(form):
    *arrays, zeros = make("float32", state=False)
    close(FORMS[form](*arrays), FORMS[form](*arrays, zeros), "float32")


@pytest.mark.parametrize("form", [*FORMS, "recurrent"])
def test_a_step_of_zero_size_changes_nothing(form):
    x, log_a, B_, C_, h = make("float32")
    run = FORMS.get(form, ssd.recurrent)
    keep = jnp.arange(24) % 3 != 1
    zero = lambda each: jnp.where(keep.reshape(1, -1, *[1] * (each.ndim - 2)), each, 0)
    y, last = run(zero(x), zero(log_a), B_, C_, h)
    y_short, last_short = run(x[:, keep], log_a[:, keep], B_[:, keep], C_[:, keep], h)
    close((y[:, keep], last), (y_short, last_short), "float32")


def test_matrix_is_the_operator_and_its_blocks_have_low_rank():
    """Column t of M is the answer to a unit impulse at t; blocks off the diagonal have rank N, those of L rank 1."""
    with jax.enable_x64(True):
        T, N = 24, 3
        _, log_a, B_, C_, _ = make("float64", B=1, T=T, H=1, P=1, N=N)
        L = ssd.semiseparable_mask(log_a[0, :, 0])
        M = np.asarray(L * (C_[0, :, 0] @ B_[0, :, 0].T))
        impulses = jnp.eye(T)[:, :, None, None]  # one batch row per column of M
        repeat = lambda each: jnp.repeat(each, T, axis=0)
        y, _ = ssd.recurrent(impulses, repeat(log_a), repeat(B_), repeat(C_))
        np.testing.assert_allclose(y[:, :, 0, 0].T, M, atol=1e-12)
        for boundary in range(8, T, 8):
            assert np.linalg.matrix_rank(L[boundary:, :boundary], tol=1e-10) == 1
            assert np.linalg.matrix_rank(M[boundary:, :boundary], tol=1e-10) == N
        assert np.linalg.matrix_rank(M[:8, :8], tol=1e-10) == 8  # a diagonal block is full: that is where T Q is paid
