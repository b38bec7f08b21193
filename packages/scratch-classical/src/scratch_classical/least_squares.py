r"""Least squares and ridge regression.

$$ \min_{w, b} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha \|w\|^2 \tag{1} $$

The intercept is not penalised, so it follows from the weighted means, $b = \bar y - \bar x^\top w$, and with
the centred moments $G, B$ of :mod:`.moments` the solution is that of the normal equations,

$$ (G + \alpha I) \, w = B \tag{2} $$

solved by Cholesky after scaling the diagonal to one. With fewer samples than features the same $w$ is

$$ w = X_c^\top (X_c X_c^\top + \alpha I)^{-1} y_c \tag{3} $$

or, with $\Omega$ the diagonal of the weights, $X_c^\top \Omega (X_c X_c^\top \Omega + \alpha I)^{-1} y_c$. This form
takes no root of a weight and can therefore be differentiated where a weight is zero.

The normal equations square the condition number, which costs digits. The estimators therefore estimate it. Where eq. 2
would lose more than half of the digits (always for a rank-deficient X), the solution is computed again from
$X_c = QR$, $R = U \Sigma V^\top$ without the singular values below a cutoff, which gives the shortest minimiser:

$$ w = V \operatorname{diag}\left(\frac{\sigma_j}{\sigma_j^2 + \alpha}\right) U^\top Q^\top y_c \tag{4} $$

Shapes: I samples, D features, K outputs, M = min(I, D).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .arrays import as_floating
from .moments import moments
from .objective import LinearSolution


def solve_normal_equations(gram_DD: jax.Array, cross_DK: jax.Array, alpha: ArrayLike = 0.0) -> jax.Array:
    """Return w_DK of eq. 2; alpha is a number or one per output. Columns of zeros get coefficient zero."""
    if jnp.ndim(alpha):
        return jax.vmap(solve_normal_equations, (None, 1, 0), 1)(gram_DD, cross_DK[:, :, None], alpha)[..., 0]
    return cholesky_solve(gram_DD, cross_DK, alpha)[0]


def cholesky_solve(gram_DD: jax.Array, cross_DK: jax.Array, alpha: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return (w of eq. 2, the Cholesky factor [D, D] of the system scaled to a unit diagonal)."""
    diagonal = jnp.diagonal(gram_DD) + alpha
    alive = diagonal > 0
    scale_D = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal, 1)), 0)
    scaled = gram_DD * scale_D * scale_D[:, None]
    scaled += jnp.diag(jnp.where(alive, alpha * scale_D**2, 1))
    factor = jnp.linalg.cholesky(scaled)
    solution = jax.scipy.linalg.cho_solve((factor, True), cross_DK * scale_D[:, None])
    return solution * scale_D[:, None], factor


def _two_dimensional(y: ArrayLike, dtype: np.dtype) -> jax.Array:
    y = jnp.asarray(y, dtype)
    return y.reshape(y.shape[0], -1)


@partial(jax.jit, static_argnames="fit_intercept")
def solve_ridge(
    X: ArrayLike,
    y: ArrayLike,
    alpha: ArrayLike = 1.0,
    *,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
) -> LinearSolution:
    """Return the minimiser (coef, intercept) of eq. 1 for X [I, D] and y [I] or [I, K].

    coef is [D] or [D, K]; intercept is a number or [K]. alpha is a number or one per output, and must be positive
    unless X has full rank. Differentiable in X, y, alpha and sample_weight; vmap over any of them.
    """
    X = as_floating(X)
    y_IK = _two_dimensional(y, X.dtype)
    alpha = jnp.asarray(alpha, X.dtype)
    if X.shape[0] >= X.shape[1]:
        m = moments(X, y_IK, sample_weight, fit_intercept)
        coef_DK = solve_normal_equations(m.gram, m.cross, alpha)  # eq. 2
        mean_x, mean_y = m.mean_x, m.mean_y
    else:
        Z_ID, V_IK, mean_x, mean_y, weight_I = _center(X, y_IK, sample_weight, fit_intercept)
        gram_II = (Z_ID @ Z_ID.T) * weight_I
        dual_IK = _solve_dual(gram_II, V_IK, alpha)
        coef_DK = Z_ID.T @ (dual_IK * weight_I[:, None])  # eq. 3
    return _solution(coef_DK, mean_y - mean_x @ coef_DK, jnp.ndim(y))


