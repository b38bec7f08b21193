"""How the estimators minimise eq. 1 of :mod:`.least_squares`. All equation numbers refer to that module.

The rows of X are used in place where that is possible (:class:`.arrays.Rows`). The shape and the condition number of X
decide which form of the solution is computed.

Shapes: I samples, R rows of a block, D features, K outputs, M = min(I, D).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .arrays import Matrix, dense, lay_out, precision, refuse_non_finite
from .least_squares import cholesky_solve, solve_normal_equations, solve_singular_values
from .moments import Moments, Samples, arranged, centered_rows, moments_of, sparse_moments
from .nonnegative import fit_nonnegative


class SquaresFit(NamedTuple):
    """The minimiser of eq. 1 as scikit-learn stores it, and how it was found.

    coef is [D] or [K, D]. ``singular`` [M] are the singular values of the centred X; None where alpha is not zero.
    ``method`` is "cholesky" (eq. 2 or 3), "svd" (eq. 4), or for coefficients that may not be negative "lbfgs", the name
    that scikit-learn gives there.
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


class _OrthogonalSolution(NamedTuple):
    """coef [D, K] and intercept [K] of eq. 4, and the singular values of the centred X."""

    coef: jax.Array
    intercept: jax.Array
    singular: jax.Array


def _condition(factor_DD: jax.Array) -> jax.Array:
    """Estimate the condition number of the scaled system by inverse iteration; NaN if it is not positive definite."""
    D = factor_DD.shape[0]
    v = jnp.cos(jnp.arange(D, dtype=factor_DD.dtype) ** 2)  # any vector without structure
    for _ in range(4):
        v = jax.scipy.linalg.cho_solve((factor_DD, True), v / jnp.linalg.norm(v))
    return D * jnp.linalg.norm(v)  # the trace D bounds the largest eigenvalue


@jax.jit
def _solve_moments(m: Moments, alpha: jax.Array) -> _DirectSolution:
    """Solve eq. 2; alpha is a number or one per output."""
    coef_DK, factor = cholesky_solve(m.gram, m.cross, alpha if jnp.ndim(alpha) == 0 else alpha.min())
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
def _fit_orthogonal(samples: Samples, m: Moments, alpha: jax.Array, max_size: jax.Array) -> _OrthogonalSolution:
    """Solve eq. 4, with R and Q'y built block by block."""
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
    coef_DK, sigma = solve_singular_values(R[:, :D], R[:, D:], alpha, max_size)
    return _OrthogonalSolution(coef_DK, m.mean_y - m.mean_x @ coef_DK, sigma)


@partial(jax.jit, static_argnames="fit_intercept")
def _fit_dual(samples: Samples, alpha: jax.Array, fit_intercept: bool) -> _DirectSolution:
    """Solve eq. 3 for samples that are all in the tail."""
    Z_ID, V_IK, mean_x, mean_y, _ = centered_rows(samples, fit_intercept)
    gram_II = Z_ID @ Z_ID.T
    dual_IK, factor = cholesky_solve(gram_II, V_IK, alpha if jnp.ndim(alpha) == 0 else alpha.min())
    if jnp.ndim(alpha):
        dual_IK = solve_normal_equations(gram_II, V_IK, alpha)
    coef_DK = Z_ID.T @ dual_IK
    finite = jnp.isfinite(jnp.diagonal(gram_II)).all() & jnp.isfinite(V_IK).all()
    return _DirectSolution(coef_DK, mean_y - mean_x @ coef_DK, _condition(factor), finite)


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
            coef_DK, intercept_K = fit_nonnegative(m, alpha)
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
