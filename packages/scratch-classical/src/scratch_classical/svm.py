"""Support vector classification behind scikit-learn's interface.

:mod:`.smo` states the problem and solves it, :mod:`.pairs` holds the pairs of classes, :mod:`.platt` computes
probabilities.

Shapes: I samples, J queries, D features, S support vectors, K classes, P pairs of classes.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .arrays import MatrixLike
from .constraints import CLASS_WEIGHT, FLAG, SEED, Constraints, one_of, unset
from .logistic import ClassWeight
from .pairs import Pair, Pairs
from .platt import Sigmoid, couple, fit_sigmoid
from .support_vectors import MACHINE_CONSTRAINTS, Kernel, MachineFit, SupportVectorMachine


def _has_probabilities(estimator: "SVC") -> bool:
    if estimator.probability in (False, "deprecated"):
        raise AttributeError("predict_proba is not available when probability=False: fit with probability=True")
    return True


class _PairFit(NamedTuple):
    """The fit of one pair of classes; ``members`` are the indices of its samples."""

    pair: Pair
    members: np.ndarray
    fit: MachineFit


def _bounds(positive_I: np.ndarray, bound_I: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (targets of 1 and -1, lower and upper bounds of beta) for a problem of two classes."""
    return np.where(positive_I, 1.0, -1.0), np.where(positive_I, 0.0, -bound_I), np.where(positive_I, bound_I, 0.0)


