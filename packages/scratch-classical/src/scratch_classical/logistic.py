"""Logistic regression behind scikit-learn's interface; the mathematics is in :mod:`.logistic_solver`.

Shapes: I samples, D features, K classes.
"""

import warnings
from collections.abc import Mapping
from typing import ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .arrays import (
    Array,
    MatrixLike,
    dense,
    precision,
    refuse_non_finite,
    validated_queries,
    validated_samples,
    validated_weight,
)
from .constraints import (
    CLASS_WEIGHT,
    COUNT_OR_ZERO,
    FLAG,
    JOBS,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_OR_INFINITE,
    SEED,
    SHARE,
    VERBOSE,
    Constraints,
    one_of,
    unset,
)
from .logistic_data import LogisticData

Classifier = TypeVar("Classifier", bound="LinearClassifier")
ClassWeight: TypeAlias = Mapping | str | None  # a weight per class, "balanced", or none

SHARED_CONSTRAINTS: Constraints = {
    "penalty": [one_of("l1", "l2", "elasticnet"), None, unset("deprecated")],
    "dual": FLAG,
    "tol": NOT_NEGATIVE,
    "fit_intercept": FLAG,
    "intercept_scaling": POSITIVE,
    "class_weight": CLASS_WEIGHT,
    "random_state": SEED,
    "solver": [one_of("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")],
    "max_iter": COUNT_OR_ZERO,
    "verbose": VERBOSE,
    "n_jobs": JOBS,
}


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """What the two estimators share: validation, weights, prediction."""

    n_features_in_: int
    classes_: np.ndarray
    coef_: np.ndarray | sparse.csr_matrix  # an array, or after sparsify() a sparse matrix
    intercept_: np.ndarray
    penalty: str | None
    solver: str
    tol: float
    max_iter: int
    fit_intercept: bool
    intercept_scaling: float

    def decision_function(self, X: MatrixLike) -> np.ndarray:
        """Return $Xw + b$: [I] for two classes, else [I, K]."""
        check_is_fitted(self)
        X = dense(validated_queries(self, X))
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: MatrixLike) -> np.ndarray:
        """Return the class with the largest score."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_log_proba(self, X: MatrixLike) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`, without underflow."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([0 * scores, scores], axis=1)
        shifted = scores - scores.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def predict_proba(self, X: MatrixLike) -> np.ndarray:
        """Return the probability of each class [I, K]."""
        return np.exp(self.predict_log_proba(X))

    def sparsify(self: "Classifier") -> "Classifier":
        """Store coef_ as a sparse matrix, which saves memory where most coefficients are zero."""
        check_is_fitted(self)
        self.coef_ = sparse.csr_matrix(self.coef_)
        return self

    def densify(self: "Classifier") -> "Classifier":
        """Undo :meth:`sparsify`."""
        check_is_fitted(self)
        self.coef_ = np.asarray(dense(self.coef_))
        return self

    def _encode(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None, class_weight: ClassWeight
    ) -> tuple[Array, np.ndarray, np.ndarray]:
        """Return X, class indices and weights; sets classes_."""
        X, y = validated_samples(self, X, y, ensure_all_finite=False)
        X = dense(X)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{self.classes_[0]!r}"
            )
        weight = validated_weight(sample_weight, X, copy=True)
        if weight is None:
            weight = np.ones(len(y), X.dtype)
        if class_weight is not None:
            options = {} if sample_weight is None else {"sample_weight": weight}
            per_class = compute_class_weight(class_weight, classes=self.classes_, y=y, **options)
            weight = weight * per_class.astype(X.dtype)[indices]
        return X, indices, weight

    def _lay_out(self, X: Array, indices: np.ndarray) -> LogisticData:
        penalised = self.solver == "liblinear" and self.fit_intercept
        if self.solver == "liblinear" and len(self.classes_) > 2:
            raise ValueError(
                "The 'liblinear' solver does not support multiclass classification (n_classes >= 3); y has "
                f"{len(self.classes_)} classes. Choose another solver, such as 'lbfgs'."
            )
        scaling = self.intercept_scaling if penalised else None
        return LogisticData(X, indices, len(self.classes_), self.fit_intercept, scaling)

    def _check_minimum(self, X: Array, coef: np.ndarray, iterations: int, violation: np.ndarray) -> None:
        """Raise ValueError if the minimum is not finite, or squares of the gradient overflow there.

        Warns if the largest ``violation`` (in the dtype of X) is above tol.
        """
        with np.errstate(over="ignore"):
            usable = np.isfinite(violation**2).all() and np.isfinite(coef).all()
        if not usable:
            refuse_non_finite(X, type(self).__name__)
        largest = float(violation.max())
        if largest > max(self.tol, 4 * np.finfo(violation.dtype).eps):
            warnings.warn(
                f"{self.solver} failed to converge after {iterations} iteration(s): the gradient is {largest:.1e}, "
                f"tol is {self.tol:.1e}. Increase the number of iterations (max_iter), or scale the features.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class LogisticRegression(LinearClassifier):
    r"""Logistic regression: eq. 1 of :mod:`.logistic_solver` with $\rho$ = ``l1_ratio``, as in scikit-learn.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegression.html, with these
    differences:

    solver: "newton-cholesky" takes Newton steps for up to about 2,000 coefficients, and "liblinear" penalises the
        intercept as that library does. All else is L-BFGS, except that an ``l1_ratio`` above 0 always takes proximal
        Newton steps.
    tol: bounds the gradient of the mean loss; the objective must also be within an estimated 2.5e-7 of its
        minimum, relative to its value.
    dual, verbose, n_jobs, random_state: accepted and not used.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        **SHARED_CONSTRAINTS,
        "C": POSITIVE_OR_INFINITE,
        "l1_ratio": [*SHARE, None],
        "warm_start": FLAG,
    }

    def __init__(
        self,
        penalty: str | None = "deprecated",
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: ClassWeight = None,
        random_state: int | np.random.RandomState | None = None,
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
        C, l1_ratio = float(self.C), float(self.l1_ratio or 0)
        if self.penalty in ("l1", "l2"):
            if self.l1_ratio not in (None, float(self.penalty == "l1")):
                warnings.warn(
                    f"Inconsistent values: penalty={self.penalty} with l1_ratio={self.l1_ratio}. penalty is used; "
                    "leave it out and set l1_ratio alone.",
                    UserWarning,
                    stacklevel=3,
                )
            l1_ratio = float(self.penalty == "l1")
        elif self.penalty == "elasticnet" and self.l1_ratio is None:
            raise ValueError("penalty='elasticnet' needs l1_ratio, a number between 0 and 1; l1_ratio is None")
        elif self.penalty is None:
            if self.C != 1.0:
                warnings.warn(
                    f"Setting penalty=None will ignore the C={self.C} and l1_ratio parameters. To fit without a "
                    "penalty set C=np.inf alone.",
                    UserWarning,
                    stacklevel=3,
                )
            C = np.inf
        return C, l1_ratio

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "LogisticRegression":
        """Fit to X [I, D] and labels y [I]."""
        self._validate_params()
        C, l1_ratio = self._penalty()
        X, indices, weight = self._encode(X, y, sample_weight, self.class_weight)
        with precision(X.dtype):
            data = self._lay_out(X, indices)
            if self.warm_start and hasattr(self, "coef_"):
                data.start(np.asarray(dense(self.coef_)), self.intercept_)
            found = data.fit(weight, C, l1_ratio, self.tol, self.max_iter, self.solver)
        self._check_minimum(X, found.coef, int(found.iterations), found.violation)
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.n_iter_ = np.array([found.iterations], dtype=np.int32)
        return self
