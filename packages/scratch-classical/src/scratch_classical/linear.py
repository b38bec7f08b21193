"""Least squares and ridge regression.

$$ \\min_{w, b} \\sum_i \\omega_i (y_i - x_i^\\top w - b)^2 + \\alpha \\|w\\|^2 \\tag{1} $$

The intercept is not penalised, so it follows from the weighted means, $b = \\bar y - \\bar x^\\top w$, and with
the centred moments $G, B$ of :mod:`.moments` the solution is that of the normal equations,

$$ (G + \\alpha I) \\, w = B \\tag{2} $$

solved by Cholesky after scaling the diagonal to one. With fewer samples than features the same $w$ is

$$ w = X_c^\\top (X_c X_c^\\top + \\alpha I)^{-1} y_c \\tag{3} $$

Squaring the condition number costs digits. The smallest eigenvalue is therefore estimated, and where eq. 2 would
lose more than half of the digits (always for a rank-deficient X) the solution is recomputed from
$X_c = QR$, $R = U \\Sigma V^\\top$ with singular values below a cutoff dropped, which gives the shortest minimiser:

$$ w = V \\operatorname{diag}\\left(\\frac{\\sigma_j}{\\sigma_j^2 + \\alpha}\\right) U^\\top Q^\\top y_c \\tag{4} $$

Leave-one-out errors of ridge need no refits: with the hat matrix $H$ (that of the intercept included),

$$ y_i - \\hat y_i^{(-i)} = \\frac{y_i - \\hat y_i}{1 - H_{ii}} \\tag{5} $$

Shapes: I samples, D features, K outputs, M = min(I, D), A values of alpha.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv

from .arrays import Rows, lay_out, precision, refuse_non_finite
from .base import LinearPredictor
from .coordinate_descent import descend
from .moments import Moments, centered, moments, problem, sums


def solve_normal_equations(gram_DD: Any, cross_DK: Any, alpha: Any = 0.0) -> jax.Array:
    """Return w_DK of eq. 2; alpha is a number or one per output. Columns of zeros get weight zero."""
    if jnp.ndim(alpha):
        return jax.vmap(solve_normal_equations, (None, 1, 0), 1)(gram_DD, cross_DK[:, :, None], alpha)[..., 0]
    return _cholesky_solve(gram_DD, cross_DK, alpha)[0]


def _cholesky_solve(gram_DD: Any, cross_DK: Any, alpha: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (w of eq. 2, the factor, the scaling) of the system scaled to a unit diagonal."""
    diagonal = jnp.diagonal(gram_DD) + alpha
    alive = diagonal > 0
    scale_D = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal, 1)), 0)
    scaled = gram_DD * scale_D * scale_D[:, None]
    scaled += jnp.diag(jnp.where(alive, alpha * scale_D**2, 1))
    factor = jnp.linalg.cholesky(scaled)
    solution = jax.scipy.linalg.cho_solve((factor, True), cross_DK * scale_D[:, None])
    return solution * scale_D[:, None], factor, scale_D


def _condition(factor_DD: jax.Array) -> jax.Array:
    """Estimate the condition number of the scaled system by inverse iteration; NaN if it was not definite."""
    D = factor_DD.shape[0]
    v = jnp.cos(jnp.arange(D, dtype=factor_DD.dtype) ** 2)  # any vector without structure
    for _ in range(4):
        v = jax.scipy.linalg.cho_solve((factor_DD, True), v / jnp.linalg.norm(v))
    return D * jnp.linalg.norm(v)  # the trace D bounds the largest eigenvalue


