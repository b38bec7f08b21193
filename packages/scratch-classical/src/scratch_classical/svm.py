"""Support vector classification and regression behind scikit-learn's interface.

The problem that is solved stands in :mod:`.smo`, probabilities in :mod:`.platt`.

Shapes: I samples, J queries, D features, S support vectors, K classes, P pairs of classes.
"""

from itertools import combinations
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .platt import couple, fit_sigmoid
from .support_vectors import SupportVectorMachine


def _has_probabilities(estimator: "SVC") -> bool:
    if estimator.probability in (False, "deprecated"):
        raise AttributeError("predict_proba is not available when probability=False")
    return True


class SVC(ClassifierMixin, SupportVectorMachine):
    """Support vector classification, one against one. Parameters and attributes are those of scikit-learn's class.

    ``cache_size`` (MB) bounds the kernel matrix that is stored; larger problems compute its rows when needed. With
    ``sample_weight``, gamma="scale" uses the weighted variance. Up to 512 samples a problem is solved well beyond
    ``tol``.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: Any = "scale",
        coef0: float = 0.0,
        shrinking: bool = True,
        probability: Any = "deprecated",
        tol: float = 1e-3,
        cache_size: float = 200,
        class_weight: Any = None,
        verbose: bool = False,
        max_iter: int = -1,
        decision_function_shape: str = "ovr",
        break_ties: bool = False,
        random_state: Any = None,
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SVC":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and labels y [I]."""
        if not self.C > 0:
            raise ValueError(f"C={self.C} must be positive")
        if self.decision_function_shape not in ("ovr", "ovo"):
            raise ValueError(f"decision_function_shape={self.decision_function_shape!r} must be 'ovr' or 'ovo'")
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
            raise ValueError("Invalid input - all samples with positive weights belong to the same class.")
        full = self._kernel_of(X)
        solved = self._solve_pairs(full, indices, bound_I)
        self._store(X, indices, solved)
        if self.probability is True:
            self._fit_probabilities(full, indices, bound_I)
        return self

    def _solve_pairs(self, X: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> list[tuple[Any, ...]]:
        """Return (members, beta, b, steps, converged?) for every pair of classes, the first of which is positive.

        With two classes the second is positive, as everywhere in scikit-learn.
        """
        given = self._kernel_is_given()
        num_classes, solved = len(self.classes_), []
        for first, second in combinations(range(num_classes), 2):
            members = np.flatnonzero((indices == first) | (indices == second))
            positive = indices[members] == (second if num_classes == 2 else first)
            y, bound = np.where(positive, 1.0, -1.0), bound_I[members]
            lower, upper = np.where(positive, 0.0, -bound), np.where(positive, bound, 0.0)
            part = X[np.ix_(members, members)] if given else X if len(members) == len(X) else X[members]
            solved.append((members, *self._solve(part, y, lower, upper, 0.0)))
        return solved

    def _store(self, X: np.ndarray, indices: np.ndarray, solved: list[tuple[Any, ...]]) -> None:
        """Set the attributes in libsvm's order: support vectors by class, coefficients by opponent."""
        num_classes = len(self.classes_)
        used = np.zeros(len(X), bool)
        for members, beta, *_ in solved:
            used[members[beta != 0]] = True
        support = np.flatnonzero(used)
        support = support[np.argsort(indices[support], kind="stable")]
        self.support_ = support.astype(np.int32)
        self.n_support_ = np.bincount(indices[support], minlength=num_classes).astype(np.int32)
        position = np.full(len(X), -1)
        position[support] = np.arange(len(support))
        dual = np.zeros((max(num_classes - 1, 1), len(support)), X.dtype)
        for (first, second), (members, beta, *_) in zip(combinations(range(num_classes), 2), solved):
            nonzero = np.flatnonzero(beta)
            own, at = indices[members[nonzero]], position[members[nonzero]]
            dual[np.where(own == first, second - 1, first), at] = beta[nonzero]
        self.dual_coef_ = dual
        self.intercept_ = np.array([b for _, _, b, *_ in solved], X.dtype)
        self.n_iter_ = np.array([count for _, _, _, count, _ in solved], np.int32)
        self._keep_vectors(X)
        self.fit_status_ = int(not all(converged for *_, converged in solved))

    def _pair_coefficients(self) -> np.ndarray:
        """Return the coefficients of every pair's decision function [S, P]."""
        num_classes = len(self.classes_)
        if num_classes == 2:
            return self.dual_coef_.T
        edges = np.concatenate([[0], np.cumsum(self.n_support_)])
        coef_SP = np.zeros((len(self.support_), len(self.intercept_)), self.dual_coef_.dtype)
        for p, (first, second) in enumerate(combinations(range(num_classes), 2)):
            mine, theirs = slice(edges[first], edges[first + 1]), slice(edges[second], edges[second + 1])
            coef_SP[mine, p] = self.dual_coef_[second - 1, mine]
            coef_SP[theirs, p] = self.dual_coef_[first, theirs]
        return coef_SP

    def _primal(self) -> np.ndarray:
        return self._pair_coefficients().T @ self.support_vectors_

    def _pair_scores(self, X: Any) -> np.ndarray:
        X = self._validated_queries(X)
        return self._scores(X, self._pair_coefficients()) + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the score of the second class [J], of each class [J, K] ("ovr") or of each pair [J, P] ("ovo")."""
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return scores_JP[:, 0]
        return self._one_against_rest(scores_JP) if self.decision_function_shape == "ovr" else scores_JP

    def _one_against_rest(self, scores_JP: np.ndarray) -> np.ndarray:
        """Return votes plus sums of scores squeezed into (-1/3, 1/3), which only break ties."""
        J, num_classes = len(scores_JP), len(self.classes_)
        votes, sums = np.zeros((J, num_classes)), np.zeros((J, num_classes))
        for p, (first, second) in enumerate(combinations(range(num_classes), 2)):
            score = scores_JP[:, p]
            sums[:, first] += score
            sums[:, second] -= score
            votes[score >= 0, first] += 1
            votes[score < 0, second] += 1
        return votes + sums / (3 * (np.abs(sums) + 1))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the most votes of the pairs, the first among equals unless ``break_ties``."""
        check_is_fitted(self)
        if self.break_ties and self.decision_function_shape == "ovo":
            raise ValueError("break_ties must be False when decision_function_shape is 'ovo'")
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return self.classes_[(scores_JP[:, 0] > 0).astype(int)]
        if self.break_ties:
            return self.classes_[self._one_against_rest(scores_JP).argmax(1)]
        votes = np.zeros((len(scores_JP), len(self.classes_)), int)
        for p, (first, second) in enumerate(combinations(range(len(self.classes_)), 2)):
            won = scores_JP[:, p] > 0
            votes[won, first] += 1
            votes[~won, second] += 1
        return self.classes_[votes.argmax(1)]

    def _fit_probabilities(self, X: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> None:
        """Fit a sigmoid per pair to scores of samples held out of five folds."""
        given = self._kernel_is_given()
        random = check_random_state(self.random_state)
        self.probA_, self.probB_ = np.zeros(len(self.intercept_)), np.zeros(len(self.intercept_))
        for p, (first, second) in enumerate(combinations(range(len(self.classes_)), 2)):
            members = random.permutation(np.flatnonzero(((indices == first) | (indices == second)) & (bound_I > 0)))
            positive = indices[members] == (second if len(self.classes_) == 2 else first)
            scores = np.zeros(len(members))
            for fold in np.array_split(np.arange(len(members)), 5):
                if not len(fold):
                    continue
                rest = np.setdiff1d(np.arange(len(members)), fold)
                y = np.where(positive[rest], 1.0, -1.0)
                if len(np.unique(y)) < 2:
                    scores[fold] = y[0] if len(y) else 0.0
                    continue
                inside, outside, bound = members[rest], members[fold], bound_I[members[rest]]
                part = X[np.ix_(inside, inside)] if given else X[inside]
                limits = np.where(y > 0, 0.0, -bound), np.where(y > 0, bound, 0.0)
                beta, b, *_ = self._solve(part, y, *limits, 0.0)
                if given:
                    scores[fold] = X[np.ix_(outside, inside)] @ beta + b
                else:
                    held = SVC(kernel=self.kernel, degree=self.degree, coef0=self.coef0)
                    held._gamma, held.support_vectors_ = self._gamma, X[inside[beta != 0]]
                    scores[fold] = held._scores(X[outside], beta[beta != 0][:, None].astype(X.dtype))[:, 0] + b
            self.probA_[p], self.probB_[p] = fit_sigmoid(scores, positive)

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class [J, K]: sigmoids of the pairs' scores, coupled."""
        scores_JP = self._pair_scores(X)
        z = np.clip(self.probA_ * scores_JP + self.probB_, -500, 500)
        first_JP = np.clip(1 / (1 + np.exp(z)), 1e-7, 1 - 1e-7)
        if len(self.classes_) == 2:
            return np.concatenate([1 - first_JP, first_JP], axis=1)
        K = len(self.classes_)
        pairwise = np.zeros((len(scores_JP), K, K))
        for p, (first, second) in enumerate(combinations(range(K), 2)):
            pairwise[:, first, second], pairwise[:, second, first] = first_JP[:, p], 1 - first_JP[:, p]
        return couple(pairwise)

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))


class SVR(RegressorMixin, SupportVectorMachine):
    """Support vector regression. Parameters and attributes are those of scikit-learn's class; see :class:`SVC`."""

    def __init__(
        self,
        *,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: Any = "scale",
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SVR":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and targets y [I]."""
        if not self.C > 0 or not self.epsilon >= 0:
            raise ValueError(f"C={self.C} must be positive and epsilon={self.epsilon} not negative")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        full = self._kernel_of(X)
        bound_I = self.C * (np.ones(len(y)) if sample_weight is None else np.maximum(sample_weight, 0))
        beta, b, count, converged = self._solve(full, y.astype(np.float64), -bound_I, bound_I, self.epsilon)
        self.support_ = np.flatnonzero(beta).astype(np.int32)
        self.n_support_ = np.array([len(self.support_)], np.int32)
        self.dual_coef_ = beta[None, self.support_].astype(X.dtype)
        self.intercept_ = np.array([b], X.dtype)
        self.n_iter_ = count
        self._keep_vectors(X)
        self.fit_status_ = int(not converged)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the decision function [J]."""
        X = self._validated_queries(X)
        return self._scores(X, self.dual_coef_.T)[:, 0] + self.intercept_[0]