class SVC(ClassifierMixin, SupportVectorMachine):
    """Support vector classification, one against one, as in sklearn.svm.SVC.

    Parameters and attributes are those of https://scikit-learn.org/stable/modules/generated/sklearn.svm.SVC.html, with
    these differences:

    gamma: with ``sample_weight``, "scale" uses the weighted variance.
    tol: problems of up to 512 samples are solved to a much smaller violation.
    cache_size: bounds the stored kernel matrix (MB); the rows of a larger one are computed when they are needed.
    probability: the probabilities come from other random folds.
    shrinking, verbose: accepted and not used.
    """

    _parameter_constraints: ClassVar[Constraints] = {
        **MACHINE_CONSTRAINTS,
        "probability": [*FLAG, unset("deprecated")],
        "class_weight": CLASS_WEIGHT,
        "decision_function_shape": [one_of("ovr", "ovo")],
        "break_ties": FLAG,
        "random_state": SEED,
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        kernel: Kernel = "rbf",
        degree: int = 3,
        gamma: float | str = "scale",
        coef0: float = 0.0,
        shrinking: bool = True,
        probability: bool | str = "deprecated",
        tol: float = 1e-3,
        cache_size: float = 200,
        class_weight: ClassWeight = None,
        verbose: bool = False,
        max_iter: int = -1,
        decision_function_shape: str = "ovr",
        break_ties: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.degree = degree
        self.gamma = gamma
        self.coef0 = coef0
        self.shrinking = shrinking
        self.probability = probability
        self.tol = tol
        self.cache_size = cache_size
        self.class_weight = class_weight
        self.verbose = verbose
        self.max_iter = max_iter
        self.decision_function_shape = decision_function_shape
        self.break_ties = break_ties
        self.random_state = random_state

    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "SVC":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and labels y [I]."""
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "The number of classes has to be greater than one; "
                f"got {len(self.classes_)} class: {self.classes_[0]!r}"
            )
        self.class_weight_ = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        bound_I = self.C * self.class_weight_[indices] * (1.0 if sample_weight is None else sample_weight)
        bound_I = np.maximum(bound_I, 0)
        if any(not (bound_I[indices == k] > 0).any() for k in range(len(self.classes_))):
            raise ValueError(
                "Invalid input - all samples with positive weights belong to the same class. Every class needs a "
                "sample whose weight is positive."
            )
        self._store(X, indices, self._solve_pairs(X, indices, bound_I))
        wanted = self.probability not in (False, "deprecated")
        sigmoids = self._fit_sigmoids(X, indices, bound_I) if wanted else []
        self.probA_, self.probB_ = np.array([s.A for s in sigmoids]), np.array([s.B for s in sigmoids])
        return self

    @property
    def _pairs(self) -> Pairs:
        return Pairs(len(self.classes_))

    def _part(self, source: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Return the source of the dual of some samples: their features, or their block of the kernel matrix."""
        return source[np.ix_(members, members)] if self._kernel_is_given() else source[members]

    def _solve_pairs(self, source: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> list[_PairFit]:
        solved = []
        for pair in self._pairs:
            members = np.flatnonzero(pair.contains(indices))
            part = source if len(members) == len(source) else self._part(source, members)  # two classes: no copy
            problem = _bounds(indices[members] == pair.positive, bound_I[members])
            solved.append(_PairFit(pair, members, self._solve(part, *problem, 0.0)))
        return solved

    def _store(self, X: np.ndarray, indices: np.ndarray, solved: list[_PairFit]) -> None:
        """Set the attributes in libsvm's order: support vectors by class, coefficients by opposing class."""
        num_classes = len(self.classes_)
        used = np.zeros(len(X), bool)
        for _, members, fit in solved:
            used[members[fit.beta != 0]] = True
        support = np.flatnonzero(used)
        support = support[np.argsort(indices[support], kind="stable")]
        self.support_ = support.astype(np.int32)
        self.n_support_ = np.bincount(indices[support], minlength=num_classes).astype(np.int32)
        position = np.full(len(X), -1)
        position[support] = np.arange(len(support))
        dual = np.zeros((max(num_classes - 1, 1), len(support)), X.dtype)
        for pair, members, fit in solved:
            nonzero = np.flatnonzero(fit.beta)
            own, at = indices[members[nonzero]], position[members[nonzero]]
            dual[self._pairs.dual_rows(pair, own), at] = fit.beta[nonzero]
        self.dual_coef_ = dual
        self.intercept_ = np.array([fit.bias for *_, fit in solved], X.dtype)
        self.n_iter_ = np.array([fit.steps for *_, fit in solved], np.int32)
        self._keep_vectors(X)
        self.fit_status_ = int(not all(fit.converged for *_, fit in solved))

    def _pair_coefficients(self) -> np.ndarray:
        """Return the coefficients of every pair's decision function [S, P]."""
        return self._pairs.coefficients(self._dual(), self.n_support_)

    def _pair_scores(self, X: MatrixLike) -> np.ndarray:
        X = self._validated_queries(X)
        return self._scores(X, self._pair_coefficients()) + self.intercept_

    def decision_function(self, X: MatrixLike) -> np.ndarray:
        """Return the score of the second class [J], of each class [J, K] ("ovr") or of each pair [J, P] ("ovo")."""
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return scores_JP[:, 0]
        return self._pairs.one_against_rest(scores_JP) if self.decision_function_shape == "ovr" else scores_JP

    def predict(self, X: MatrixLike) -> np.ndarray:
        """Return the class that won most pairs; of equals the first, or with ``break_ties`` that with the top score."""
        check_is_fitted(self)
        if self.break_ties and self.decision_function_shape == "ovo":
            raise ValueError("break_ties must be False when decision_function_shape is 'ovo'")
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return self.classes_[(scores_JP[:, 0] > 0).astype(int)]
        if self.break_ties:
            return self.classes_[self._pairs.one_against_rest(scores_JP).argmax(1)]
        return self.classes_[self._pairs.votes(scores_JP > 0).argmax(1)]

    def _fit_sigmoids(self, source: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> list[Sigmoid]:
        """Return a sigmoid per pair, fitted to the scores that machines give samples held out in five folds."""
        random = check_random_state(self.random_state)
        sigmoids = []
        for pair in self._pairs:
            members = random.permutation(np.flatnonzero(pair.contains(indices) & (bound_I > 0)))
            positive = indices[members] == pair.positive
            scores = np.zeros(len(members))
            for fold in np.array_split(np.arange(len(members)), 5):
                if not len(fold):
                    continue
                rest = np.setdiff1d(np.arange(len(members)), fold)
                inside, outside = members[rest], members[fold]
                y, lower, upper = _bounds(positive[rest], bound_I[inside])
                if len(np.unique(y)) < 2:
                    scores[fold] = y[0] if len(y) else 0.0
                    continue
                fit = self._solve(self._part(source, inside), y, lower, upper, 0.0)
                if self._kernel_is_given():
                    scores[fold] = source[np.ix_(outside, inside)] @ fit.beta + fit.bias
                else:
                    used = fit.beta != 0
                    coef_SP = fit.beta[used][:, None].astype(source.dtype)
                    scores[fold] = self._scores_from(source[inside[used]], source[outside], coef_SP)[:, 0] + fit.bias
            sigmoids.append(fit_sigmoid(scores, positive))
        return sigmoids

    @available_if(_has_probabilities)
    def predict_proba(self, X: MatrixLike) -> np.ndarray:
        """Return the probability of each class [J, K]: one sigmoid of the scores per pair, combined."""
        scores_JP = self._pair_scores(X)
        if not self.probA_.size:
            raise NotFittedError(
                "predict_proba is not available when fitted with probability=False: fit again with probability=True"
            )
        z = np.clip(self.probA_ * scores_JP + self.probB_, -500, 500)
        positive_JP = np.clip(1 / (1 + np.exp(z)), 1e-7, 1 - 1e-7)
        if len(self.classes_) == 2:
            return np.concatenate([1 - positive_JP, positive_JP], axis=1)
        return couple(self._pairs.matrix(positive_JP))

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: MatrixLike) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))
