r"""The estimators of :mod:`.coordinate_descent`: lasso and elastic net, and their paths.

$$ \min_{w, b} \frac{1}{2n} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha\rho \|w\|_1
   + \frac{\alpha(1-\rho)}{2} \|w\|^2, \qquad n = \sum_i \omega_i \tag{1} $$

The data enter through their second moments, taken in one pass; with many features of which few are used, through
those of a working set of columns (:mod:`.working_set`). A sparse X with no fewer samples than features stays sparse.

Shapes: I samples, D features, K outputs, A values of alpha.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from .arrays import dense, is_on_device, lay_out, precision, refuse_non_finite
from .base import LinearPredictor
from .coordinate_descent import descend, descend_path
from .moments import Moments, moments_of_rows, problem, sparse_moments
from .working_set import fit_working_set

_WIDE = 256  # features from which on a working set pays


@partial(jax.jit, static_argnames="positive")
def _fit_gram(m: Moments, l1: Any, l2: Any, start_KD: Any, tol: Any, max_iter: Any, positive: bool) -> tuple[Any, ...]:
    """Return (coef [K, D], intercept [K], gap / n [K], sweeps [K], finite?) from the whole Gram matrix."""

    def one(output: Any) -> Any:
        cross_D, target, start_D = output
        return descend(m.gram, cross_D, target, m.weight * l1, m.weight * l2, start_D, tol, max_iter, positive)

    coef_KD, gap_K, count_K = jax.lax.map(one, (m.cross.T, m.target, start_KD))
    finite = jnp.isfinite(jnp.diagonal(m.gram)).all() & jnp.isfinite(m.cross).all()
    return coef_KD, m.mean_y - coef_KD @ m.mean_x, gap_K / m.weight, count_K, finite


class ElasticNet(LinearPredictor):
    r"""The elastic net: eq. 1 with $\rho$ = ``l1_ratio``.

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
        X, y, sample_weight = self._validated_fit(X, y, sample_weight, keep_sparse=True)
        if sparse.issparse(X) and X.shape[0] < X.shape[1]:
            X = dense(X)
        K, num_features, dtype = (1 if y.ndim == 1 else y.shape[1]), X.shape[1], np.dtype(X.dtype)
        start_KD = np.zeros((K, num_features), dtype)
        if self.warm_start and hasattr(self, "coef_"):
            start_KD = np.atleast_2d(np.asarray(self.coef_, dtype))
        with precision(dtype):
            l1, l2 = dtype.type(self.alpha * self.l1_ratio), dtype.type(self.alpha * (1 - self.l1_ratio))
            found, data = None, None
            if not sparse.issparse(X):
                layout = lay_out(X)
                data = problem(layout, X, y, sample_weight, self.fit_intercept)
                start_KD = np.pad(start_KD, ((0, 0), (0, layout.rows.tail.shape[1] - num_features)))
                if num_features > _WIDE and K == 1 and l1 > 0 and not is_on_device(X):
                    found = fit_working_set(self, X, data, l1, l2, start_KD[0], self.fit_intercept)
            if found is not None:
                coef_KD, intercept_K, gap_K, count_K = (np.asarray(v)[None] for v in found)
            else:
                if data is None:
                    m = sparse_moments(X, y, sample_weight, self.fit_intercept)
                    start_KD = np.pad(start_KD, ((0, 0), (0, len(m.mean_x) - num_features)))
                else:
                    m = moments_of_rows(*data, fit_intercept=bool(self.fit_intercept))
                coef_KD, intercept_K, gap_K, count_K, finite = _fit_gram(
                    m, l1, l2, start_KD, dtype.type(self.tol), np.int32(self.max_iter), positive=bool(self.positive)
                )
                if not finite:
                    refuse_non_finite(self, X)
            coef = np.array(coef_KD, dtype)[:, :num_features]
            intercept, gap = np.array(intercept_K, dtype), np.array(gap_K, np.float64)
            counts = np.maximum(np.array(count_K), 1)
        warn_unless_converged(gap, self.tol, y, sample_weight, self.fit_intercept)
        single = y.ndim == 1
        self.coef_ = coef[0] if K == 1 else coef
        self.intercept_ = 0.0 if not self.fit_intercept else intercept[0] if single else intercept
        self.dual_gap_ = float(gap[0]) if K == 1 else gap
        self.n_iter_ = int(counts[0]) if K == 1 else [int(c) for c in counts]
        return self

    @property
    def sparse_coef_(self) -> Any:
        """The coefficients as a sparse matrix."""
        return sparse.csr_matrix(self.coef_)