def _two_dimensional(y: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(y, dtype).reshape(y.shape[0], -1)


@partial(jax.jit, static_argnames="fit_intercept")
def solve_ridge(
    X: Any, y: Any, alpha: Any = 1.0, *, fit_intercept: bool = True, sample_weight: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Return the minimiser (coef, intercept) of eq. 1 for X [I, D] and y [I] or [I, K].

    coef is [D] or [D, K]; intercept is a number or [K]. alpha > 0 (or X of full rank) is a number or one per
    output. Differentiable in X, y, alpha and sample_weight; vmap over any of them.
    """
    X = jnp.asarray(X)
    X = X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))
    y_IK = _two_dimensional(y, X.dtype)
    alpha = jnp.asarray(alpha, X.dtype)
    if X.shape[0] >= X.shape[1]:
        m = moments(X, y_IK, sample_weight, fit_intercept)
        coef_DK = solve_normal_equations(m.gram, m.cross, alpha)  # eq. 2
        mean_x, mean_y = m.mean_x, m.mean_y
    else:
        Z_ID, V_IK, mean_x, mean_y = _whitened(X, y_IK, sample_weight, fit_intercept)
        dual_IK = solve_normal_equations(Z_ID @ Z_ID.T, V_IK, alpha)
        coef_DK = Z_ID.T @ dual_IK  # eq. 3
    intercept_K = mean_y - mean_x @ coef_DK
    return (coef_DK, intercept_K) if jnp.ndim(y) > 1 else (coef_DK[:, 0], intercept_K[0])


@partial(jax.jit, static_argnames="fit_intercept")
def solve_least_squares(
    X: Any, y: Any, *, fit_intercept: bool = True, sample_weight: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Return (coef, intercept) of eq. 1 with alpha = 0, the shortest where there are many (eq. 4)."""
    X = jnp.asarray(X)
    X = X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))
    Z_ID, V_IK, mean_x, mean_y = _whitened(X, _two_dimensional(y, X.dtype), sample_weight, fit_intercept)
    coef_DK, _ = _solve_singular_values(Z_ID, V_IK, jnp.zeros((), X.dtype), max(X.shape))
    intercept_K = mean_y - mean_x @ coef_DK
    return (coef_DK, intercept_K) if jnp.ndim(y) > 1 else (coef_DK[:, 0], intercept_K[0])


def _whitened(X: Any, y_IK: Any, sample_weight: Any, fit_intercept: bool) -> tuple[jax.Array, ...]:
    """Return X and y centred and times the root of the weights, with their means."""
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    mean_x, mean_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        # Around the first row, so that a constant column becomes exactly zero.
        mean_x = X[0] + (weight_I @ (X - X[0])) / weight_I.sum()
        mean_y = (weight_I @ y_IK) / weight_I.sum()
    root_I1 = jnp.sqrt(weight_I)[:, None]
    return (X - mean_x) * root_I1, (y_IK - mean_y) * root_I1, mean_x, mean_y


def _solve_singular_values(Z_MD: Any, V_MK: Any, alpha: Any, longest: Any) -> tuple[jax.Array, jax.Array]:
    """Return w of eq. 4 and the singular values; those below eps * longest * largest count as zero."""
    U, sigma, Vt = jnp.linalg.svd(Z_MD, full_matrices=False)
    cutoff = jnp.finfo(Z_MD.dtype).eps * longest * sigma[0]
    kept = sigma > cutoff
    safe = jnp.where(kept, sigma, 1)
    if jnp.ndim(alpha):
        alpha = alpha[None, :]
    shrunk = jnp.where(kept[:, None], safe[:, None] / (safe[:, None] ** 2 + alpha), 0)
    return Vt.T @ (shrunk * (U.T @ V_MK)), sigma


