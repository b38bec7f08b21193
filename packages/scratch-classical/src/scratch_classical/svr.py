"""Support vector regression behind scikit-learn's interface; :mod:`.smo` states the problem and solves it.

Shapes: I samples, J queries, D features.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin

from .arrays import MatrixLike
from .constraints import NOT_NEGATIVE, Constraints
from .support_vectors import MACHINE_CONSTRAINTS, Kernel, SupportVectorMachine


class SVR(RegressorMixin, SupportVectorMachine):
    """Support vector regression, as in sklearn.svm.SVR.

    Parameters and attributes are those of https://scikit-learn.org/stable/modules/generated/sklearn.svm.SVR.html, with
    the differences in gamma, tol, cache_size, shrinking and verbose that :class:`.svm.SVC` lists.
    """

    _parameter_constraints: ClassVar[Constraints] = {**MACHINE_CONSTRAINTS, "epsilon": NOT_NEGATIVE}

    def __init__(
        self,
        *,
        kernel: Kernel = "rbf",
        degree: int = 3,
        gamma: float | str = "scale",
        coef0: float = 0.0,
        tol: float = 1e-3,
        C: float = 1.0,
        epsilon: float = 0.1,
        shrinking: bool = True,
        cache_size: float = 200,
        verbose: bool = False,
        max_iter: int = -1,
    ) -> None:
        self.kernel = kernel
        self.degree = degree
        self.gamma = gamma
        self.coef0 = coef0
        self.tol = tol
        self.C = C
        self.epsilon = epsilon
        self.shrinking = shrinking
        self.cache_size = cache_size
        self.verbose = verbose
        self.max_iter = max_iter

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "SVR":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and targets y [I]."""
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        bound_I = self.C * (np.ones(len(y)) if sample_weight is None else np.maximum(sample_weight, 0))
        fit = self._solve(X, y.astype(np.float64), -bound_I, bound_I, self.epsilon)
        self.support_ = np.flatnonzero(fit.beta).astype(np.int32)
        self.n_support_ = np.array([len(self.support_)], np.int32)
        self.dual_coef_ = fit.beta[None, self.support_].astype(X.dtype)
        self.intercept_ = np.array([fit.bias], X.dtype)
        self.n_iter_ = fit.steps
        self._keep_vectors(X)
        self.fit_status_ = int(not fit.converged)
        return self

    def predict(self, X: MatrixLike) -> np.ndarray:
        """Return the predicted targets [J]."""
        X = self._validated_queries(X)
        return self._scores(X, self._pair_coefficients())[:, 0] + self.intercept_[0]
