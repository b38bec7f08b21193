r"""Least squares and ridge regression.

$$ \min_{w, b} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha \|w\|^2 \tag{1} $$

The intercept is not penalised, so it follows from the weighted means, $b = \bar y - \bar x^\top w$, and with
the centred moments $G, B$ of :mod:`.moments` the solution is that of the normal equations,

$$ (G + \alpha I) \, w = B \tag{2} $$

solved by Cholesky after scaling the diagonal to one. With fewer samples than features the same $w$ is

$$ w = X_c^\top (X_c X_c^\top + \alpha I)^{-1} y_c \tag{3} $$

or, with $\Omega$ the diagonal of the weights, $X_c^\top \Omega (X_c X_c^\top \Omega + \alpha I)^{-1} y_c$. This form
takes no root of a weight and can therefore be differentiated where a weight is zero.

The normal equations square the condition number, which costs digits. The smallest eigenvalue is therefore estimated.
Where eq. 2 would lose more than half of the digits (always for a rank-deficient X), the solution is computed again from
$X_c = QR$, $R = U \Sigma V^\top$ without the singular values below a cutoff, which gives the shortest minimiser:

$$ w = V \operatorname{diag}\left(\frac{\sigma_j}{\sigma_j^2 + \alpha}\right) U^\top Q^\top y_c \tag{4} $$

Shapes: I samples, D features, K outputs, M = min(I, D).
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from sklearn.exceptions import ConvergenceWarning

from .arrays import Matrix, as_floating, dense, lay_out, precision, refuse_non_finite
from .coordinate_descent import descend
from .moments import Moments, Samples, arranged, moments, moments_of, sparse_moments
from .objective import LinearSolution


class SquaresFit(NamedTuple):
    """The minimiser of eq. 1 as scikit-learn stores it, and how it was found.

    coef is [D] or [K, D]. ``singular`` [M] are the singular values of the centred X; None where alpha is not zero.
    ``method`` is "cholesky" (eq. 2 or 3), "svd" (eq. 4) or "lbfgs", scikit-learn's name for the solver of coefficients
    that may not be negative.
    """

    coef: np.ndarray
    intercept: np.ndarray | np.floating | float
    singular: np.ndarray | None
    method: str


class _DirectSolution(NamedTuple):
    """coef [D, K], intercept [K], the estimated condition number, and whether the data were finite."""

    coef: jax.Array
    intercept: jax.Array
    condition: jax.Array
    finite: jax.Array


def solve_normal_equations(gram_DD: jax.Array, cross_DK: jax.Array, alpha: ArrayLike = 0.0) -> jax.Array:
    """Return w_DK of eq. 2; alpha is a number or one per output. Columns of zeros get coefficient zero."""
    if jnp.ndim(alpha):
        return jax.vmap(solve_normal_equations, (None, 1, 0), 1)(gram_DD, cross_DK[:, :, None], alpha)[..., 0]
    return _cholesky_solve(gram_DD, cross_DK, alpha)[0]


def _cholesky_solve(gram_DD: jax.Array, cross_DK: jax.Array, alpha: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return (w of eq. 2, the Cholesky factor [D, D] of the system scaled to a unit diagonal)."""
    diagonal = jnp.diagonal(gram_DD) + alpha
    alive = diagonal > 0
    scale_D = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal, 1)), 0)
    scaled = gram_DD * scale_D * scale_D[:, None]
    scaled += jnp.diag(jnp.where(alive, alpha * scale_D**2, 1))
    factor = jnp.linalg.cholesky(scaled)
    solution = jax.scipy.linalg.cho_solve((factor, True), cross_DK * scale_D[:, None])
    return solution * scale_D[:, None], factor


def _condition(factor_DD: jax.Array) -> jax.Array:
    """Estimate the condition number of the scaled system by inverse iteration; NaN if it is not positive definite."""
    D = factor_DD.shape[0]
    v = jnp.cos(jnp.arange(D, dtype=factor_DD.dtype) ** 2)  # any vector without structure
    for _ in range(4):
        v = jax.scipy.linalg.cho_solve((factor_DD, True), v / jnp.linalg.norm(v))
    return D * jnp.linalg.norm(v)  # the trace D bounds the largest eigenvalue


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

    Where there are many minimisers it is the one with the shortest coef (eq. 4). Shapes as of :func:`solve_ridge`.
    """
    X = as_floating(X)
    y_IK = _two_dimensional(y, X.dtype)
    Z_ID, V_IK, mean_x, mean_y, weight_I = _center(X, y_IK, sample_weight, fit_intercept)
    root_I1 = jnp.sqrt(weight_I)[:, None]
    coef_DK, _ = _solve_singular_values(Z_ID * root_I1, V_IK * root_I1, jnp.zeros((), X.dtype), max(X.shape))
    return _solution(coef_DK, mean_y - mean_x @ coef_DK, jnp.ndim(y))


def _solution(coef_DK: jax.Array, intercept_K: jax.Array, y_ndim: int) -> LinearSolution:
    """Drop the axis of outputs if y had none."""
    if y_ndim > 1:
        return LinearSolution(coef_DK, intercept_K)
    return LinearSolution(coef_DK[:, 0], intercept_K[0])


def _solve_dual(gram_II: jax.Array, target_IK: jax.Array, alpha: jax.Array) -> jax.Array:
    r"""Solve $(K + \alpha I) a = y$ for a K that need not be symmetric; alpha as in :func:`solve_normal_equations`.

    Samples of zeros, and samples without weight, get some finite value: it has no influence.
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


