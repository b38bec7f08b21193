"""Lasso and elastic net by coordinate descent on the Gram matrix; paths and cross-validation.

$$ \\min_{w, b} \\frac{1}{2n} \\sum_i \\omega_i (y_i - x_i^\\top w - b)^2 + \\alpha\\rho \\|w\\|_1
   + \\frac{\\alpha(1-\\rho)}{2} \\|w\\|^2, \\qquad n = \\sum_i \\omega_i \\tag{1} $$

With the centred moments $G = X^\\top X$, $q = X^\\top y$ of :mod:`.moments`, and with $\\lambda_1 = n\\alpha\\rho$,
$\\lambda_2 = n\\alpha(1-\\rho)$, this is $n^{-1}$ times

$$ P(w) = \\tfrac12 \\|y\\|^2 - q^\\top w + \\tfrac12 w^\\top G w + \\lambda_1 \\|w\\|_1
   + \\tfrac{\\lambda_2}{2}\\|w\\|^2 \\tag{2} $$

Coordinate descent minimises it one coordinate at a time, keeping $g = q - Gw$ up to date (Friedman, Hastie and
Tibshirani 2010, section 2.2). Coordinates with $w_j = 0$ and $|g_j| \\le \\lambda_1$ do not move and are passed over:

$$ w_j \\leftarrow \\frac{S_{\\lambda_1}(g_j + G_{jj} w_j)}{G_{jj} + \\lambda_2}, \\qquad
   S_\\lambda(z) = \\operatorname{sign}(z)\\max(|z| - \\lambda, 0) \\tag{3} $$

It stops on the duality gap. With $r = y - Xw$, $h = g - \\lambda_2 w$ and
$c = \\min(1, \\lambda_1 / \\|h\\|_\\infty)$ the point $c\\,r$ is dual feasible, and

$$ \\text{gap} = \\tfrac{1 + c^2}{2} \\left(\\|r\\|^2 + \\lambda_2\\|w\\|^2\\right) + \\lambda_1 \\|w\\|_1 - c\\,
r^\\top y \\tag{4} $$

**Derivatives.** On the support $S$ the stationarity condition $G_{SS} w_S + \\lambda_2 w_S = q_S - \\lambda_1
\\operatorname{sign}(w_S)$ holds in a neighbourhood, so by the implicit function theorem

$$ (G_{SS} + \\lambda_2 I)\\, dw_S = dq_S - dG_{S}\\, w - d\\lambda_1 \\operatorname{sign}(w_S) - d\\lambda_2\\,
w_S \\tag{5} $$

and no iteration is differentiated.

**Many features, few of them used.** Eq. 2 restricted to a working set of columns needs only their Gram matrix. One
pass over X then gives the exact gap of the full problem and the columns that violate optimality, which join the set.

Shapes: I samples, R rows of a block, D features, K outputs, P columns of a working set, A values of alpha.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils import check_array
from sklearn.utils.validation import _check_sample_weight

from .arrays import Rows, bucket, is_on_device, lay_out, pad, precision, refuse_non_finite, validated
from .base import LinearPredictor
from .moments import Moments, Sums, centered, moments, problem, sums, typical_row, typical_target
from .objective import soft_threshold


def duality_gap(
    coef_D: Any, left_D: Any, cross_D: Any, target: Any, l1: Any, l2: Any, positive: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return (gap of eq. 4, P of eq. 2), given $g$ = left_D. With l1 = 0: gradient norm squared over 2 l2."""
    square = jnp.maximum(target - coef_D @ (cross_D + left_D), 0)  # |r|^2
    aligned = target - coef_D @ cross_D  # r'y
    norm = coef_D @ coef_D
    slope_D = left_D - l2 * coef_D  # h
    steepest = jnp.max(slope_D if positive else jnp.abs(slope_D))
    c = jnp.where(steepest > l1, l1 / jnp.where(steepest > l1, steepest, 1), 1)
    absolute = jnp.abs(coef_D).sum()
    gap = 0.5 * (1 + c**2) * (square + l2 * norm) + l1 * absolute - c * aligned
    if positive:
        slope_D = jnp.where(coef_D > 0, slope_D, jnp.maximum(slope_D, 0))
    smooth_gap = (slope_D @ slope_D) / jnp.where(l2 > 0, 2 * l2, 1)
    return jnp.where(l1 > 0, gap, smooth_gap), 0.5 * square + l1 * absolute + 0.5 * l2 * norm


