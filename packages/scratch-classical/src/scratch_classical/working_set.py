r"""The lasso with many features, few of which are used: coordinate descent on growing sets of columns.

The problem of :mod:`.coordinate_descent`, restricted to a working set of columns, needs only their Gram matrix. One
pass over X then gives $g = X^\top (y - Xw)$ for every column, the exact duality gap of the full problem, and the
columns that violate optimality, $w_j = 0$ and $|g_j| > \lambda_1$. These join the set.

Shapes: I samples, R rows of a block, D features, P columns of the working set.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import Rows
from .coordinate_descent import descend, duality_gap
from .moments import Samples


class WorkingSetFit(NamedTuple):
    """coef [D], intercept, duality gap over n, and the number of sweeps over working sets."""

    coef: np.ndarray
    intercept: jax.Array
    gap: jax.Array
    sweeps: int


class _Correlations(NamedTuple):
    """Of the centred problem: X'y [D] and |y|^2, the means of x and y, and n."""

    cross: jax.Array
    target: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    weight: jax.Array


@partial(jax.jit, static_argnames="fit_intercept")
def _correlations(samples: Samples, fit_intercept: bool) -> _Correlations:
    """Return the correlations of the only output with every column, in one pass over X."""
    rows, y_IK, weight_I, shift_x, shift_y = samples
    total = weight_I.sum()
    mean_y = shift_y[0] + weight_I @ (y_IK[:, 0] - shift_y[0]) / total if fit_intercept else 0 * shift_y[0]
    error_I = y_IK[:, 0] - mean_y
    scaled_IL = jnp.stack([weight_I * error_I, weight_I], axis=1)
    with_x_LD = rows.sum(lambda X_RD, v_RL: v_RL.T @ (X_RD - shift_x), scaled_IL)
    mean_x = shift_x + with_x_LD[1] / total if fit_intercept else 0 * shift_x
    cross_D = with_x_LD[0] - (mean_x - shift_x) * scaled_IL[:, 0].sum()
    return _Correlations(cross_D, (weight_I * error_I**2).sum(), mean_x, mean_y, total)


@jax.jit
def _columns(rows: Rows, weight_I: jax.Array, mean_x: jax.Array, picked_P: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the centred columns of the working set [I, P] and their Gram matrix."""
    Z_IP = rows.each(lambda X_RD: X_RD[:, picked_P] - mean_x[picked_P])
    return Z_IP, Z_IP.T @ (Z_IP * weight_I[:, None])


class _Optimality(NamedTuple):
    """Of the full problem: g of eq. 3 for every column [D], the duality gap, P, and coef [D]."""

    left: jax.Array
    gap: jax.Array
    value: jax.Array
    coef: jax.Array


@partial(jax.jit, static_argnames="positive")
def _optimality(
    samples: Samples,
    full: _Correlations,
    Z_IP: jax.Array,
    coef_P: jax.Array,
    picked_P: jax.Array,
    l1: jax.Array,
    l2: jax.Array,
    positive: bool,
) -> _Optimality:
    """Measure, in one pass over X, how far coefficients of the working set are from the full problem's minimum."""
    rows, y_IK, weight_I, shift_x, _ = samples
    residual_I = weight_I * (y_IK[:, 0] - full.mean_y - Z_IP @ coef_P)
    left_D = rows.sum(lambda X_RD, r_R: r_R @ (X_RD - shift_x), residual_I)
    left_D -= (full.mean_x - shift_x) * residual_I.sum()
    coef_D = jnp.zeros_like(full.cross).at[picked_P].set(coef_P)
    gap, value = duality_gap(coef_D, left_D, full.cross, full.target, l1, l2, positive)
    return _Optimality(left_D, gap, value, coef_D)


def fit_working_set(
    samples: Samples,
    l1: np.floating,
    l2: np.floating,
    start_D: np.ndarray,
    *,
    fit_intercept: bool,
    positive: bool,
    tol: float,
    max_iter: int,
) -> WorkingSetFit | None:
    r"""Minimise eq. 1 of :mod:`.coordinate_descent` on growing sets of columns, for one output.

    l1 and l2 are $\alpha\rho$ and $\alpha(1-\rho)$. Return None if most columns are needed, because the whole
    Gram matrix is then faster, and if X or y is not finite.
    """
    rows = samples.rows
    D, dtype = rows.tail.shape[1], rows.tail.dtype
    if rows.num_blocks:
        block_rows = 128
        rows = Rows(rows.flat, rows.start, rows.tail, rows.num_main // block_rows, block_rows)
        samples = samples._replace(rows=rows)
    full = _correlations(samples, fit_intercept=fit_intercept)
    ranking = np.abs(np.asarray(full.cross))
    if not np.isfinite(ranking).all():
        return None
    l1, l2 = full.weight * l1, full.weight * l2
    coef_D = np.asarray(start_D)
    size, sweeps, inner_tol = 128, 0, 0.1 * tol
    picked_P, eps = None, np.finfo(dtype).eps
    limit = 0 if coef_D.any() else max_iter  # as in scikit-learn, a warm start within tol is returned as it is
    while True:
        used = np.flatnonzero(coef_D)
        size = min(D, max(size, -(-len(used) // 128) * 128))
        if size > 0.6 * D:
            return None
        ranking[used] = np.inf
        chosen = np.sort(np.argpartition(-ranking, size - 1)[:size]).astype(np.int32)
        if picked_P is None or not np.array_equal(chosen, picked_P):
            picked_P = chosen
            Z_IP, gram_PP = _columns(rows, samples.weight_I, full.mean_x, picked_P)
        inner = descend(
            gram_PP, full.cross[picked_P], full.target, l1, l2, coef_D[picked_P], inner_tol, limit, positive=positive
        )
        left_D, gap, value, coef_D = _optimality(samples, full, Z_IP, inner.coef, picked_P, l1, l2, positive=positive)
        sweeps += int(inner.sweeps)
        coef_D = np.asarray(coef_D)
        if limit == 0 and gap > tol * full.target:
            limit = max_iter
            continue
        left = np.asarray(left_D) if positive else np.abs(np.asarray(left_D))
        violating = (left > float(l1)) & (coef_D == 0)
        violating[picked_P] = False
        if gap <= tol * full.target and (limit == 0 or gap <= 1e-6 * value or not violating.any()):
            break
        # A tol below rounding is never reached. The set then only grows, until no violating column is outside it.
        exhausted = sweeps >= max_iter or inner_tol < eps
        if exhausted and not (violating.any() and inner.gap <= eps**0.5 * full.target):
            break
        if violating.any():
            num_used = int((coef_D != 0).sum())
            missing = num_used + int(violating.sum())
            # While nearly all columns of the set are in use, the number of violating columns is a poor estimate of how
            # many are missing, so the set grows at most threefold.
            needed = min(missing, 3 * size) if num_used > 0.95 * size else missing
            size = max(size, -(-needed // 128) * 128)
            ranking = np.where(violating, left, left - left.max() - 1)  # violating columns come first
            if exhausted:
                ranking[picked_P] = np.inf
                size = max(size, len(picked_P) + 128)
        else:
            inner_tol *= 0.1
    return WorkingSetFit(coef_D, full.mean_y - full.mean_x @ coef_D, gap / full.weight, sweeps)