@partial(jax.jit, static_argnames="fit_intercept")
def _fit_moments(
    rows: Rows, y_IK: Any, weight_I: Any, shift_x: Any, shift_y: Any, alpha: Any, fit_intercept: bool
) -> tuple[Any, ...]:
    """Return (coef [D, K], intercept [K], estimated condition number, finite?, moments)."""
    m = centered(sums(rows, y_IK, weight_I, shift_x, shift_y), shift_x, shift_y, fit_intercept)
    coef_DK, factor, _ = _cholesky_solve(m.gram, m.cross, alpha if jnp.ndim(alpha) == 0 else alpha.min())
    if jnp.ndim(alpha):
        coef_DK = solve_normal_equations(m.gram, m.cross, alpha)
    finite = jnp.isfinite(jnp.diagonal(m.gram)).all() & jnp.isfinite(m.cross).all()
    return coef_DK, m.mean_y - m.mean_x @ coef_DK, _condition(factor), finite, m


@partial(jax.jit, static_argnames="fit_intercept")
def _fit_orthogonal(
    rows: Rows, y_IK: Any, weight_I: Any, m: Moments, alpha: Any, longest: Any, fit_intercept: bool
) -> tuple[Any, ...]:
    """Return (coef, intercept, singular values) of eq. 4, with R and Q'y built block by block."""
    D, K = rows.tail.shape[1], y_IK.shape[1]

    def augmented(X_RD: Any, y_RK: Any, weight_R: Any) -> jax.Array:
        Z = jnp.concatenate([X_RD - m.mean_x, y_RK - m.mean_y], axis=1)
        return jnp.where(weight_R[:, None] > 0, Z * jnp.sqrt(weight_R)[:, None], 0)

    main = rows.num_main
    R = augmented(rows.tail, y_IK[main:], weight_I[main:])
    if rows.num_blocks:

        def step(R: Any, index: Any) -> tuple[jax.Array, None]:
            begin = index * rows.block_rows
            y, w = (jax.lax.dynamic_slice_in_dim(v, begin, rows.block_rows) for v in (y_IK, weight_I))
            stacked = jnp.concatenate([R, augmented(rows.block(index), y, w)])
            return jnp.linalg.qr(stacked, mode="r"), None

        R = jnp.pad(R, ((0, max(0, D + K - R.shape[0])), (0, 0)))
        R = jax.lax.scan(step, jnp.linalg.qr(R, mode="r"), jnp.arange(rows.num_blocks, dtype=jnp.int32))[0]
    elif R.shape[0] > 2 * (D + K):
        R = jnp.linalg.qr(R, mode="r")
    coef_DK, sigma = _solve_singular_values(R[:, :D], R[:, D:], alpha, longest)
    return coef_DK, m.mean_y - m.mean_x @ coef_DK, sigma


@partial(jax.jit, static_argnames="fit_intercept")
def _fit_dual(X: Any, y_IK: Any, weight_I: Any, shift_x: Any, alpha: Any, fit_intercept: bool) -> tuple[Any, ...]:
    """Return (coef, intercept, condition estimate, finite?) of eq. 3."""
    mean_x, mean_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        mean_x = shift_x + weight_I @ (X - shift_x) / weight_I.sum()
        mean_y = weight_I @ y_IK / weight_I.sum()
    root_I1 = jnp.sqrt(weight_I)[:, None]
    Z_ID, V_IK = (X - mean_x) * root_I1, (y_IK - mean_y) * root_I1
    gram_II = Z_ID @ Z_ID.T
    dual_IK, factor, _ = _cholesky_solve(gram_II, V_IK, alpha if jnp.ndim(alpha) == 0 else alpha.min())
    if jnp.ndim(alpha):
        dual_IK = solve_normal_equations(gram_II, V_IK, alpha)
    coef_DK = Z_ID.T @ dual_IK
    finite = jnp.isfinite(jnp.diagonal(gram_II)).all() & jnp.isfinite(V_IK).all()
    return coef_DK, mean_y - mean_x @ coef_DK, _condition(factor), finite