@partial(jax.custom_jvp, nondiff_argnums=(8,))
def _descend(
    gram_DD: Any, cross_D: Any, target: Any, l1: Any, l2: Any, start_D: Any, tol: Any, max_iter: Any, positive: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    D = cross_D.shape[0]
    diagonal_D = jnp.diagonal(gram_DD)
    tiny = jnp.finfo(cross_D.dtype).eps

    def coordinate(position: Any, state: Any) -> Any:
        coef_D, left_D, order_D, moved = state
        j = order_D[position]
        old, curvature = coef_D[j], diagonal_D[j]
        reached = left_D[j] + curvature * old
        new = soft_threshold(reached, l1) / (curvature + l2)  # eq. 3
        if positive:
            new = jnp.maximum(new, 0)
        new = jnp.where(curvature > 0, new, 0)
        left_D = left_D - (new - old) * gram_DD[j]
        return coef_D.at[j].set(new), left_D, order_D, jnp.maximum(moved, jnp.abs(new - old))

    def sweep(state: Any) -> Any:
        coef_D, left_D, *_, count = state
        visit_D = (coef_D != 0) | ((left_D if positive else jnp.abs(left_D)) > l1)
        order_D = jnp.nonzero(visit_D, size=D, fill_value=0)[0].astype(jnp.int32)
        begin = coef_D, left_D, order_D, jnp.zeros_like(target)
        coef_D, left_D, _, moved = jax.lax.fori_loop(0, visit_D.sum(dtype=jnp.int32), coordinate, begin)
        gap, value = duality_gap(coef_D, left_D, cross_D, target, l1, l2, positive)
        still = moved <= jnp.maximum(tol, tiny) * jnp.max(jnp.abs(coef_D))
        close = (l1 > 0) & (gap <= 1e-6 * value)
        done = (gap <= jnp.maximum(tol, tiny) * target) & (still | close)
        return coef_D, left_D, gap, done | (moved == 0), count + 1

    left_D = cross_D - gram_DD @ start_D
    gap, _ = duality_gap(start_D, left_D, cross_D, target, l1, l2, positive)
    begin = start_D, left_D, gap, jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    coef_D, _, gap, _, count = jax.lax.while_loop(lambda s: ~s[3] & (s[4] < max_iter), sweep, begin)
    return coef_D, gap, count


@_descend.defjvp
def _descend_jvp(positive: bool, primals: Any, tangents: Any) -> Any:
    gram_DD, _, _, _, l2, *_ = primals
    d_gram, d_cross, _, d_l1, d_l2, *_ = tangents
    coef_D, gap, count = _descend(*primals, positive)
    on_D = (coef_D != 0).astype(coef_D.dtype)
    system = gram_DD * on_D * on_D[:, None] + jnp.diag(l2 * on_D + 1 - on_D)
    right_D = on_D * (d_cross - d_gram @ coef_D - d_l1 * jnp.sign(coef_D) - d_l2 * coef_D)  # eq. 5
    d_coef = jax.scipy.linalg.solve(system, right_D, assume_a="sym")
    return (coef_D, gap, count), (d_coef, jnp.zeros_like(gap), np.zeros(count.shape, jax.dtypes.float0))


@partial(jax.jit, static_argnames="positive")
def descend(
    gram_DD: Any,
    cross_D: Any,
    target: Any,
    l1: Any,
    l2: Any,
    start_D: Any,
    tol: Any = 1e-4,
    max_iter: Any = 1000,
    positive: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Minimise eq. 2 from ``start_D``. Return (coef [D], gap of eq. 4, number of sweeps).

    Stops when gap <= tol * target (target is $\\|y\\|^2$) and either the gap is below 1e-6 of the objective or the
    last sweep moved no coefficient by more than tol times the largest. Differentiable by eq. 5; vmap over any array.
    """
    dtype = cross_D.dtype
    target, l1, l2, tol = (jnp.asarray(v, dtype) for v in (target, l1, l2, tol))
    return _descend(gram_DD, cross_D, target, l1, l2, start_D, tol, jnp.asarray(max_iter, jnp.int32), positive)


@partial(jax.jit, static_argnames="positive")
def descend_path(
    gram_DD: Any,
    cross_D: Any,
    target: Any,
    l1_A: Any,
    l2_A: Any,
    start_D: Any,
    tol: Any = 1e-4,
    max_iter: Any = 1000,
    positive: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Minimise eq. 2 for each (l1, l2) in turn, each from the solution before. Return arrays with a leading A."""

    def step(coef_D: Any, penalties: Any) -> Any:
        result = descend(gram_DD, cross_D, target, *penalties, coef_D, tol, max_iter, positive)
        return result[0], result

    return jax.lax.scan(step, start_D, (l1_A, l2_A))[1]


def _pure_problem(X: Any, y: Any, sample_weight: Any, fit_intercept: bool) -> Moments:
    X = jnp.asarray(X)
    X = X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))
    return moments(X, jnp.asarray(y, X.dtype)[:, None], sample_weight, fit_intercept)


