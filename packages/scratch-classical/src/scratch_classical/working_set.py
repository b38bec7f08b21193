r"""The lasso with many features of which few are used: coordinate descent on growing sets of columns.

The problem of :mod:`.coordinate_descent` restricted to a working set of columns needs only their Gram matrix. One
pass over X then gives $g = X^\top (y - Xw)$ for every column, with it the exact duality gap of the full problem,
and the columns that violate optimality, $w_j = 0$ and $|g_j| > \lambda_1$, which join the set.

Shapes: I samples, R rows of a block, D features, P columns of the working set.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import Rows, refuse_non_finite
from .coordinate_descent import descend, duality_gap


@partial(jax.jit, static_argnames="fit_intercept")
def _correlations(
    rows: Rows, y_IK: Any, weight_I: Any, shift_x: Any, shift_y: Any, fit_intercept: bool
) -> tuple[Any, ...]:
    """Return (X'y [D], |y|^2, mean of x, mean of y, n) of the centred problem in one pass over X, one output."""
    total = weight_I.sum()
    mean_y = shift_y[0] + weight_I @ (y_IK[:, 0] - shift_y[0]) / total if fit_intercept else 0 * shift_y[0]
    error_I = y_IK[:, 0] - mean_y
    scaled_IL = jnp.stack([weight_I * error_I, weight_I], axis=1)
    with_x_LD = rows.sum(lambda X_RD, v_RL: v_RL.T @ (X_RD - shift_x), scaled_IL)
    mean_x = shift_x + with_x_LD[1] / total if fit_intercept else 0 * shift_x
    cross_D = with_x_LD[0] - (mean_x - shift_x) * scaled_IL[:, 0].sum()
    return cross_D, (weight_I * error_I**2).sum(), mean_x, mean_y, total


@jax.jit
def _columns(rows: Rows, weight_I: Any, mean_x: Any, picked_P: Any) -> tuple[jax.Array, jax.Array]:
    """Return the centred columns of the working set [I, P] and their Gram matrix."""
    Z_IP = rows.each(lambda X_RD: X_RD[:, picked_P] - mean_x[picked_P])
    return Z_IP, Z_IP.T @ (Z_IP * weight_I[:, None])


@partial(jax.jit, static_argnames="positive")
def _full_gap(
    rows: Rows,
    y_I: Any,
    weight_I: Any,
    shift_x: Any,
    mean_x: Any,
    mean_y: Any,
    Z_IP: Any,
    coef_P: Any,
    picked_P: Any,
    cross_D: Any,
    target: Any,
    l1: Any,
    l2: Any,
    positive: bool,
) -> tuple[Any, ...]:
    """Return (g of eq. 3 for every column, gap, P, coef [D]) in one pass over X."""
    residual_I = weight_I * (y_I - mean_y - Z_IP @ coef_P)
    left_D = rows.sum(lambda X_RD, r_R: r_R @ (X_RD - shift_x), residual_I)
    left_D -= (mean_x - shift_x) * residual_I.sum()
    coef_D = jnp.zeros_like(cross_D).at[picked_P].set(coef_P)
    return left_D, *duality_gap(coef_D, left_D, cross_D, target, l1, l2, positive), coef_D


def fit_working_set(
    estimator: Any, X: Any, data: tuple[Any, ...], l1: Any, l2: Any, start_D: Any, fit_intercept: bool
) -> tuple[Any, ...] | None:
    """Return (coef [D], intercept, gap / n, sweeps) by solving on growing sets of columns, None if most are needed."""
    rows, y_IK, weight_I, shift_x, shift_y = data
    D, tol = rows.tail.shape[1], estimator.tol
    if rows.num_blocks:
        finer = 128
        rows = Rows(rows.flat, rows.start, rows.tail, rows.num_main // finer, finer)
    cross_D, target, mean_x, mean_y, total = _correlations(
        rows, y_IK, weight_I, shift_x, shift_y, fit_intercept=fit_intercept
    )
    ranking = np.abs(np.asarray(cross_D))
    if not np.isfinite(ranking).all():
        refuse_non_finite(estimator, X)
    l1, l2 = total * l1, total * l2
    coef_D = np.asarray(start_D)
    size, spent, inner_tol = 128, 0, 0.1 * tol
    picked_P, eps = None, np.finfo(X.dtype).eps
    while True:
        used = np.flatnonzero(coef_D)
        size = min(D, max(size, -(-len(used) // 128) * 128))
        if size > 0.6 * D:
            return None
        ranking[used] = np.inf
        chosen = np.sort(np.argpartition(-ranking, size - 1)[:size]).astype(np.int32)
        if picked_P is None or not np.array_equal(chosen, picked_P):
            picked_P = chosen
            Z_IP, gram_PP = _columns(rows, weight_I, mean_x, picked_P)
        coef_P, inner_gap, count = descend(
            gram_PP, cross_D[picked_P], target, l1, l2, coef_D[picked_P], inner_tol, estimator.max_iter,
            positive=estimator.positive,
        )  # fmt: skip
        left_D, gap, value, coef_D = _full_gap(
            rows, y_IK[:, 0], weight_I, shift_x, mean_x, mean_y, Z_IP, coef_P, picked_P, cross_D, target, l1, l2,
            positive=estimator.positive,
        )  # fmt: skip
        spent += int(count)
        coef_D = np.asarray(coef_D)
        left = np.asarray(left_D) if estimator.positive else np.abs(np.asarray(left_D))
        violating = (left > float(l1)) & (coef_D == 0)
        violating[picked_P] = False
        if gap <= tol * target and (gap <= 1e-6 * value or not violating.any()):
            break
        # A tol below rounding is never reached: then the set only grows, until it lacks no column.
        exhausted = spent >= estimator.max_iter or inner_tol < eps
        if exhausted and not (violating.any() and inner_gap <= eps**0.5 * target):
            break
        if violating.any():
            num_used = int((coef_D != 0).sum())
            missing = num_used + int(violating.sum())
            # A set that is used up says little of how many columns are needed; one with columns to spare says it well.
            needed = min(missing, 3 * size) if num_used > 0.95 * size else missing
            size = max(size, -(-needed // 128) * 128)
            ranking = np.where(violating, left, left - left.max() - 1)  # what violates comes first
            if exhausted:
                ranking[picked_P] = np.inf
                size = max(size, len(picked_P) + 128)
        else:
            inner_tol *= 0.1
    return coef_D, mean_y - mean_x @ coef_D, gap / total, spent