def _fit_squares(
    estimator: LinearPredictor, X: Any, y: np.ndarray, sample_weight: Any, alpha: Any, positive: bool
) -> tuple[np.ndarray | None, str]:
    """Set coef_ and intercept_ to the minimiser of eq. 1. Return the singular values if alpha is 0, and the method."""
    fit_intercept = bool(estimator.fit_intercept)
    num_samples, num_features = X.shape
    dtype = np.dtype(X.dtype)
    wide = num_features > num_samples
    dual = wide and num_features > 256 and np.all(alpha) and not positive
    sigma = None
    with precision(dtype):
        layout = lay_out(X, whole=wide)
        alpha = np.asarray(alpha, dtype)
        data = problem(layout, X, y, sample_weight, fit_intercept)
        rows, y_IK, weight_I, shift_x, _ = data
        if dual:
            coef_DK, intercept_K, condition, finite = _fit_dual(
                rows.tail, y_IK, weight_I, shift_x, alpha, fit_intercept=fit_intercept
            )
            m: Any = None
        else:
            coef_DK, intercept_K, condition, finite, m = _fit_moments(*data, alpha, fit_intercept=fit_intercept)
        if not finite:
            refuse_non_finite(estimator, X)
        method = "cholesky"
        if positive:
            solved = [
                descend(m.gram, m.cross[:, k], m.target[k], 0.0, alpha, 0 * m.cross[:, k], 1e-9, 10_000, True)
                for k in range(y_IK.shape[1])
            ]
            coef_DK = jnp.stack([coef for coef, _, _ in solved], axis=1)
            intercept_K = m.mean_y - m.mean_x @ coef_DK
            method = "lbfgs"
        else:
            # A ridge penalty bounds what the lost digits can do to the objective; least squares has no such bound.
            limit = 0.01 / np.finfo(dtype).eps if np.all(alpha > 0) else np.finfo(dtype).eps ** -0.5
            if not condition < limit or (np.any(alpha == 0) and wide):
                if m is None:
                    m = centered(sums(*data), shift_x, data[4], fit_intercept)
                coef_DK, intercept_K, sigma = _fit_orthogonal(
                    rows,
                    y_IK,
                    weight_I,
                    m,
                    alpha,
                    dtype.type(max(num_samples, num_features)),
                    fit_intercept=fit_intercept,
                )
                method = "svd"
        coef = np.array(coef_DK, dtype).T[:, :num_features]
        intercept = np.array(intercept_K, dtype)
    estimator.coef_ = np.ascontiguousarray(coef if y.ndim > 1 else coef[0])
    estimator.intercept_ = 0.0 if not fit_intercept else intercept if y.ndim > 1 else intercept[0]
    if np.any(alpha):
        return None, method
    if sigma is None and m is not None:
        sigma = np.sqrt(np.clip(np.linalg.eigvalsh(np.asarray(m.gram)[:num_features, :num_features])[::-1], 0, None))
    return np.array(sigma)[: min(num_samples, num_features)], method


class LinearRegression(LinearPredictor):
    """Least squares: eq. 1 with alpha = 0, by eq. 2 or, where that would lose digits, eq. 4.

    Parameters and attributes are those of scikit-learn's class of this name.
    """

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        tol: float = 1e-6,
        n_jobs: int | None = None,
        positive: bool = False,
    ) -> None:
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.tol = tol
        self.n_jobs = n_jobs
        self.positive = positive

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearRegression":
        """Fit to X [I, D] and y [I] or [I, K]."""
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        sigma, _ = _fit_squares(self, X, y, sample_weight, 0.0, self.positive)
        if not self.positive and sigma is not None:
            self.singular_ = sigma
            cutoff = np.finfo(sigma.dtype).eps * max(X.shape) * sigma[:1].max(initial=0)
            self.rank_ = int((sigma > cutoff).sum())
        return self


_SOLVERS = ("auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs")