@partial(jax.jit, static_argnames=("fit_intercept", "positive"))
def solve_elastic_net(
    X: Any,
    y: Any,
    alpha: Any = 1.0,
    l1_ratio: Any = 0.5,
    *,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    positive: bool = False,
    tol: Any = 1e-8,
    max_iter: Any = 10_000,
) -> tuple[jax.Array, jax.Array]:
    """Return the minimiser (coef [D], intercept) of eq. 1 for X [I, D] and y [I].

    Differentiable in X, y, alpha, l1_ratio and sample_weight (eq. 5); vmap over any of them.
    """
    m = _pure_problem(X, y, sample_weight, fit_intercept)
    l1, l2 = m.weight * alpha * l1_ratio, m.weight * alpha * (1 - l1_ratio)
    start_D = jnp.zeros_like(m.mean_x)
    coef_D, _, _ = descend(m.gram, m.cross[:, 0], m.target[0], l1, l2, start_D, tol, max_iter, positive)
    return coef_D, m.mean_y[0] - m.mean_x @ coef_D


def solve_lasso(X: Any, y: Any, alpha: Any = 1.0, **options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the minimiser (coef [D], intercept) of eq. 1 with $\\rho = 1$; options as of solve_elastic_net."""
    return solve_elastic_net(X, y, alpha, 1.0, **options)


@partial(jax.jit, static_argnames=("fit_intercept", "positive"))
def solve_elastic_net_path(
    X: Any,
    y: Any,
    alphas_A: Any,
    l1_ratio: Any = 0.5,
    *,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    positive: bool = False,
    tol: Any = 1e-8,
    max_iter: Any = 10_000,
) -> tuple[jax.Array, jax.Array]:
    """Return (coef [A, D], intercept [A]) for every alpha, each started from the one before; vmap for folds."""
    m = _pure_problem(X, y, sample_weight, fit_intercept)
    n_alphas = m.weight * jnp.asarray(alphas_A, m.gram.dtype)
    start_D = jnp.zeros_like(m.mean_x)
    penalties = n_alphas * l1_ratio, n_alphas * (1 - l1_ratio)
    coef_AD, *_ = descend_path(m.gram, m.cross[:, 0], m.target[0], *penalties, start_D, tol, max_iter, positive)
    return coef_AD, m.mean_y[0] - coef_AD @ m.mean_x


@partial(jax.jit, static_argnames=("fit_intercept", "positive"))
def _fit_gram(
    rows: Rows,
    y_IK: Any,
    weight_I: Any,
    shift_x: Any,
    shift_y: Any,
    l1: Any,
    l2: Any,
    start_KD: Any,
    tol: Any,
    max_iter: Any,
    fit_intercept: bool,
    positive: bool,
) -> tuple[Any, ...]:
    """Return (coef [K, D], intercept [K], gap / n [K], sweeps [K], finite?, moments) from the whole Gram matrix."""
    m = centered(sums(rows, y_IK, weight_I, shift_x, shift_y), shift_x, shift_y, fit_intercept)

    def one(output: Any) -> Any:
        cross_D, target, start_D = output
        return descend(m.gram, cross_D, target, m.weight * l1, m.weight * l2, start_D, tol, max_iter, positive)

    coef_KD, gap_K, count_K = jax.lax.map(one, (m.cross.T, m.target, start_KD))
    finite = jnp.isfinite(jnp.diagonal(m.gram)).all() & jnp.isfinite(m.cross).all()
    return coef_KD, m.mean_y - coef_KD @ m.mean_x, gap_K / m.weight, count_K, finite, m


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


_WIDE = 256  # features from which on a working set pays


def _fit_working_set(
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
    picked_P = None
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
        coef_P, _, count = descend(
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
        if spent >= estimator.max_iter or inner_tol < np.finfo(X.dtype).eps:
            break
        if violating.any():
            missing = len(np.flatnonzero(coef_D)) + int(violating.sum())
            size = max(size + 128, -(-min(missing, 3 * size) // 128) * 128)
            ranking = np.where(violating, left, -np.inf) + 0 * left
            ranking[~violating] = left[~violating] - float(left.max()) - 1
        else:
            inner_tol *= 0.1
    return coef_D, mean_y - mean_x @ coef_D, gap / total, spent


class ElasticNet(LinearPredictor):
    """The elastic net: eq. 1 with $\\rho$ = ``l1_ratio``.

    Parameters and attributes are those of scikit-learn's class of this name. Coordinates are always visited in
    cyclic order: ``selection`` and ``random_state`` are accepted, and change nothing about the minimum.
    """

    n_iter_: Any

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        precompute: Any = False,
        max_iter: int = 1000,
        copy_X: bool = True,
        tol: float = 1e-4,
        warm_start: bool = False,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.precompute = precompute
        self.max_iter = max_iter
        self.copy_X = copy_X
        self.tol = tol
        self.warm_start = warm_start
        self.positive = positive
        self.random_state = random_state
        self.selection = selection

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ElasticNet":
        """Fit to X [I, D] and y [I] or [I, K]; each output is a problem of its own."""
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} must not be negative")
        if not 0 <= self.l1_ratio <= 1:
            raise ValueError(f"l1_ratio={self.l1_ratio} must lie between 0 and 1")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        K, num_features, dtype = (1 if y.ndim == 1 else y.shape[1]), X.shape[1], np.dtype(X.dtype)
        start_KD = np.zeros((K, num_features), dtype)
        if self.warm_start and hasattr(self, "coef_"):
            start_KD = np.atleast_2d(np.asarray(self.coef_, dtype))
        with precision(dtype):
            layout = lay_out(X)
            l1, l2 = dtype.type(self.alpha * self.l1_ratio), dtype.type(self.alpha * (1 - self.l1_ratio))
            data = problem(layout, X, y, sample_weight, self.fit_intercept)
            padded = layout.rows.tail.shape[1]
            start_KD = np.pad(start_KD, ((0, 0), (0, padded - num_features)))
            found = None
            if num_features > _WIDE and K == 1 and l1 > 0 and not is_on_device(X):
                found = _fit_working_set(self, X, data, l1, l2, start_KD[0], self.fit_intercept)
            if found is not None:
                coef_KD, intercept_K, gap_K, count_K = (np.asarray(v)[None] for v in found)
            else:
                coef_KD, intercept_K, gap_K, count_K, finite, _ = _fit_gram(
                    *data, l1, l2, start_KD, dtype.type(self.tol), np.int32(self.max_iter),
                    fit_intercept=bool(self.fit_intercept), positive=bool(self.positive),
                )  # fmt: skip
                if not finite:
                    refuse_non_finite(self, X)
            coef = np.array(coef_KD, dtype)[:, :num_features]
            intercept, gap = np.array(intercept_K, dtype), np.array(gap_K, np.float64)
            counts = np.maximum(np.array(count_K), 1)
        _warn_unless_converged(gap, self.tol, y, sample_weight, self.fit_intercept)
        single = y.ndim == 1
        self.coef_ = coef[0] if K == 1 else coef
        self.intercept_ = 0.0 if not self.fit_intercept else intercept[0] if single else intercept
        self.dual_gap_ = float(gap[0]) if K == 1 else gap
        self.n_iter_ = int(counts[0]) if K == 1 else [int(c) for c in counts]
        return self

    @property
    def sparse_coef_(self) -> Any:
        """The coefficients as a sparse matrix."""
        from scipy import sparse  # scikit-learn and JAX both stand on it

        return sparse.csr_matrix(self.coef_)


class Lasso(ElasticNet):
    """The lasso: eq. 1 with $\\rho = 1$. Parameters and attributes are those of scikit-learn's class of this name."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        precompute: Any = False,
        copy_X: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-4,
        warm_start: bool = False,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        super().__init__(
            alpha,
            l1_ratio=1.0,
            fit_intercept=fit_intercept,
            precompute=precompute,
            copy_X=copy_X,
            max_iter=max_iter,
            tol=tol,
            warm_start=warm_start,
            positive=positive,
            random_state=random_state,
            selection=selection,
        )


def _warn_unless_converged(
    gap_K: np.ndarray, tol: float, y: np.ndarray, sample_weight: Any, fit_intercept: bool
) -> None:
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    y_IK = np.asarray(y, np.float64).reshape(len(y), -1)
    error_IK = y_IK - (weight @ y_IK / weight.sum() if fit_intercept else 0)
    allowed = max(tol, float(np.finfo(np.asarray(y).dtype).eps) if np.asarray(y).dtype.kind == "f" else 0)
    allowed_K = 10 * allowed * (weight @ error_IK**2) / weight.sum()
    if np.any(gap_K > allowed_K):
        warnings.warn(
            f"Objective did not converge. Duality gap {gap_K.max():.3e}, tolerance {allowed_K.min() / 10:.3e}. "
            "Increase max_iter, or scale the features.",
            ConvergenceWarning,
            stacklevel=3,
        )


def alpha_grid(cross: np.ndarray, total_weight: float, l1_ratio: float, eps: float, count: int) -> np.ndarray:
    """Return ``count`` alphas, evenly spaced in logarithm, from the smallest with no coefficient to eps of it."""
    if l1_ratio == 0:
        raise ValueError("Automatic alpha grid generation is not supported for l1_ratio=0. Please supply a grid.")
    largest = np.abs(cross).max() / (total_weight * l1_ratio)
    if largest <= np.finfo(np.float64).resolution:
        return np.full(count, np.finfo(np.float64).resolution)
    return np.geomspace(largest, largest * eps, num=count)


def enet_path(
    X: Any,
    y: Any,
    *,
    l1_ratio: float = 0.5,
    eps: float = 1e-3,
    n_alphas: Any = "deprecated",
    alphas: Any = 100,
    precompute: Any = "auto",
    Xy: Any = None,
    copy_X: bool = True,
    coef_init: Any = None,
    verbose: bool = False,
    return_n_iter: bool = False,
    positive: bool = False,
    check_input: bool = True,
    tol: float = 1e-4,
    max_iter: int = 1000,
    **params: Any,
) -> tuple[Any, ...]:
    """Return (alphas [A], coefs [D, A] or [K, D, A], dual gaps [A] or [K, A]) of eq. 1 without an intercept.

    ``alphas`` is a number of alphas or the alphas themselves; with ``return_n_iter`` the sweeps are returned too.
    """
    X = check_array(X, accept_sparse=True, dtype=(np.float64, np.float32))
    X = X.toarray() if hasattr(X, "toarray") else X
    y = check_array(y, ensure_2d=False, dtype=X.dtype)
    if len(y) != len(X):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[len(X), len(y)]}")
    if not isinstance(n_alphas, str) and n_alphas is not None:
        alphas = n_alphas
    num_features, dtype = X.shape[1], X.dtype
    with precision(dtype):
        layout = lay_out(X)
        rows, y_IK, weight_I, shift_x, shift_y = problem(layout, X, y, None, False)
        s = _sums(rows, y_IK, weight_I, shift_x, shift_y)
        cross = np.asarray(s.cross)[:num_features]
        if alphas is None or isinstance(alphas, str):
            alphas = 100
        if np.ndim(alphas) == 0:
            alphas = alpha_grid(cross, len(X), l1_ratio, eps, int(alphas))
        alphas = np.sort(np.asarray(alphas, np.float64))[::-1]
        scaled = (alphas * len(X)).astype(dtype)
        K, padded = cross.shape[1], rows.tail.shape[1]
        start_KD = np.zeros((K, padded), dtype)
        if coef_init is not None:
            start_KD[:, :num_features] = np.reshape(coef_init, (K, num_features))
        results = [
            descend_path(
                s.gram, s.cross[:, k], s.target[k], scaled * dtype.type(l1_ratio), scaled * dtype.type(1 - l1_ratio),
                start_KD[k], tol, max_iter, positive=positive,
            )
            for k in range(K)
        ]  # fmt: skip
        coefs = np.stack([np.asarray(coef_AD)[:, :num_features].T for coef_AD, _, _ in results])
        gaps = np.stack([np.asarray(gap_A) for _, gap_A, _ in results]) / len(X)
        counts = np.stack([np.maximum(np.asarray(count_A), 1) for *_, count_A in results])
    if y.ndim == 1:
        coefs, gaps, counts = coefs[0], gaps[0], counts[0]
    return (alphas, coefs, gaps, counts.tolist()) if return_n_iter else (alphas, coefs, gaps)


