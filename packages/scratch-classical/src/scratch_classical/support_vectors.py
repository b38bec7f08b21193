"""What support vector classification and regression share: one fit of the dual, and the scores of new samples.

The problem, the kernels and the equations are those of :mod:`.smo`.

Shapes: I samples, J queries, D features, S support vectors, P pairs of classes.
"""

import warnings
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_consistent_length, column_or_1d
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted

from .arrays import Matrix, MatrixLike, bucket, dense, pad, precision, validated_queries, validated_samples
from .constraints import COUNT_OR_ZERO, FLAG, NOT_NEGATIVE, POSITIVE, POSITIVE_OR_INFINITE, VERBOSE, Constraints, one_of
from .smo import kernel_matrix, solve_svm, solve_svm_flat, stored_kernel

FLAT_BELOW = 512  # samples up to which the steps run on one level

Kernel: TypeAlias = str | Callable[[np.ndarray, np.ndarray], ArrayLike]  # a name, or a function of two sets of samples


MACHINE_CONSTRAINTS: Constraints = {
    "C": POSITIVE_OR_INFINITE,
    "kernel": [one_of("linear", "poly", "rbf", "sigmoid", "precomputed"), callable],
    "degree": COUNT_OR_ZERO,
    "gamma": [one_of("scale", "auto"), *NOT_NEGATIVE],
    "coef0": [Interval(Real, None, None, closed="neither")],
    "tol": POSITIVE,
    "shrinking": FLAG,
    "cache_size": POSITIVE,
    "verbose": VERBOSE,
    "max_iter": [Interval(Integral, -1, None, closed="left")],
}


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
    _X_fit: object  # the samples of a fit with a kernel function
    _sparse_type: type | None  # that of the attributes of a fit to sparse samples
    support_: np.ndarray
    support_vectors_: Matrix
    dual_coef_: Matrix
    intercept_: np.ndarray

    def _validated_fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the samples or their kernel matrix, y and the weights; sets _gamma, shape_fit_ and _sparse_type."""
        self._validate_params()
        regression = isinstance(self, RegressorMixin)
        if callable(self.kernel):  # only the function knows what a sample is
            check_consistent_length(X, y)
            y = check_array(y, ensure_2d=False, dtype=np.float64 if regression else None, input_name="y")
            y = column_or_1d(y, warn=True)
            self.shape_fit_, self._sparse_type, self._X_fit = np.shape(X), None, X
            X = self._kernel_of_function(X)
        else:
            X, y = validated_samples(self, X, y, y_numeric=regression)
            is_dense = isinstance(X, (np.ndarray, jax.Array))
            self.shape_fit_, self._sparse_type = X.shape, None if is_dense else type(X.tocsr())
            if self.kernel == "precomputed":
                if self._sparse_type is not None:
                    raise TypeError("Sparse precomputed kernels are not supported: call X.toarray() first")
                if X.shape[0] != X.shape[1]:
                    raise ValueError(
                        f"Precomputed matrix must be a square matrix. Input is a {X.shape[0]}x{X.shape[1]} matrix."
                    )
            X = np.asarray(dense(X))
        if sample_weight is not None:
            if not (np.asarray(sample_weight) > 0).any():
                raise ValueError(
                    "Invalid input - all samples have zero or negative weights. At least one sample_weight must be "
                    "positive."
                )
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self._gamma = self._gamma_of(X, sample_weight)
        return X, y, sample_weight

    def _gamma_of(self, X: np.ndarray, sample_weight: np.ndarray | None) -> float:
        """Return gamma as a number; for "scale" a sample with a weight of 2 counts twice."""
        if self._kernel_is_given():
            return 0.0
        if not isinstance(self.gamma, str):
            return float(self.gamma)
        if self.gamma == "auto":
            return 1.0 / X.shape[1]
        wide = X.astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # _solve refuses an X that is so large
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
        with np.errstate(over="ignore"):  # _solve refuses an infinite entry
            longest = float(np.max((X.astype(np.float64) ** 2).sum(1)))
        if self.kernel == "linear":
            return longest
        return (self._gamma * longest + abs(self.coef0)) ** self.degree if self.kernel == "poly" else 1.0

    def _kernel_of_function(self, X: object) -> np.ndarray:
        """Return the user's kernel between X and the samples of the fit [J, I]; samples may be of any type."""
        function: Any = self.kernel  # a function here, whose result may be an array, a list or a sparse matrix
        found = function(X, self._X_fit)
        kernel_JI = np.asarray(found.toarray() if sparse.issparse(found) else found, np.float64)
        wanted = _num_samples(X), self.shape_fit_[0]
        if kernel_JI.shape != wanted:
            raise ValueError(
                f"the kernel function gave the shape {kernel_JI.shape} for {wanted[0]} samples and the {wanted[1]} of "
                f"the fit: it must return {wanted}"
            )
        return kernel_JI

    def _kernel_is_given(self) -> bool:
        return callable(self.kernel) or self.kernel == "precomputed"

    def _kernel_options(self) -> dict[str, Kernel | int]:
        return {"kernel": self.kernel, "degree": int(self.degree)}

    def _solve(
        self, X: np.ndarray, y_I: np.ndarray, lower_I: np.ndarray, upper_I: np.ndarray, epsilon: float
    ) -> MachineFit:
        """Solve one dual. X is the kernel matrix if the user gave that or a kernel function."""
        I = len(y_I)
        padded = bucket(I, 64)
        largest = self._largest_entry(X)
        if not np.isfinite(largest):
            self._refuse_overflow()
        # Products and sums in float32 are wrong by about 6e-8 of their terms, which may be above the tolerance.
        rounding = 2.0**-18 * largest * max(upper_I.max(), -lower_I.min())
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
                    with np.errstate(over="ignore"):  # refused below
                        rows = rows - rows.mean(0)  # only differences count, and these lose fewer digits
                source = pad(rows.astype(dtype), padded, bucket(X.shape[1]))
                if stored:
                    source = stored_kernel(source, gamma, coef0, **options)
            max_steps, epsilon = np.int32(self.max_iter), float(epsilon)
            if stored and padded <= FLAT_BELOW:
                # With a large C the objective is still about 1e-5 below its maximum when the violation reaches tol, so
                # the tolerances are smaller here.
                solution = solve_svm_flat(source, y, lower, upper, epsilon, 0.3 * self.tol, 1e-10, max_steps)
            else:
                solution = solve_svm(
                    source, y, lower, upper, epsilon, self.tol, max_steps, gamma, coef0, stored=stored,
                    precise=precise, **options,
                )  # fmt: skip
        if not (np.isfinite(solution.beta).all() and np.isfinite(solution.bias)):
            self._refuse_overflow()
        converged = not float(solution.violation) > self.tol
        if not converged:
            warnings.warn(
                f"Solver terminated early (max_iter={self.max_iter}). Consider pre-processing your data with "
                "StandardScaler or MinMaxScaler.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return MachineFit(np.asarray(solution.beta)[:I], float(solution.bias), max(int(solution.steps), 1), converged)

    def _refuse_overflow(self) -> NoReturn:
        raise ValueError(
            "The dual coefficients or intercepts are not finite: entries of the kernel matrix leave the range of "
            "numbers. Scale the features, for example with StandardScaler."
        )

    def _scores(self, X: np.ndarray, coef_SP: np.ndarray) -> np.ndarray:
        r"""Return $\sum_i \beta_i k(x_i, x)$ [J, P] for validated queries."""
        if self._kernel_is_given():
            return X[:, self.support_] @ coef_SP
        return self._scores_from(np.asarray(dense(self.support_vectors_)), X, coef_SP)

    def _scores_from(self, vectors_SD: np.ndarray, X: np.ndarray, coef_SP: np.ndarray) -> np.ndarray:
        """Return the sums of :meth:`_scores` from given vectors, for a kernel that is computed from features."""
        if not len(vectors_SD):
            return np.zeros((len(X), coef_SP.shape[1]), X.dtype)
        if self.kernel == "linear":
            return X @ (vectors_SD.T @ coef_SP)
        dtype = np.result_type(X.dtype, vectors_SD.dtype)
        if max(np.abs(X).max(), np.abs(vectors_SD).max()) > 1e15:
            dtype = np.dtype(np.float64)  # squares of such numbers leave the range of float32
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
        """Return validated samples [J, D], or if the kernel is a function its values [J, I]."""
        check_is_fitted(self)
        if callable(self.kernel):
            return self._kernel_of_function(X)
        X = validated_queries(self, X)
        if sparse.issparse(X) and self._sparse_type is None:
            name = type(self).__name__
            raise ValueError(f"cannot use sparse input in {name!r} trained on dense data: call X.toarray() first")
        X = np.asarray(dense(X))
        if self.kernel == "precomputed" and X.shape[1] != self.shape_fit_[0]:
            raise ValueError(
                f"X.shape[1] = {X.shape[1]} should be equal to {self.shape_fit_[0]}, "
                "the number of samples at training time"
            )
        return X

    def _keep_vectors(self, X: np.ndarray) -> None:
        """Set support_vectors_, which is empty where the kernel is not computed from features.

        For a fit to sparse samples it and dual_coef_ are sparse.
        """
        self.support_vectors_ = np.empty((0, 0), X.dtype) if self._kernel_is_given() else X[self.support_]
        if self._sparse_type is not None:
            self.support_vectors_ = self._sparse_type(self.support_vectors_)
            self.dual_coef_ = self._sparse_type(self.dual_coef_)

    def _dual(self) -> np.ndarray:
        return np.asarray(dense(self.dual_coef_))

    @property
    def coef_(self) -> Matrix:
        """The weights of the features, for the linear kernel only. Read-only, because predictions do not use them."""
        if self.kernel != "linear":
            raise AttributeError("coef_ is only available when using a linear kernel")
        coef = self._pair_coefficients().T @ np.asarray(dense(self.support_vectors_))
        if self._sparse_type is None:
            coef.flags.writeable = False
            return coef
        coef = self._sparse_type(coef)
        coef.data.flags.writeable = False
        return coef

    def _pair_coefficients(self) -> np.ndarray:
        """Return the coefficients of every decision function [S, P]."""
        return self._dual().T

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        tags.input_tags.sparse = not self._kernel_is_given()
        return tags