@partial(jax.jit, static_argnames="fit_intercept")
def solve_least_squares(
    X: ArrayLike, y: ArrayLike, *, fit_intercept: bool = True, sample_weight: ArrayLike | None = None
) -> LinearSolution:
    """Return (coef, intercept) of eq. 1 with alpha = 0 for X [I, D] and y [I] or [I, K].

    If there are several minimisers, this is the one with the shortest coef (eq. 4). Shapes as in :func:`solve_ridge`.
    """
    X = as_floating(X)
    y_IK = _two_dimensional(y, X.dtype)
    Z_ID, V_IK, mean_x, mean_y, weight_I = _center(X, y_IK, sample_weight, fit_intercept)
    root_I1 = jnp.sqrt(weight_I)[:, None]
    coef_DK, _ = solve_singular_values(Z_ID * root_I1, V_IK * root_I1, jnp.zeros((), X.dtype), max(X.shape))
    return _solution(coef_DK, mean_y - mean_x @ coef_DK, jnp.ndim(y))


def _solution(coef_DK: jax.Array, intercept_K: jax.Array, y_ndim: int) -> LinearSolution:
    """Drop the axis of outputs if y had none."""
    if y_ndim > 1:
        return LinearSolution(coef_DK, intercept_K)
    return LinearSolution(coef_DK[:, 0], intercept_K[0])


def _solve_dual(gram_II: jax.Array, target_IK: jax.Array, alpha: jax.Array) -> jax.Array:
    r"""Solve $(K + \alpha I) a = y$ for a K that need not be symmetric; alpha as in :func:`solve_normal_equations`.

    For samples of zeros and samples without weight, a is some finite number that has no influence on w.
    """
    if jnp.ndim(alpha):
        return jax.vmap(_solve_dual, (None, 1, 0), 1)(gram_II, target_IK[:, :, None], alpha)[..., 0]
    diagonal = jnp.where(jnp.diagonal(gram_II) + alpha > 0, alpha, 1)
    return jnp.linalg.solve(gram_II + jnp.diag(diagonal), target_IK)


class _Centered(NamedTuple):
    Z_ID: jax.Array
    V_IK: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    weight_I: jax.Array


def _center(X: jax.Array, y_IK: jax.Array, sample_weight: ArrayLike | None, fit_intercept: bool) -> _Centered:
    """Return X and y centred, their means and the weights."""
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    mean_x, mean_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        # Around the first row, so that a constant column becomes exactly zero.
        mean_x = X[0] + (weight_I @ (X - X[0])) / weight_I.sum()
        mean_y = (weight_I @ y_IK) / weight_I.sum()
    return _Centered(X - mean_x, y_IK - mean_y, mean_x, mean_y, weight_I)


def solve_singular_values(
    Z_MD: jax.Array, V_MK: jax.Array, alpha: jax.Array, max_size: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Return w of eq. 4 and the singular values; those below eps * max_size * (the largest) count as zero."""
    U, sigma, Vt = jnp.linalg.svd(Z_MD, full_matrices=False)
    cutoff = jnp.finfo(Z_MD.dtype).eps * max_size * sigma[0]
    kept = sigma > cutoff
    safe = jnp.where(kept, sigma, 1)
    if jnp.ndim(alpha):
        alpha = alpha[None, :]
    shrunk = jnp.where(kept[:, None], safe[:, None] / (safe[:, None] ** 2 + alpha), 0)
    return Vt.T @ (shrunk * (U.T @ V_MK)), sigma
