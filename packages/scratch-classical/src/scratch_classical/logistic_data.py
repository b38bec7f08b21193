"""One data set laid out for the solver of logistic regression, and what the solver returns, as numpy arrays.

Shapes: I samples, S rows of the sample, D features, E = D + 1 (features and intercept), K rows of coefficients (1 for
two classes), A values of C.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .arrays import Array, bucket, is_on_device, lay_out, pad
from .logistic_solver import Minimum, Problem, minimise, minimise_path


class LogisticFit(NamedTuple):
    """coef [K, D], intercept [K], iterations, and the largest violation of optimality.

    A path has the axis [A], values of C, in front of each.
    """

    coef: np.ndarray
    intercept: np.ndarray
    iterations: np.ndarray
    violation: np.ndarray


class LogisticData:
    """One data set laid out for the solver.

    With ``scaling`` the intercept is penalised: it becomes the coefficient of one more column, which holds that number
    everywhere.
    """

    def __init__(
        self, X: Array, indices: np.ndarray, num_classes: int, fit_intercept: bool, scaling: float | None = None
    ) -> None:
        self.scaling, self.num_features = scaling, X.shape[1]
        self.intercept = bool(fit_intercept) and scaling is None
        if scaling is not None:
            X = np.concatenate([X, np.full((len(X), 1), scaling, X.dtype)], axis=1)
        I, D = X.shape
        self.dtype = np.dtype(X.dtype)
        num_rows = 1 if num_classes == 2 else num_classes
        self.layout = lay_out(X, block_rows=1 << min(13, max(7, 18 - (D - 1).bit_length())))
        width = self.layout.rows.tail.shape[1]
        y_IK = indices[:, None] if num_classes == 2 else indices[:, None] == np.arange(num_classes)
        self.y_IK = self.layout.arrange(y_IK.astype(self.dtype))
        self.stride = max(1, I // max(2000, 4 * D))
        sample = X[:: self.stride]
        self.sample = sample if is_on_device(X) else pad(np.asarray(sample), bucket(len(sample), 64), width)
        self.theta_KE = np.zeros((num_rows, width + 1), self.dtype)

    def start(self, coef_KD: np.ndarray, intercept_K: np.ndarray) -> None:
        """Start from given coefficients."""
        self.theta_KE[:, : self.num_features] = coef_KD
        if self.scaling is None:
            self.theta_KE[:, -1] = intercept_K
        else:
            self.theta_KE[:, self.num_features] = intercept_K / self.scaling

    def _problem(self, weight_I: np.ndarray) -> Problem:
        """Return what the solver takes, with these weights of the samples."""
        weight_I = weight_I.astype(self.dtype)
        sample_weight_S = pad(weight_I[:: self.stride], self.sample.shape[0])
        parts = self.y_IK, self.layout.arrange(weight_I), self.sample, sample_weight_S
        return Problem(self.layout.rows, *map(jnp.asarray, parts))

    def _tol(self, tol: float) -> np.floating:
        """Return ``tol`` in the dtype of the data, and at least four units of rounding."""
        return self.dtype.type(max(tol, 4 * np.finfo(self.dtype).eps))

    def _result(self, minimum: Minimum, centred: bool = False) -> LogisticFit:
        theta = np.array(minimum.theta)
        if centred:
            theta -= theta.mean(-2, keepdims=True)
        intercept = theta[..., -1] if self.scaling is None else theta[..., self.num_features] * self.scaling
        coef = theta[..., : self.num_features].copy()  # a copy, so that users may write to it
        return LogisticFit(coef, intercept.copy(), np.asarray(minimum.iterations), np.asarray(minimum.violation))

    def fit(
        self, weight_I: np.ndarray, C: float, l1_ratio: float, tol: float, max_iter: int, solver: str
    ) -> LogisticFit:
        """Minimise eq. 1 of the solver for one C.

        Without a penalty, adding one vector to the coefficients of every class changes no probability. The minimiser
        returned is the symmetric one, whose sum over the classes is zero.
        """
        number = self.dtype.type
        return self._result(
            minimise(
                self._problem(weight_I), self.theta_KE, number(C), number(l1_ratio), self._tol(tol),
                np.int32(max_iter), intercept=self.intercept, method=self._method(solver, l1_ratio),
            ),
            centred=bool(np.isinf(C)) and len(self.theta_KE) > 1,
        )  # fmt: skip

    def fit_path(
        self, weight_I: np.ndarray, C_A: np.ndarray, l1_ratio: float, tol: float, max_iter: int, solver: str
    ) -> LogisticFit:
        """Minimise eq. 1 for every C, each started from the minimum before it."""
        number = self.dtype.type
        return self._result(
            minimise_path(
                self._problem(weight_I), self.theta_KE, C_A.astype(self.dtype), number(l1_ratio), self._tol(tol),
                np.int32(max_iter), intercept=self.intercept, method=self._method(solver, l1_ratio),
            )
        )  # fmt: skip

    def _method(self, solver: str, l1_ratio: float) -> str:
        if l1_ratio:
            return "sparse"
        return "newton" if solver == "newton-cholesky" and self.theta_KE.size <= 2048 else "lbfgs"
