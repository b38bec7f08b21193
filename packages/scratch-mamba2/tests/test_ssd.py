"""All forms of the operator give the same outputs, the same final state and the same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scratch_mamba2 import ssd

FORMS = {
    "recurrent": jax.jit(ssd.recurrent),
    "quadratic": jax.jit(ssd.quadratic),
    "chunk by chunk": jax.jit(partial(ssd.chunk_by_chunk, chunk_size=8)),
    "chunked": jax.jit(partial(ssd.chunked, chunk_size=8)),
    "chunked, associative": jax.jit(partial(ssd.chunked, chunk_size=8, pass_states=ssd.states_by_associative_scan)),
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
DECAY = {"usual": (-1.0, 0.0), "near zero": (-1e-6, 0.0), "strong": (-200.0, -20.0), "mixed": (-200.0, 0.0)}


@partial(jax.jit, static_argnums=0)
def gradients(form, arrays, target):
    def loss(arrays):
        y_BTHP, state_BGNRP = FORMS[form](*arrays)
        return jnp.sum(target * y_BTHP) + jnp.sum(jnp.sin(state_BGNRP))

    return jax.grad(loss)(arrays)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def make(dtype, *, T=29, G=2, B=2, H=4, P=3, N=5, decay="usual", state=True, seed=0):
    rng = np.random.default_rng(seed)
    low, high = DECAY[decay]
    log_a_BTH = rng.uniform(low, high, (B, T, H))
    if decay == "mixed":  # steps of strong decay between steps of almost none
        log_a_BTH = np.where(rng.random((B, T, H)) < 0.5, log_a_BTH, log_a_BTH * 1e-4)
    # Divided by T so that outputs are of order one, as the absolute tolerances assume.
    arrays = [
        rng.normal(size=(B, T, H, P)),
        log_a_BTH,
        rng.normal(size=(B, T, G, N)) / T,
        rng.normal(size=(B, T, G, N)),
    ]
    shape = (B, G, N, H // G, P)
    arrays.append(rng.normal(size=shape) / N if state else np.zeros(shape))
    return [jnp.asarray(each, dtype) for each in arrays]


def by_hand(x, log_a, B_, C_, h):
    """Eq. 1 in NumPy float64, with loops; every form must equal it."""
    x, log_a, B_, C_, h = (np.asarray(each, np.float64) for each in (x, log_a, B_, C_, h))
    R = x.shape[2] // B_.shape[2]
    y, h = np.zeros_like(x), h.copy()
    for b, t, n in np.ndindex(x.shape[:3]):
        g, r = divmod(n, R)
        h[b, g, :, r] = np.exp(log_a[b, t, n]) * h[b, g, :, r] + np.outer(B_[b, t, g], x[b, t, n])
        y[b, t, n] = h[b, g, :, r].T @ C_[b, t, g]
    return y, h


def close(found, expected, dtype, scale=1.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize(("T", "G"), [(1, 2), (16, 2), (29, 1), (29, 2), (29, 4)])
def test_every_form_equals_the_recurrence_by_hand(dtype, T, G):
    arrays = make(dtype, T=T, G=G)
    for form in FORMS.values():
        close(form(*arrays), by_hand(*arrays), dtype)


@pytest.mark.parametrize("decay", ["near zero", "strong", "mixed"])
def test_extreme_decay(dtype, decay):
    arrays = make(dtype, decay=decay)
    for form in FORMS.values():
        close(form(*arrays), by_hand(*arrays), dtype)


def test_running_sums_alone_are_not_precise_enough():
    """Without the second sum in `semiseparable_mask`, the error in this case is above 1e-5."""
    log_a = jnp.where(jnp.arange(64) < 32, -200.0, -0.37)
    sums = np.cumsum(np.asarray(log_a, np.float64))
    exact = np.exp(np.where(np.tri(64), sums[:, None] - sums, -np.inf))
    rounded = jnp.cumsum(log_a)
    plain = jnp.exp(jnp.where(np.tri(64), rounded[:, None] - rounded, -jnp.inf))
    assert np.abs(plain - exact).max() > 1e-5
    assert np.abs(ssd.semiseparable_mask(log_a) - exact).max() < 1e-6


@pytest.mark.parametrize("decay", ["usual", "strong", "mixed"])
def test_gradients_equal_the_recurrence(dtype, decay):
    arrays = make(dtype, decay=decay)
    target = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), dtype)
    expected = gradients("recurrent", arrays, target)
    for form in FORMS:
        for a, b in zip(gradients(form, arrays, target), expected, strict=True):
            assert np.isfinite(a).all()
            close(a, b, dtype, scale=max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("form", FORMS)
def test_state_passes_from_call_to_call(form):
    x, log_a, B_, C_, h = make("float32")
    whole = FORMS[form](x, log_a, B_, C_, h)
    parts = []
    for start, stop in [(0, 13), (13, 29)]:
        y, h = FORMS[form](x[:, start:stop], log_a[:, start:stop], B_[:, start:stop], C_[:, start:stop], h)
        parts.append(y)
    close((jnp.concatenate(parts, axis=1), h), whole, "float32")


@pytest.mark.parametrize("form", FORMS)
def test_no_state_is_a_state_of_zeros(form):
    *arrays, zeros = make("float32", state=False)
    close(FORMS[form](*arrays), FORMS[form](*arrays, zeros), "float32")


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_zero_size_changes_nothing(form):
    x, log_a, B_, C_, h = make("float32")
    keep = np.arange(29) % 3 != 1

    def zero(each):
        return jnp.where(keep.reshape(1, -1, *[1] * (each.ndim - 2)), each, 0)

    y, last = FORMS[form](zero(x), zero(log_a), B_, C_, h)
    expected, last_expected = by_hand(x[:, keep], log_a[:, keep], B_[:, keep], C_[:, keep], h)
    close((y[:, keep], last), (expected, last_expected), "float32")


LENGTHS = pytest.mark.parametrize(("T", "chunk_size"), [(1, 16), (29, 16), (29, 256), (100, 256)])


@LENGTHS
def test_the_form_that_the_model_uses(T, chunk_size):
    arrays = make("float32", T=T)
    close(jax.jit(partial(ssd.scan, chunk_size=chunk_size))(*arrays), by_hand(*arrays), "float32")


@LENGTHS
def test_the_form_that_the_model_uses_has_gradients_and_works_under_vmap(T, chunk_size):
    """Its gradients equal those of the recurrence."""
    arrays = make("float32", T=T)

    def loss(form, arrays):
        y_BTHP, state_BGNRP = form(*arrays)
        return jnp.sum(jnp.sin(y_BTHP)) + jnp.sum(jnp.sin(state_BGNRP))

    scan = partial(ssd.scan, chunk_size=chunk_size)
    found, expected = (jax.jit(jax.grad(partial(loss, form)))(arrays) for form in (scan, ssd.recurrent))
    for a, b in zip(found, expected, strict=True):
        close(a, b, "float32", scale=max(1.0, float(jnp.abs(b).max())))
    two = [jnp.stack([each, 0.5 * each]) for each in arrays]
    halved = [0.5 * each for each in arrays]
    y, state = jax.jit(jax.vmap(scan))(*two)
    close((y[1], state[1]), by_hand(*halved), "float32")


def test_the_form_is_chosen_for_the_device_of_the_program():
    """Lowered for a GPU (none is needed), the program computes all chunks at once; for a CPU, one at a time."""
    arrays = make("float32", T=256)  # 2 rows x 2 groups, 4 chunks, 2 heads per group
    traced = jax.jit(partial(ssd.scan, chunk_size=64)).trace(*arrays)
    for platform, masks in (("cuda", "4x4x2x64x64xf32"), ("cpu", "4x2x64x64xf32")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert f"tensor<{masks}>" in text
    assert "tensor<4x4x2x64x64xf32>" not in text  # ``text`` is now that for the CPU


def test_a_step_is_a_step_of_the_recurrence(dtype):
    arrays = make(dtype, T=1)
    close(jax.jit(ssd.step)(*arrays), by_hand(*arrays), dtype)


def test_matrix_is_the_operator_and_its_blocks_have_low_rank():
    """Column t of M is the response to a unit impulse at t; blocks off the diagonal have rank N, those of L rank 1."""
    with jax.enable_x64(True):
        T, N = 24, 3
        _, log_a, B_, C_, _ = make("float64", B=1, T=T, G=1, H=1, P=1, N=N)
        L = ssd.semiseparable_mask(log_a[0, :, 0])
        M = np.asarray(L * (C_[0, :, 0] @ B_[0, :, 0].T))
        impulses = jnp.eye(T)[:, :, None, None]  # one batch row per column of M
        y, _ = FORMS["recurrent"](impulses, *(jnp.repeat(each, T, axis=0) for each in (log_a, B_, C_)))
        np.testing.assert_allclose(y[:, :, 0, 0].T, M, atol=1e-12)
        for boundary in range(8, T, 8):
            assert np.linalg.matrix_rank(L[boundary:, :boundary], tol=1e-10) == 1
            assert np.linalg.matrix_rank(M[boundary:, :boundary], tol=1e-10) == N
        assert np.linalg.matrix_rank(M[:8, :8], tol=1e-10) == 8  # a diagonal block has full rank, so it costs Q^2