def lasso_path(X: Any, y: Any, **options: Any) -> tuple[Any, ...]:
    """Return :func:`enet_path` with $\\rho = 1$."""
    return enet_path(X, y, l1_ratio=1.0, **options)


_sums = jax.jit(sums)


@jax.jit
def _fold_errors(test: Sums, mean_x: Any, mean_y: Any, shift_x: Any, shift_y: Any, coef_AD: Any) -> jax.Array:
    """Return the mean squared error of every coefficient vector on a fold, from the sums over the fold."""
    dx, dy = mean_x - shift_x, mean_y - shift_y
    gram = test.gram - jnp.outer(test.x, dx) - jnp.outer(dx, test.x) + test.weight * jnp.outer(dx, dx)
    cross = test.cross[:, 0] - test.x * dy[0] - dx * test.y[0] + test.weight * dx * dy[0]
    target = test.target[0] - 2 * test.y[0] * dy[0] + test.weight * dy[0] ** 2
    squares = target - 2 * coef_AD @ cross + ((coef_AD @ gram) * coef_AD).sum(1)
    return squares / test.weight


class ElasticNetCV(LinearPredictor):
    """The elastic net with alpha (and ``l1_ratio``, if it is a list) chosen by cross-validation.

    Every sample is multiplied once: the Gram matrices of the test folds are added up, and each training fold's is
    the total minus its own. Parameters and attributes are those of scikit-learn's class of this name.
    """

    n_iter_: Any
    dual_gap_: Any

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        precompute: Any = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        cv: Any = None,
        copy_X: bool = True,
        verbose: Any = 0,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.precompute = precompute
        self.max_iter = max_iter
        self.tol = tol
        self.cv = cv
        self.copy_X = copy_X
        self.verbose = verbose
        self.n_jobs = n_jobs
        self.positive = positive
        self.random_state = random_state
        self.selection = selection

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ElasticNetCV":
        """Choose alpha by cross-validation, then fit to all of X [I, D] and y [I]."""
        X, y = validated(self, X, y, need_y=True, y_numeric=True)
        X = np.asarray(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=X.dtype)
        dtype = X.dtype
        folds = list(check_cv(self.cv).split(X, y))
        y = y.astype(dtype)
        with precision(dtype):
            shift_x, shift_y = typical_row(X, self.fit_intercept), typical_target(y[:, None], self.fit_intercept)

            def sums_over(picked: Any) -> Sums:
                if picked[-1] - picked[0] == len(picked) - 1 and (np.diff(picked) == 1).all():
                    picked = slice(picked[0], picked[-1] + 1)  # a view, not a copy
                weights = None if sample_weight is None else sample_weight[picked]
                return _host_sums(X[picked], y[picked], weights, shift_x, shift_y)

            tests = [sums_over(test) for _, test in folds]
            covered = np.sort(np.concatenate([test for _, test in folds]))
            if np.array_equal(covered, np.arange(len(y))) and all(len(a) + len(b) == len(y) for a, b in folds):
                total = Sums(*(sum(parts) for parts in zip(*tests)))
                trains = [Sums(*(whole - part for whole, part in zip(total, test))) for test in tests]
            else:
                total = sums_over(np.arange(len(y)))
                trains = [sums_over(train) for train, _ in folds]
            self._select_and_fit(total, trains, tests, X.shape[1], shift_x, shift_y, y, sample_weight)
        return self

    def _select_and_fit(
        self,
        total: Sums,
        trains: list[Sums],
        tests: list[Sums],
        num_features: int,
        shift_x: np.ndarray,
        shift_y: np.ndarray,
        y: np.ndarray,
        sample_weight: Any,
    ) -> None:
        """Trace the path of every fold, average the errors, and fit to all samples at the best alpha."""
        dtype = total.gram.dtype
        fit_intercept, positive = bool(self.fit_intercept), bool(self.positive)
        shift_x = pad(shift_x, total.gram.shape[0])
        whole = _centered(total, shift_x, shift_y, fit_intercept=fit_intercept)
        ratios_L = np.atleast_1d(np.asarray(self.l1_ratio, np.float64))
        if np.ndim(self.alphas) == 0:
            count = 100 if self.alphas is None else int(self.alphas)
            cross_D = np.asarray(whole.cross, np.float64)[:, 0]
            grids_LA = np.stack([alpha_grid(cross_D, float(whole.weight), r, self.eps, count) for r in ratios_L])
        else:
            grids_LA = np.tile(np.sort(np.asarray(self.alphas, np.float64))[::-1], (len(ratios_L), 1))
        errors_LAF = np.empty((*grids_LA.shape, len(tests)))
        coefs = {}
        for f, (train, test) in enumerate(zip(trains, tests)):
            m = _centered(train, shift_x, shift_y, fit_intercept=fit_intercept)
            for l, (ratio, alphas_A) in enumerate(zip(ratios_L, grids_LA)):
                n_alphas = alphas_A * float(m.weight)
                coef_AD, *_ = descend_path(
                    m.gram, m.cross[:, 0], m.target[0],
                    (n_alphas * ratio).astype(dtype), (n_alphas * (1 - ratio)).astype(dtype),
                    np.zeros(len(shift_x), dtype), dtype.type(self.tol), np.int32(self.max_iter), positive=positive,
                )  # fmt: skip
                errors_LAF[l, :, f] = _fold_errors(test, m.mean_x, m.mean_y, shift_x, shift_y, coef_AD)
                coefs[l, f] = coef_AD
        weight_F = np.array([test.weight for test in tests], np.float64)
        average_LA = errors_LAF.mean(-1) if sample_weight is None else errors_LAF @ weight_F / weight_F.sum()
        l, a = (int(i) for i in np.unravel_index(np.argmin(average_LA), average_LA.shape))
        self.l1_ratio_, self.alpha_ = float(ratios_L[l]), float(grids_LA[l, a])
        several = np.ndim(self.l1_ratio) > 0
        self.alphas_ = grids_LA if several and np.ndim(self.alphas) == 0 else grids_LA[0]
        self.mse_path_ = errors_LAF if several else errors_LAF[0]

        # The folds' average is close to the answer.
        start_D = np.mean([np.asarray(coefs[l, f])[a] for f in range(len(tests))], axis=0)
        n_alpha = self.alpha_ * float(whole.weight)
        coef_D, gap, count = descend(
            whole.gram, whole.cross[:, 0], whole.target[0],
            dtype.type(n_alpha * self.l1_ratio_), dtype.type(n_alpha * (1 - self.l1_ratio_)),
            start_D, dtype.type(self.tol), np.int32(self.max_iter), positive=positive,
        )  # fmt: skip
        self.coef_ = np.array(coef_D)[:num_features]
        mean_x, mean_y = np.asarray(whole.mean_x)[:num_features], np.asarray(whole.mean_y)[0]
        self.intercept_ = dtype.type(mean_y - mean_x @ self.coef_) if fit_intercept else 0.0
        self.dual_gap_ = float(gap) / float(whole.weight)
        self.n_iter_ = max(int(count), 1)
        _warn_unless_converged(np.array([self.dual_gap_]), self.tol, y, sample_weight, fit_intercept)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


