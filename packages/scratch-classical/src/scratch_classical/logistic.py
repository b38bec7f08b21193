"""Logistic regression behind scikit-learn's interface; the mathematics is in :mod:`.logistic_solver`.

Shapes: I samples, S rows of the sample, D features, E = D + 1 (features and intercept), K rows of coefficients (1 for
two classes).
"""

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .arrays import bucket, is_on_device, lay_out, pad, precision, refuse_non_finite, validated
from .logistic_solver import minimise, minimise_path

_SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """What the two estimators share: validation, weights, prediction."""

    n_features_in_: int
    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    penalty: Any
    solver: str
    tol: float
    max_iter: int
    fit_intercept: bool
    intercept_scaling: float

    def decision_function(self, X: Any) -> np.ndarray:
        """Return $Xw + b$: [I] for two classes, else [I, K]."""
        check_is_fitted(self)
        X = validated(self, X, reset=False)
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest score."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`, without underflow."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([0 * scores, scores], axis=1)
        shifted = scores - scores.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class [I, K]."""
        return np.exp(self.predict_log_proba(X))

    def _encode(self, X: Any, y: Any, sample_weight: Any, class_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return X, class indices and weights; sets classes_."""
        X, y = validated(self, X, y, need_y=True, ensure_all_finite=False)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{self.classes_[0]!r}"
            )
        weight = np.ones(len(y), X.dtype)
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, np.empty((len(y), 1), X.dtype), dtype=X.dtype, copy=True, ensure_non_negative=True
            )
        if class_weight is not None:
            options = {} if sample_weight is None else {"sample_weight": weight}
            per_class = compute_class_weight(class_weight, classes=self.classes_, y=y, **options)
            weight = weight * per_class.astype(X.dtype)[indices]
        return X, indices, weight

    def _check_solver(self) -> None:
        if self.penalty not in ("deprecated", "elasticnet", "l1", "l2", None):
            raise ValueError(f"penalty={self.penalty!r} must be one of l1, l2, elasticnet, None")
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver={self.solver!r} must be one of {', '.join(_SOLVERS)}")
        if not self.tol > 0 or not self.max_iter >= 0:
            raise ValueError(f"tol={self.tol} must be positive and max_iter={self.max_iter} not negative")

    def _lay_out(self, X: Any, indices: np.ndarray) -> "Problem":
        penalised = self.solver == "liblinear" and self.fit_intercept
        if self.solver == "liblinear" and len(self.classes_) > 2:
            raise ValueError("The 'liblinear' solver does not support multiclass classification (n_classes >= 3).")
        if penalised and not self.intercept_scaling > 0:
            raise ValueError(f"intercept_scaling={self.intercept_scaling} must be positive")
        return Problem(
            X, indices, len(self.classes_), self.fit_intercept, self.intercept_scaling if penalised else None
        )

    def _warn_unless_converged(self, count: int, wrong: float) -> None:
        if not wrong <= self.tol:
            warnings.warn(
                f"{self.solver} failed to converge after {count} iteration(s): the gradient is {wrong:.1e}, tol is "
                f"{self.tol:.1e}. Increase max_iter, or scale the features.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class Problem:
    """One data set laid out for the solver.

    ``scaling`` makes the intercept a penalised coefficient, of one more column that holds this number everywhere.
    """

    def __init__(
        self, X: Any, indices: np.ndarray, num_classes: int, fit_intercept: bool, scaling: float | None = None
    ) -> None:
        self.scaling, self.num_features = scaling, X.shape[1]
        self.free = bool(fit_intercept) and scaling is None
        if scaling is not None:
            X = np.concatenate([X, np.full((len(X), 1), scaling, X.dtype)], axis=1)
        I, D = X.shape
        self.dtype = np.dtype(X.dtype)
        num_rows = 1 if num_classes == 2 else num_classes
        self.layout = lay_out(X, block_rows=1 << min(13, max(7, 18 - (D - 1).bit_length())))
        width = self.layout.rows.tail.shape[1]
        y_IK = indices[:, None] if num_classes == 2 else indices[:, None] == np.arange(num_classes)
        self.y_IK = self.layout.arrange(y_IK.astype(self.dtype))
        self.every = max(1, I // max(2000, 4 * D))
        sample = X[:: self.every]
        self.sample = sample if is_on_device(X) else pad(np.asarray(sample), bucket(len(sample), 64), width)
        self.theta_KE = np.zeros((num_rows, width + 1), self.dtype)

    def start(self, coef_KD: np.ndarray, intercept_K: np.ndarray) -> None:
        """Start from given coefficients."""
        self.theta_KE[:, : self.num_features] = coef_KD
        if self.scaling is None:
            self.theta_KE[:, -1] = intercept_K
        else:
            self.theta_KE[:, self.num_features] = intercept_K / self.scaling

    def _weights(self, weight_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights as the rows lie, and those of the sample."""
        weight_I = weight_I.astype(self.dtype)
        return self.layout.arrange(weight_I), pad(weight_I[:: self.every], self.sample.shape[0])

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        intercept = theta[..., -1] if self.scaling is None else theta[..., self.num_features] * self.scaling
        return np.ascontiguousarray(theta[..., : self.num_features]), intercept.copy()

    def fit(self, weight_I: np.ndarray, C: float, l1_ratio: float, tol: float, max_iter: int, solver: str) -> Any:
        """Return (coef [K, D], intercept [K], iterations, violation)."""
        weight_I, sample_weight_S = self._weights(weight_I)
        theta_KE, count, wrong = minimise(
            self.layout.rows, self.y_IK, weight_I, self.sample, sample_weight_S, self.theta_KE,
            self.dtype.type(C), self.dtype.type(l1_ratio), self.dtype.type(tol), np.int32(max_iter),
            free=self.free, method=self._method(solver, l1_ratio),
        )  # fmt: skip
        return *self._parts(np.asarray(theta_KE)), int(count), float(wrong)

    def fit_path(
        self, weight_FI: np.ndarray, C_A: np.ndarray, l1_ratio: float, tol: float, max_iter: int, solver: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (coef [F, A, K, D], intercept [F, A, K], iterations and violations [F, A]) of all folds and all C."""
        every_weight = [self._weights(weight_I) for weight_I in weight_FI]
        theta, count, wrong = minimise_path(
            self.layout.rows, self.y_IK, np.stack([w for w, _ in every_weight]), self.sample,
            np.stack([s for _, s in every_weight]), self.theta_KE, C_A.astype(self.dtype), self.dtype.type(l1_ratio),
            self.dtype.type(tol), np.int32(max_iter), free=self.free, method=self._method(solver, l1_ratio),
        )  # fmt: skip
        return *self._parts(np.asarray(theta)), np.asarray(count), np.asarray(wrong)

    def _method(self, solver: str, l1_ratio: float) -> str:
        if l1_ratio:
            return "sparse"
        return "newton" if solver == "newton-cholesky" and self.theta_KE.size <= 2048 else "lbfgs"


class LogisticRegression(LinearClassifier):
    r"""Logistic regression: eq. 1 of :mod:`.logistic_solver` with $\rho$ = ``l1_ratio``.

    Parameters and attributes are those of scikit-learn's class of this name, whose objective it minimises.
    ``solver="newton-cholesky"`` takes Newton steps, an ``l1_ratio`` above 0 proximal Newton steps, everything else is
    L-BFGS; ``"liblinear"`` penalises the intercept, as that library does.
    """

    def __init__(
        self,
        penalty: Any = "deprecated",
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: Any = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs

    def _penalty(self) -> tuple[float, float]:
        """Return (C, l1_ratio), also from the older ``penalty`` parameter."""
        self._check_solver()
        C, l1_ratio = float(self.C), float(self.l1_ratio or 0)
        if self.penalty in ("l1", "l2"):
            l1_ratio = float(self.penalty == "l1")
        elif self.penalty is None:
            C = np.inf
        if not C > 0:
            raise ValueError(f"C={self.C} must be positive")
        if not 0 <= l1_ratio <= 1:
            raise ValueError(f"l1_ratio={self.l1_ratio} must lie between 0 and 1")
        return C, l1_ratio

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LogisticRegression":
        """Fit to X [I, D] and labels y [I]."""
        C, l1_ratio = self._penalty()
        X, indices, weight = self._encode(X, y, sample_weight, self.class_weight)
        with precision(X.dtype):
            data = self._lay_out(X, indices)
            if self.warm_start and hasattr(self, "coef_"):
                data.start(self.coef_, self.intercept_)
            coef, intercept, count, wrong = data.fit(weight, C, l1_ratio, self.tol, self.max_iter, self.solver)
        if not (np.isfinite(wrong) and np.isfinite(coef).all()):
            refuse_non_finite(self, X)
        self._warn_unless_converged(count, wrong)
        self.coef_, self.intercept_ = coef, intercept
        self.n_iter_ = np.array([max(count, 1)], dtype=np.int32)
        return self
