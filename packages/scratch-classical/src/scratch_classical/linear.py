r"""The estimators of :mod:`.least_squares`: linear and ridge regression.

$$ \min_{w, b} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha \|w\|^2 \tag{1} $$

A sparse X with no fewer samples than features stays sparse, unless the problem is so ill-conditioned that it needs
an orthogonal factorisation.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .arrays import MatrixLike
from .base import LinearPredictor
from .constraints import COUNT, FLAG, JOBS, NOT_NEGATIVE, SEED, Constraints, one_of
from .squares_fit import fit_squares


class LinearRegression(LinearPredictor):
    """Least squares: eq. 1 with alpha = 0, as in sklearn.linear_model.LinearRegression.

    It solves the normal equations, or uses an orthogonal factorisation where they would lose digits. Parameters and
    attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LinearRegression.html, with these
    differences:

    copy_X, tol, n_jobs: accepted and not used. X is never changed, and the minimum is found directly.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        "fit_intercept": FLAG,
        "copy_X": FLAG,
        "tol": NOT_NEGATIVE,
        "n_jobs": JOBS,
        "positive": FLAG,
    }

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

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "LinearRegression":
        """Fit to X [I, D] and y [I] or [I, K]."""
        self._validate_params()
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        found = fit_squares(
            X, y, sample_weight, 0.0,
            fit_intercept=bool(self.fit_intercept), positive=self.positive, estimator_name=type(self).__name__,
        )  # fmt: skip
        self.coef_, self.intercept_ = found.coef, found.intercept
        sigma = found.singular
        if not self.positive and sigma is not None:
            self.singular_ = sigma
            cutoff = np.finfo(sigma.dtype).eps * max(X.shape) * sigma[:1].max(initial=0)
            self.rank_ = int((sigma > cutoff).sum())
        return self


class Ridge(LinearPredictor):
    """Ridge regression: eq. 1, as in sklearn.linear_model.Ridge.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.Ridge.html, with these differences:

    solver: takes the same names and changes nothing, because the minimiser is unique and is always found directly.
    solver_: equals ``solver``, or for "auto" names the method that was used: "cholesky", "svd" where the normal
        equations would lose too many digits, or "lbfgs" for ``positive=True`` (in fact an active-set method).
    copy_X, max_iter, tol, random_state: accepted and not used. X is never changed.
    """

    n_iter_: np.ndarray
    _parameter_constraints: ClassVar[Constraints] = {
        "alpha": [*NOT_NEGATIVE, "array-like"],
        "fit_intercept": FLAG,
        "copy_X": FLAG,
        "max_iter": [*COUNT, None],
        "tol": NOT_NEGATIVE,
        "solver": [one_of("auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs")],
        "positive": FLAG,
        "random_state": SEED,
    }

    def __init__(
        self,
        alpha: ArrayLike = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        solver: str = "auto",
        positive: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.solver = solver
        self.positive = positive
        self.random_state = random_state

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "Ridge":
        """Fit to X [I, D] and y [I] or [I, K]; alpha may be one number per output."""
        self._validate_params()
        if not np.all(np.asarray(self.alpha) >= 0):
            raise ValueError(f"alpha={self.alpha} must not be negative, and not NaN")
        if self.positive and self.solver not in ("auto", "lbfgs"):
            raise ValueError(f"solver={self.solver!r} does not support positive fitting: choose 'auto' or 'lbfgs'")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        alpha = np.asarray(self.alpha, dtype=X.dtype)
        outputs = 1 if y.ndim == 1 else y.shape[1]
        if alpha.ndim and alpha.size not in (1, outputs):
            raise ValueError(f"Number of targets and number of penalties do not correspond: {alpha.size} != {outputs}")
        alpha = alpha.ravel()[0] if alpha.size == 1 else alpha
        found = fit_squares(
            X, y, sample_weight, alpha,
            fit_intercept=bool(self.fit_intercept), positive=self.positive, estimator_name=type(self).__name__,
        )  # fmt: skip
        self.coef_ = found.coef.ravel() if y.shape[1:] == (1,) else found.coef
        self.intercept_ = found.intercept
        self.solver_ = found.method if self.solver == "auto" else self.solver
        self.n_iter_ = np.ones(outputs, np.int32)  # one direct solution each
        return self