class Ridge(LinearPredictor):
    """Ridge regression: eq. 1.

    Parameters and attributes are those of scikit-learn's class of this name. ``solver`` takes the same names, but
    the minimiser is unique and always found directly; ``solver_`` tells how ("cholesky", or "svd" where eq. 2
    would lose too many digits).
    """

    n_iter_: np.ndarray

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        solver: str = "auto",
        positive: bool = False,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.solver = solver
        self.positive = positive
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Ridge":
        """Fit to X [I, D] and y [I] or [I, K]; alpha may be one number per output."""
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver={self.solver!r} must be one of {', '.join(_SOLVERS)}")
        if np.any(np.asarray(self.alpha) < 0):
            raise ValueError(f"alpha={self.alpha} must not be negative")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        alpha = np.asarray(self.alpha, dtype=X.dtype)
        outputs = 1 if y.ndim == 1 else y.shape[1]
        if alpha.ndim and alpha.size not in (1, outputs):
            raise ValueError(f"Number of targets and number of penalties do not correspond: {alpha.size} != {outputs}")
        alpha = alpha.ravel()[0] if alpha.size == 1 else alpha
        _, self.solver_ = _fit_squares(self, X, y, sample_weight, alpha, self.positive)
        self.n_iter_ = np.ones(outputs, np.int32)  # one direct solution each
        return self


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_tall(rows: Rows, y_IK: Any, weight_I: Any, m: Moments, alphas_A: Any, fit_intercept: bool) -> Any:
    """Return the errors of eq. 5 [I, K, A] through the eigenvectors of the moments."""
    values_D, vectors_DD = jnp.linalg.eigh(m.gram)
    values_D = jnp.clip(values_D, 0)
    inverse_DA = 1 / (values_D[:, None] + alphas_A)
    rotated_DK = vectors_DD.T @ m.cross

    def errors(X_RD: Any, y_RK: Any, weight_R: Any) -> jax.Array:
        Z_RD = (X_RD - m.mean_x) @ vectors_DD
        hat_RA = weight_R[:, None] * (Z_RD**2 @ inverse_DA + (1 / m.weight if fit_intercept else 0.0))
        predicted_RKA = jnp.einsum("RD,DK,DA->RKA", Z_RD, rotated_DK, inverse_DA)
        return (y_RK - m.mean_y)[:, :, None] / (1 - hat_RA)[:, None] - predicted_RKA / (1 - hat_RA)[:, None]

    return rows.each(errors, y_IK, weight_I)


@partial(jax.jit, static_argnames="fit_intercept")
def _leave_one_out_wide(rows: Rows, y_IK: Any, weight_I: Any, m: Moments, alphas_A: Any, fit_intercept: bool) -> Any:
    """Return the errors of eq. 5 [I, K, A] through the eigenvectors of $Z Z^\\top$."""
    root_I1 = jnp.sqrt(weight_I)[:, None]
    Z_ID, V_IK = (rows.tail - m.mean_x) * root_I1, (y_IK - m.mean_y) * root_I1
    values_I, U_II = jnp.linalg.eigh(Z_ID @ Z_ID.T)
    shrink_IA = jnp.clip(values_I, 0)[:, None] / (jnp.clip(values_I, 0)[:, None] + alphas_A)
    hat_IA = U_II**2 @ shrink_IA + (weight_I[:, None] / m.weight if fit_intercept else 0.0)
    predicted_IKA = jnp.einsum("IM,MK,MA->IKA", U_II, U_II.T @ V_IK, shrink_IA)
    scaled = (V_IK[:, :, None] - predicted_IKA) / (1 - hat_IA)[:, None]
    return jnp.where(root_I1[:, :, None] > 0, scaled / jnp.where(root_I1 > 0, root_I1, 1)[:, :, None], 0)