class LassoCV(ElasticNetCV):
    """The lasso with alpha chosen by cross-validation. Parameters and attributes are those of scikit-learn's class."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        precompute: Any = "auto",
        max_iter: int = 1000,
        tol: float = 1e-4,
        copy_X: bool = True,
        cv: Any = None,
        verbose: Any = False,
        n_jobs: int | None = None,
        positive: bool = False,
        random_state: Any = None,
        selection: str = "cyclic",
    ) -> None:
        super().__init__(
            l1_ratio=1.0,
            eps=eps,
            alphas=alphas,
            fit_intercept=fit_intercept,
            precompute=precompute,
            max_iter=max_iter,
            tol=tol,
            cv=cv,
            copy_X=copy_X,
            verbose=verbose,
            n_jobs=n_jobs,
            positive=positive,
            random_state=random_state,
            selection=selection,
        )


_centered = jax.jit(centered, static_argnames="fit_intercept")


def _host_sums(X: np.ndarray, y: np.ndarray, sample_weight: Any, shift_x: np.ndarray, shift_y: np.ndarray) -> Sums:
    """Return the sums around a given shift as numpy arrays, the features padded to their bucket."""
    D = X.shape[1]
    layout = lay_out(X)
    width, padded = layout.rows.tail.shape[1], bucket(D)
    weight = np.ones(len(y), X.dtype) if sample_weight is None else sample_weight
    s = _sums(layout.rows, layout.arrange(y[:, None]), layout.arrange(weight), pad(shift_x, width), shift_y)
    gram, cross, target, x, total_y, total = (np.asarray(v) for v in s)
    return Sums(
        pad(gram[:D, :D], padded, padded), pad(cross[:D], padded, 1), target, pad(x[:D], padded), total_y, total
    )