def _solve_singular_values(
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


@jax.jit
def _solve_moments(m: Moments, alpha: jax.Array) -> _DirectSolution:
    """Solve eq. 2; alpha is a number or one per output."""
    coef_DK, factor = _cholesky_solve(m.gram, m.cross, alpha if jnp.ndim(alpha) == 0 else alpha.min())
    if jnp.ndim(alpha):
        coef_DK = solve_normal_equations(m.gram, m.cross, alpha)
    finite = jnp.isfinite(jnp.diagonal(m.gram)).all() & jnp.isfinite(m.cross).all()
    return _DirectSolution(coef_DK, m.mean_y - m.mean_x @ coef_DK, _condition(factor), finite)


@partial(jax.jit, static_argnames="fit_intercept")
def fit_moments(samples: Samples, alpha: jax.Array, fit_intercept: bool) -> tuple[_DirectSolution, Moments]:
    """Solve eq. 2 from the samples, and return their moments as well."""
    m = moments_of(samples, fit_intercept)
    return _solve_moments(m, alpha), m


@jax.jit
def _fit_orthogonal(
    samples: Samples, m: Moments, alpha: jax.Array, max_size: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (coef [D, K], intercept [K], singular values) of eq. 4, with R and Q'y built block by block."""
    rows, y_IK, weight_I, *_ = samples
    D, K = rows.tail.shape[1], y_IK.shape[1]

    def augmented(X_RD: jax.Array, y_RK: jax.Array, weight_R: jax.Array) -> jax.Array:
        Z = jnp.concatenate([X_RD - m.mean_x, y_RK - m.mean_y], axis=1)
        return jnp.where(weight_R[:, None] > 0, Z * jnp.sqrt(weight_R)[:, None], 0)

    main = rows.num_main
    R = augmented(rows.tail, y_IK[main:], weight_I[main:])
    if rows.num_blocks:

        def step(R: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            begin = index * rows.block_rows
            y, w = (jax.lax.dynamic_slice_in_dim(v, begin, rows.block_rows) for v in (y_IK, weight_I))
            stacked = jnp.concatenate([R, augmented(rows.block(index), y, w)])
            return jnp.linalg.qr(stacked, mode="r"), None

        R = jnp.pad(R, ((0, max(0, D + K - R.shape[0])), (0, 0)))
        R = jax.lax.scan(step, jnp.linalg.qr(R, mode="r"), jnp.arange(rows.num_blocks, dtype=jnp.int32))[0]
    elif R.shape[0] > 2 * (D + K):
        R = jnp.linalg.qr(R, mode="r")
    coef_DK, sigma = _solve_singular_values(R[:, :D], R[:, D:], alpha, max_size)
    return coef_DK, m.mean_y - m.mean_x @ coef_DK, sigma


@partial(jax.jit, static_argnames="fit_intercept")
def _fit_dual(samples: Samples, alpha: jax.Array, fit_intercept: bool) -> _DirectSolution:
    """Solve eq. 3 for samples that are all in the tail."""
    rows, y_IK, weight_I, shift_x, _ = samples
    X = rows.tail
    mean_x, mean_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        mean_x = shift_x + weight_I @ (X - shift_x) / weight_I.sum()
        mean_y = weight_I @ y_IK / weight_I.sum()
    root_I1 = jnp.sqrt(weight_I)[:, None]
    Z_ID, V_IK = (X - mean_x) * root_I1, (y_IK - mean_y) * root_I1
    gram_II = Z_ID @ Z_ID.T
    dual_IK, factor = _cholesky_solve(gram_II, V_IK, alpha if jnp.ndim(alpha) == 0 else alpha.min())
    if jnp.ndim(alpha):
        dual_IK = solve_normal_equations(gram_II, V_IK, alpha)
    coef_DK = Z_ID.T @ dual_IK
    finite = jnp.isfinite(jnp.diagonal(gram_II)).all() & jnp.isfinite(V_IK).all()
    return _DirectSolution(coef_DK, mean_y - mean_x @ coef_DK, _condition(factor), finite)


def solve_nonnegative(gram_DD: np.ndarray, cross_D: np.ndarray, start_D: np.ndarray, eps: float) -> np.ndarray:
    r"""Return the minimiser of $\frac12 w^\top G w - B^\top w$ over $w \ge 0$, started from ``start_D`` >= 0.

    Warns if it is not found. Source: the active-set method of Lawson and Hanson 1974, Solving Least Squares Problems,
    chapter 23, on the Gram matrix scaled to a unit diagonal. A slope counts as zero if it is below 10 ``eps`` times
    the terms of its sum.
    """
    scale_D = np.sqrt(np.diagonal(gram_DD))
    inverse_D = np.divide(1, scale_D, where=scale_D > 0, out=np.zeros_like(scale_D))
    G, q = gram_DD * inverse_D * inverse_D[:, None], cross_D * inverse_D
    w = start_D * scale_D
    free = w > 0
    entered = None
    refused = np.zeros(len(w), bool)  # entered and would turn negative at once, which is rounding
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


def _fit_nonnegative(m: Moments, alpha: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return (coef [D, K], intercept [K]) of eq. 1 with no coefficient below zero."""
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
    return coef_DK, m.mean_y - m.mean_x @ coef_DK


def fit_squares(
    X: Matrix,
    y: np.ndarray,
    sample_weight: np.ndarray | None,
    alpha: ArrayLike,
    *,
    fit_intercept: bool,
    positive: bool = False,
    estimator_name: str,
) -> SquaresFit:
    """Minimise eq. 1 for validated X [I, D] and y [I] or [I, K]; alpha is a number or one per output.

    Raises scikit-learn's ValueError, in the name of ``estimator_name``, if X is not finite.
    """
    num_samples, num_features = X.shape
    wide = num_features > num_samples
    if wide:
        X = dense(X)
    dual = wide and num_features > 256 and np.all(alpha) and not positive
    dtype = np.dtype(X.dtype)
    m: Moments | None = None
    samples: Samples | None = None
    sigma, method = None, "cholesky"
    with precision(dtype):
        alpha = np.asarray(alpha, dtype)
        if not isinstance(X, (np.ndarray, jax.Array)):
            m = sparse_moments(X, y, sample_weight, fit_intercept)
            solution = _solve_moments(m, alpha)
        else:
            samples = arranged(lay_out(X, whole=wide), X, y, sample_weight, fit_intercept)
            if dual:
                solution = _fit_dual(samples, alpha, fit_intercept=fit_intercept)
            else:
                solution, m = fit_moments(samples, alpha, fit_intercept=fit_intercept)
        if not solution.finite:
            refuse_non_finite(X, estimator_name)
        coef_DK, intercept_K = solution.coef, solution.intercept
        # A ridge penalty bounds what the lost digits can do to the objective; least squares has no such bound.
        limit = 0.01 / np.finfo(dtype).eps if np.all(alpha > 0) else np.finfo(dtype).eps ** -0.5
        if positive and m is not None:
            coef_DK, intercept_K = _fit_nonnegative(m, alpha)
            method = "lbfgs"
        elif not solution.condition < limit or (np.any(alpha == 0) and wide):
            if samples is None:
                return fit_squares(
                    dense(X), y, sample_weight, alpha, fit_intercept=fit_intercept, estimator_name=estimator_name
                )
            if m is None:
                m = moments_of(samples, fit_intercept=fit_intercept)
            max_size = dtype.type(max(num_samples, num_features))
            coef_DK, intercept_K, sigma = _fit_orthogonal(samples, m, alpha, max_size)
            method = "svd"
        coef = np.array(coef_DK, dtype).T[:, :num_features]
        intercept = np.array(intercept_K, dtype)
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        refuse_non_finite(X, estimator_name)
    if np.any(alpha):
        sigma = None
    elif sigma is None and m is not None:
        sigma = np.sqrt(np.clip(np.linalg.eigvalsh(np.asarray(m.gram)[:num_features, :num_features])[::-1], 0, None))
    return SquaresFit(
        np.ascontiguousarray(coef if y.ndim > 1 else coef[0]),
        0.0 if not fit_intercept else intercept if y.ndim > 1 else intercept[0],
        None if sigma is None else np.array(sigma)[: min(num_samples, num_features)],
        method,
    )
