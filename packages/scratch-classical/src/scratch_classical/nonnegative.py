"""Least squares and ridge regression with no coefficient below zero.

Shapes: D features, K outputs.
"""

import warnings

import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.exceptions import ConvergenceWarning

from .coordinate_descent import descend
from .moments import Moments
from .objective import LinearSolution


def solve_nonnegative(gram_DD: np.ndarray, cross_D: np.ndarray, start_D: np.ndarray, eps: float) -> np.ndarray:
    r"""Return the minimiser of $\frac12 w^\top G w - B^\top w$ over $w \ge 0$, started from ``start_D`` >= 0.

    Warns if it is not found. Source: the active-set method of Lawson and Hanson 1974, Solving Least Squares Problems,
    chapter 23, on the Gram matrix scaled to a unit diagonal. A slope counts as zero if it is below 10 ``eps``
    times the sum of its absolute terms.
    """
    scale_D = np.sqrt(np.diagonal(gram_DD))
    inverse_D = np.divide(1, scale_D, where=scale_D > 0, out=np.zeros_like(scale_D))
    G, q = gram_DD * inverse_D * inverse_D[:, None], cross_D * inverse_D
    w = start_D * scale_D
    free = w > 0
    entered = None
    refused = np.zeros(len(w), bool)  # entered, but would turn negative: the slope was rounding
    for _ in range(10 * len(w) + 10):
        best = np.zeros_like(w)
        inner = G[np.ix_(free, free)]
        try:
            best[free] = cho_solve(cho_factor(inner), q[free])
        except np.linalg.LinAlgError:
            best[free] = np.linalg.lstsq(inner, q[free], rcond=None)[0]
        falling = free & (best <= 0)
        if entered is not None and falling[entered]:
            free[entered], refused[entered], entered = False, True, None
        elif falling.any():
            step = (w[falling] / (w[falling] - best[falling])).min()
            left = w + step * (best - w)
            left[falling & (w <= step * (w - best))] = 0
            w = np.maximum(left, 0)
            free, entered = w > 0, None
            continue
        else:
            w = best
            refused[:] = False
        slope = q - G @ w
        rising = ~free & ~refused & (slope > 10 * eps * (np.abs(q) + np.abs(G) @ w))
        if not rising.any():
            return w * inverse_D
        entered = int(np.argmax(np.where(rising, slope, -np.inf)))
        free[entered] = True
    warnings.warn(
        f"The active-set method for positive=True did not converge in {10 * len(w) + 10} steps. Scale the features, or "
        "remove some that are nearly the same.",
        ConvergenceWarning,
        stacklevel=5,
    )
    return w * inverse_D


def fit_nonnegative(m: Moments, alpha: np.ndarray) -> LinearSolution:
    """Minimise eq. 1 of :mod:`.least_squares` with no coefficient below zero; coef is [D, K]."""
    dtype = m.gram.dtype
    eps = float(np.finfo(dtype).eps)
    gram_DD = np.asarray(m.gram, np.float64)
    solved = []
    for k, a in enumerate(np.broadcast_to(alpha, m.cross.shape[1])):
        cross_D = m.cross[:, k]
        near_D = descend(m.gram, cross_D, m.target[k], 0.0, a, 0 * cross_D, 1e-9, 1000, True).coef
        penalised_DD = gram_DD + a * np.eye(len(gram_DD))
        solved.append(solve_nonnegative(penalised_DD, *(np.asarray(v, np.float64) for v in (cross_D, near_D)), eps))
    coef_DK = jnp.asarray(np.stack(solved, axis=1), dtype)
    return LinearSolution(coef_DK, m.mean_y - m.mean_x @ coef_DK)
