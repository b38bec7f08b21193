"""What support vector classification and regression share: one fit of the dual, and the scores of new samples.

The problem, the kernels and the equations are those of :mod:`.smo`.

Shapes: I samples, J queries, D features, S support vectors, P pairs of classes.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .arrays import MatrixLike, bucket, dense, pad, precision, validated_queries, validated_samples
from .smo import kernel_matrix, solve_svm, solve_svm_flat, stored_kernel

FLAT_BELOW = 512  # samples up to which there is one level only

Kernel: TypeAlias = str | Callable[[np.ndarray, np.ndarray], ArrayLike]  # a name, or a function of two sets of samples


class MachineFit(NamedTuple):
    """One solved dual: beta [I], the bias b, the number of steps, and whether the violation reached tol."""

    beta: np.ndarray
    bias: float
    steps: int
    converged: bool


@partial(jax.jit, static_argnames=("kernel", "degree"))
def _decide(
    X_JD: jax.Array,
    vectors_SD: jax.Array,
    coef_SP: jax.Array,
    gamma: jax.Array,
    coef0: jax.Array,
    kernel: str,
    degree: int,
) -> jax.Array:
    r"""Return $\sum_i \beta_i k(x_i, x)$ [J, P], a block of queries at a time."""
    J, D = X_JD.shape
    block = min(256, J)

    def part(X: jax.Array) -> jax.Array:
        return kernel_matrix(X, vectors_SD, gamma, coef0, kernel=kernel, degree=degree) @ coef_SP

    return jax.lax.map(part, X_JD.reshape(J // block, block, D)).reshape(J, -1)


class SupportVectorMachine(BaseEstimator):
    """What classification and regression share: kernels, one fit of eq. 1, the decision function."""

    kernel: Kernel
    gamma: float | str
    degree: int
    coef0: float
    tol: float
    cache_size: float
    max_iter: int
    _X_fit: np.ndarray
    support_: np.ndarray
    dual_coef_: np.ndarray
    intercept_: np.ndarray

    def _validated_fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return X, y and the weights, after a check of the parameters; sets _gamma and shape_fit_."""
        kernels = ("linear", "poly", "rbf", "sigmoid", "precomputed")
        if not callable(self.kernel) and self.kernel not in kernels:
            raise ValueError(f"kernel={self.kernel!r} must be one of {', '.join(kernels)} or a function")
        if not self.tol > 0 or not self.cache_size > 0:
            raise ValueError(f"tol={self.tol} and cache_size={self.cache_size} must be positive")
        if self.degree != int(self.degree) or self.degree < 0:
            raise ValueError(f"degree={self.degree} must be a whole number, not negative")
        X, y = validated_samples(self, X, y, y_numeric=isinstance(self, RegressorMixin))
        X = np.asarray(dense(X))
        if self.kernel == "precomputed" and X.shape[0] != X.shape[1]:
            raise ValueError(
                f"Precomputed matrix must be a square matrix. Input is a {X.shape[0]}x{X.shape[1]} matrix."
            )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
            if not (sample_weight > 0).any():
                raise ValueError(
                    "Invalid input - all samples have zero or negative weights. At least one sample_weight must be "
                    "positive."
                )
        self._gamma = self._gamma_of(X, sample_weight)
        self.shape_fit_ = X.shape
        return X, y, sample_weight

    def _gamma_of(self, X: np.ndarray, sample_weight: np.ndarray | None) -> float:
        """Return gamma as a number; for "scale" a sample with a weight of 2 counts twice."""
        if self._kernel_is_given():
            return 0.0
        if not isinstance(self.gamma, str):
            if not self.gamma >= 0:
                raise ValueError(f"gamma={self.gamma} must not be negative")
            return float(self.gamma)
        if self.gamma == "auto":
            return 1.0 / X.shape[1]
        if self.gamma != "scale":
            raise ValueError(f"gamma={self.gamma!r} must be 'scale', 'auto' or a number")
        wide = X.astype(np.float64, copy=False)
        if sample_weight is None or (sample_weight == sample_weight[0]).all():
            variance = wide.var()
        else:
            per_row = sample_weight / (sample_weight.sum() * X.shape[1])
            mean = per_row @ wide.sum(1)
            variance = per_row @ ((wide - mean) ** 2).sum(1)
        return 1.0 / (X.shape[1] * variance) if variance != 0 else 1.0

    def _largest_entry(self, X: np.ndarray) -> float:
        """Return the largest k(x, x), which bounds every entry of a positive definite K."""
        if self._kernel_is_given():
            return float(np.abs(X.diagonal()).max())
        longest = float(np.max((X.astype(np.float64) ** 2).sum(1)))
        if self.kernel == "linear":
            return longest
        return (self._gamma * longest + abs(self.coef0)) ** self.degree if self.kernel == "poly" else 1.0

    def _kernel_of(self, X: np.ndarray) -> np.ndarray:
        """Return the source of the dual: the samples, or the kernel matrix that the user's function returns."""
        if not callable(self.kernel):
            return X
        self._X_fit = X
        kernel_II = np.asarray(self.kernel(X, X), np.float64)
        if kernel_II.shape != (len(X), len(X)):
            raise ValueError(
                f"the kernel function gave the shape {kernel_II.shape} for {len(X)} samples with themselves: it must "
                f"return {(len(X), len(X))}"
            )
        return kernel_II

    def _kernel_is_given(self) -> bool:
        return callable(self.kernel) or self.kernel == "precomputed"

    def _kernel_options(self) -> dict[str, Kernel | int]:
        return {"kernel": self.kernel, "degree": int(self.degree)}

    def _solve(
        self, X: np.ndarray, y_I: np.ndarray, lower_I: np.ndarray, upper_I: np.ndarray, epsilon: float
    ) -> MachineFit:
        """Solve one dual. X is the kernel matrix if the user gave it or its function."""
        I = len(y_I)
        padded = bucket(I, 64)
        # Products and sums in float32 are wrong by about 6e-8 of their terms, which may be above the tolerance.
        rounding = 2.0**-18 * self._largest_entry(X) * max(upper_I.max(), -lower_I.min())
        precise = I <= FLAT_BELOW or rounding > 0.1 * self.tol
        dtype = np.dtype(np.float64 if precise else np.float32)
        stored, options = True, {"kernel": "linear", "degree": 1}
        with precision(np.float64):
            y, lower, upper = (pad(np.asarray(v, np.float64), padded) for v in (y_I, lower_I, upper_I))
            gamma, coef0 = dtype.type(self._gamma), dtype.type(self.coef0)
            if self._kernel_is_given():
                source = pad(X.astype(np.float32), padded, padded)
            else:
                options = self._kernel_options()
                stored = 4 * padded**2 <= self.cache_size * 2**20
                rows = X.astype(np.float64)
                if self.kernel == "rbf":
                    rows = rows - rows.mean(0)  # the kernel depends on differences only, and this loses fewer digits
                source = pad(rows.astype(dtype), padded, bucket(X.shape[1]))
                if stored:
                    source = stored_kernel(source, gamma, coef0, **options)
            max_steps, epsilon = np.int32(self.max_iter), float(epsilon)
            if stored and padded <= FLAT_BELOW:
                # With a large C the objective is about 1e-5 below its maximum when the violation reaches tol.
                solution = solve_svm_flat(source, y, lower, upper, epsilon, 0.3 * self.tol, 1e-10, max_steps)
            else:
                solution = solve_svm(
                    source, y, lower, upper, epsilon, self.tol, max_steps, gamma, coef0, stored=stored,
                    precise=precise, **options,
                )  # fmt: skip
        converged = not float(solution.violation) > self.tol
        if not converged:
            warnings.warn(
                f"Solver terminated early (max_iter={self.max_iter}). Consider pre-processing your data with "
                "StandardScaler or MinMaxScaler.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return MachineFit(np.asarray(solution.beta)[:I], float(solution.bias), max(int(solution.steps), 1), converged)

    def _scores(self, X: np.ndarray, coef_SP: np.ndarray) -> np.ndarray:
        r"""Return $\sum_i \beta_i k(x_i, x)$ [J, P] for validated queries."""
        if callable(self.kernel):
            return np.asarray(self.kernel(X, self._X_fit))[:, self.support_] @ coef_SP
        if self.kernel == "precomputed":
            return X[:, self.support_] @ coef_SP
        return self._scores_from(self.support_vectors_, X, coef_SP)

    def _scores_from(self, vectors_SD: np.ndarray, X: np.ndarray, coef_SP: np.ndarray) -> np.ndarray:
        """Return the same from given support vectors, for a kernel that is computed from features."""
        if not len(vectors_SD):
            return np.zeros((len(X), coef_SP.shape[1]), X.dtype)
        if self.kernel == "linear":
            return X @ (vectors_SD.T @ coef_SP)
        dtype = np.result_type(X.dtype, vectors_SD.dtype)
        if self.kernel == "rbf":
            middle_D = vectors_SD.mean(0, dtype=np.float64)  # as in the fit: loses fewer digits far from the origin
            X, vectors_SD = X - middle_D, vectors_SD - middle_D
        rows, columns = bucket(len(vectors_SD), 64), bucket(X.shape[1])
        J = bucket(len(X), 64)
        J = J if J <= 256 else -(-J // 256) * 256
        with precision(dtype):
            scores = _decide(
                pad(X.astype(dtype), J, columns), pad(vectors_SD.astype(dtype), rows, columns),
                pad(coef_SP.astype(dtype), rows, coef_SP.shape[1]), dtype.type(self._gamma), dtype.type(self.coef0),
                **self._kernel_options(),
            )  # fmt: skip
            return np.asarray(scores)[: len(X)]

    def _validated_queries(self, X: MatrixLike) -> np.ndarray:
        check_is_fitted(self)
        X = np.asarray(dense(validated_queries(self, X)))
        if self.kernel == "precomputed" and X.shape[1] != self.shape_fit_[0]:
            raise ValueError(
                f"X.shape[1] = {X.shape[1]} should be equal to {self.shape_fit_[0]}, "
                "the number of samples at training time"
            )
        return X

    def _keep_vectors(self, X: np.ndarray) -> None:
        """Set support_vectors_, which is empty where the kernel is not computed from features."""
        if self._kernel_is_given():
            self.support_vectors_ = np.empty((0, 0), X.dtype)
        else:
            self.support_vectors_ = X[self.support_]

    @property
    def coef_(self) -> np.ndarray:
        """The weights of the features, for the linear kernel only."""
        if self.kernel != "linear":
            raise AttributeError("coef_ is only available when using a linear kernel")
        return self._primal()

    def _primal(self) -> np.ndarray:
        return self.dual_coef_ @ self.support_vectors_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        tags.input_tags.sparse = not self._kernel_is_given()
        return tags