class Lasso(ElasticNet):
    r"""The lasso: eq. 1 with $\rho = 1$. Parameters and attributes are those of scikit-learn's class of this name."""

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


def warn_unless_converged(
    gap_K: np.ndarray, tol: float, y: np.ndarray, sample_weight: Any, fit_intercept: bool
) -> None:
    """Warn as scikit-learn does if a gap is well above tol times the mean square of y."""
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


def alpha_grid(
    cross: np.ndarray, total_weight: float, l1_ratio: float, eps: float, count: int, positive: bool = False
) -> np.ndarray:
    """Return ``count`` alphas, evenly spaced in logarithm, from the smallest with no coefficient to eps of it."""
    if l1_ratio == 0:
        raise ValueError("Automatic alpha grid generation is not supported for l1_ratio=0. Please supply a grid.")
    largest = (cross if positive else np.abs(cross)).max() / (total_weight * l1_ratio)
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
    selection: str = "cyclic",
    random_state: Any = None,
) -> tuple[Any, ...]:
    """Return (alphas [A], coefs [D, A] or [K, D, A], dual gaps [A] or [K, A]) of eq. 1 without an intercept.

    ``alphas`` is a number of alphas or the alphas themselves; with ``return_n_iter`` the sweeps are returned too.
    """
    X = check_array(X, accept_sparse=True, dtype=(np.float64, np.float32))
    y = check_array(y, ensure_2d=False, dtype=X.dtype)
    num_samples, num_features = X.shape
    if len(y) != num_samples:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[num_samples, len(y)]}")
    if not isinstance(n_alphas, str) and n_alphas is not None:
        alphas = n_alphas
    dtype = X.dtype
    with precision(dtype):
        if sparse.issparse(X) and num_samples >= num_features:
            m = sparse_moments(X, y, None, False)
        else:
            X = dense(X)
            m = moments_of_rows(*problem(lay_out(X), X, y, None, False), fit_intercept=False)
        cross = np.asarray(m.cross)[:num_features]
        if alphas is None or isinstance(alphas, str):
            alphas = 100
        if np.ndim(alphas) == 0:
            alphas = alpha_grid(cross, num_samples, l1_ratio, eps, int(alphas), positive)
        alphas = np.sort(np.asarray(alphas, np.float64))[::-1]
        scaled = (alphas * num_samples).astype(dtype)
        K, padded = m.cross.shape[1], m.cross.shape[0]
        start_KD = np.zeros((K, padded), dtype)
        if coef_init is not None:
            start_KD[:, :num_features] = np.reshape(coef_init, (K, num_features))
        results = [
            descend_path(
                m.gram, m.cross[:, k], m.target[k], scaled * dtype.type(l1_ratio), scaled * dtype.type(1 - l1_ratio),
                start_KD[k], tol, max_iter, positive=positive,
            )
            for k in range(K)
        ]  # fmt: skip
        coefs = np.stack([np.asarray(coef_AD)[:, :num_features].T for coef_AD, _, _ in results])
        gaps = np.stack([np.asarray(gap_A) for _, gap_A, _ in results]) / num_samples
        counts = np.stack([np.maximum(np.asarray(count_A), 1) for *_, count_A in results])
    warn_unless_converged(gaps.max(1), tol, y, None, False)
    if y.ndim == 1:
        coefs, gaps, counts = coefs[0], gaps[0], counts[0]
    return (alphas, coefs, gaps, counts.tolist()) if return_n_iter else (alphas, coefs, gaps)


def lasso_path(X: Any, y: Any, **options: Any) -> tuple[Any, ...]:
    r"""Return :func:`enet_path` with $\rho = 1$."""
    return enet_path(X, y, l1_ratio=1.0, **options)
