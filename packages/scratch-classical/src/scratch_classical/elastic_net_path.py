r"""scikit-learn's path functions for lasso and elastic net, their grid of alphas and the convergence warning.

The problem is eq. 1 of :mod:`.elastic_net`.

Shapes: I samples, D features, K outputs, A values of alpha.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from .arrays import MatrixLike, dense, lay_out, precision
from .coordinate_descent import descend_path
from .moments import arranged, moments_of, sparse_moments


def warn_unless_converged(
    gap_K: np.ndarray, tol: float, y: np.ndarray, sample_weight: np.ndarray | None, fit_intercept: bool
) -> None:
    """Warn as scikit-learn does if a gap is well above tol times the mean square of y."""
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    y_IK = np.asarray(y, np.float64).reshape(len(y), -1)
    error_IK = y_IK - (weight @ y_IK / weight.sum() if fit_intercept else 0)
    allowed = max(tol, float(np.finfo(np.asarray(y).dtype).eps) if np.asarray(y).dtype.kind == "f" else 0)
    allowed_K = 10 * allowed * (weight @ error_IK**2) / weight.sum()
    if np.any(gap_K > allowed_K):
        warnings.warn(
            "Objective did not converge. You might want to increase the number of iterations (max_iter), or scale the "
            f"features. Duality gap {gap_K.max():.3e}, tolerance {allowed_K.min() / 10:.3e}.",
            ConvergenceWarning,
            stacklevel=3,
        )


def alpha_grid(
    cross: np.ndarray, total_weight: float, l1_ratio: float, eps: float, count: int, positive: bool = False
) -> np.ndarray:
    """Return ``count`` alphas, evenly spaced in logarithm, from the smallest that gives only zeros to eps times it."""
    if l1_ratio == 0:
        raise ValueError(
            "Automatic alpha grid generation is not supported for l1_ratio=0. Please supply a grid by providing your "
            "estimator with the appropriate `alphas=` argument."
        )
    largest = (cross if positive else np.abs(cross)).max() / (total_weight * l1_ratio)
    if largest <= np.finfo(np.float64).resolution:
        return np.full(count, np.finfo(np.float64).resolution)
    return np.geomspace(largest, largest * eps, num=count)


def enet_path(
    X: MatrixLike,
    y: ArrayLike,
    *,
    l1_ratio: float = 0.5,
    eps: float = 1e-3,
    n_alphas: int | str | None = "deprecated",
    alphas: ArrayLike | None = 100,
    precompute: bool | str | ArrayLike = "auto",
    Xy: ArrayLike | None = None,
    copy_X: bool = True,
    coef_init: ArrayLike | None = None,
    verbose: bool = False,
    return_n_iter: bool = False,
    positive: bool = False,
    check_input: bool = True,
    tol: float = 1e-4,
    max_iter: int = 1000,
    selection: str = "cyclic",
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, ...] | tuple[np.ndarray, np.ndarray, np.ndarray, list]:
    """Return (alphas [A], coefs [D, A] or [K, D, A], dual gaps [A] or [K, A]) of eq. 1 without an intercept.

    ``alphas`` is a number of alphas or the alphas themselves, in any order; they are returned from large to small. With
    ``return_n_iter`` the numbers of sweeps come fourth. precompute, Xy, copy_X, verbose, check_input, selection and
    random_state are accepted and not used. The rest is as in
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.enet_path.html.
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
            m = moments_of(arranged(lay_out(X), X, y, None, False), fit_intercept=False)
        cross = np.asarray(m.cross)[:num_features]
        grid = np.asarray(100 if alphas is None or isinstance(alphas, str) else alphas, np.float64)
        if grid.ndim == 0:
            grid = alpha_grid(cross, num_samples, l1_ratio, eps, int(grid), positive)
        alphas = np.sort(grid)[::-1]
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
        coefs = np.stack([np.asarray(found.coef)[:, :num_features].T for found in results])
        gaps = np.stack([np.asarray(found.gap) for found in results]) / num_samples
        counts = np.stack([np.asarray(found.sweeps) for found in results])
    warn_unless_converged(gaps.max(1), tol, y, None, False)
    if y.ndim == 1:
        coefs, gaps, counts = coefs[0], gaps[0], counts[0]
    return (alphas, coefs, gaps, counts.tolist()) if return_n_iter else (alphas, coefs, gaps)


def lasso_path(
    X: MatrixLike, y: ArrayLike, **options: Any
) -> tuple[np.ndarray, ...] | tuple[np.ndarray, np.ndarray, np.ndarray, list]:
    r"""Return :func:`enet_path` with $\rho = 1$; the options are the other parameters of that function."""
    return enet_path(X, y, l1_ratio=1.0, **options)