class RidgeCV(LinearPredictor):
    """Ridge regression with alpha chosen by leave-one-out errors (eq. 5), or by the folds of ``cv``.

    Parameters and attributes are those of scikit-learn's class of this name.
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        gcv_mode: str | None = None,
        store_cv_results: bool = False,
        alpha_per_target: bool = False,
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.gcv_mode = gcv_mode
        self.store_cv_results = store_cv_results
        self.alpha_per_target = alpha_per_target

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "RidgeCV":
        """Choose alpha and fit to all of X [I, D] and y [I] or [I, K]."""
        if self.cv is not None and (self.store_cv_results or self.alpha_per_target):
            raise ValueError("cv!=None and store_cv_results=True or alpha_per_target=True are incompatible")
        alphas = np.atleast_1d(np.asarray(self.alphas, np.float64))
        if np.any(alphas <= 0):
            raise ValueError(f"alphas={self.alphas} must be positive")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        if self.cv is None:
            scores_KA = self._leave_one_out_scores(X, y, sample_weight, alphas)
        else:
            scores_KA = self._fold_scores(X, y, sample_weight, alphas)[None]
        if not self.alpha_per_target:
            scores_KA = scores_KA.mean(0, keepdims=True)
        best = scores_KA.argmax(1)
        self.alpha_ = alphas[best] if self.alpha_per_target and y.ndim > 1 else alphas[best[0]]
        chosen = scores_KA.max(1)
        self.best_score_ = chosen if self.alpha_per_target and y.ndim > 1 else chosen[0]
        _fit_squares(self, X, y, sample_weight, self.alpha_, False)
        return self

    def _leave_one_out_scores(self, X: Any, y: np.ndarray, sample_weight: Any, alphas: np.ndarray) -> np.ndarray:
        I, D = X.shape
        with precision(X.dtype):
            layout = lay_out(X, whole=D > I)
            data = problem(layout, X, y, sample_weight, self.fit_intercept)
            *_, finite, m = _fit_moments(*data, np.asarray(1, X.dtype), fit_intercept=self.fit_intercept)
            if not finite:
                refuse_non_finite(self, X)
            errors = _leave_one_out_wide if D > I else _leave_one_out_tall
            errors_IKA = errors(*data[:3], m, alphas.astype(X.dtype), fit_intercept=self.fit_intercept)
            errors_IKA = layout.restore(np.asarray(errors_IKA))
        y_IK = y.reshape(len(y), -1)
        if self.scoring is None:
            squares = errors_IKA**2 if sample_weight is None else errors_IKA**2 * sample_weight[:, None, None]
            scores_KA, stored = -squares.mean(0), squares
        else:
            stored = y_IK[:, :, None] - errors_IKA
            scorer = check_scoring(_Identity(), scoring=self.scoring)
            weights = {} if sample_weight is None else {"sample_weight": sample_weight}
            scores_KA = np.array(
                [
                    [scorer(_Identity(), stored[:, k, a], y_IK[:, k], **weights) for a in range(len(alphas))]
                    for k in range(y_IK.shape[1])
                ]
            )
        if self.store_cv_results:
            self.cv_results_ = stored[:, 0] if y.ndim == 1 else stored
        return scores_KA

    def _fold_scores(self, X: Any, y: np.ndarray, sample_weight: Any, alphas: np.ndarray) -> np.ndarray:
        X = np.asarray(X)
        scorer = check_scoring(Ridge(), scoring=self.scoring)
        total = np.zeros(len(alphas))
        folds = list(check_cv(self.cv).split(X, y))
        for train, test in folds:
            weights = None if sample_weight is None else sample_weight[train]
            for a, alpha in enumerate(alphas):
                model = Ridge(alpha, fit_intercept=self.fit_intercept).fit(X[train], y[train], weights)
                scored = {} if sample_weight is None else {"sample_weight": sample_weight[test]}
                total[a] += scorer(model, X[test], y[test], **scored)
        return total / len(folds)


class _Identity(RegressorMixin, BaseEstimator):
    """A regressor that predicts its input, so that a scorer can score leave-one-out predictions."""

    def fit(self, X: Any, y: Any) -> "_Identity":
        return self

    def predict(self, X: Any) -> Any:
        return X
