r"""Classification and regression by the k nearest neighbours, behind scikit-learn's interface.

With $N_k(q)$ the neighbours that :mod:`.neighbor_search` finds and $v_i = 1$ or $v_i = 1/d_i$,

$$ p(c \mid q) = \frac{\sum_{i \in N_k(q)} v_i [y_i = c]}{\sum_{i \in N_k(q)} v_i}, \qquad
   \hat y(q) = \frac{\sum_{i \in N_k(q)} v_i y_i}{\sum_{i \in N_k(q)} v_i} \tag{1} $$

Shapes: I samples, Q queries, D features, K neighbours.
"""

import warnings
from collections.abc import Callable
from numbers import Integral
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .arrays import Array, Matrix, MatrixLike, dense, is_on_device, validated_queries, validated_samples
from .constraints import COUNT, JOBS, POSITIVE_OR_INFINITE, Constraints, one_of
from .given_distances import Distances, checked, nearest_of, refuse_formats_without_zeros
from .neighbor_search import Index

_METRICS = {"euclidean": 2.0, "l2": 2.0, "manhattan": 1.0, "cityblock": 1.0, "l1": 1.0, "chebyshev": np.inf,
            "infinity": np.inf, "cosine": 2.0}  # fmt: skip


class _NeighborsBase(MultiOutputMixin, BaseEstimator):
    """What the classifier and the regressor share: the parameters, the index and :meth:`kneighbors`."""

    _parameter_constraints: ClassVar[Constraints] = {
        "n_neighbors": COUNT,
        "weights": [one_of("uniform", "distance"), callable, None],
        "algorithm": [one_of("auto", "ball_tree", "kd_tree", "brute")],
        "leaf_size": COUNT,
        "p": POSITIVE_OR_INFINITE,
        "metric": [one_of("minkowski", "precomputed", *_METRICS)],
        "metric_params": [dict, None],
        "n_jobs": JOBS,
    }

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        weights: str | Callable[[np.ndarray], ArrayLike] | None = "uniform",
        algorithm: str = "auto",
        leaf_size: int = 30,
        p: float = 2,
        metric: str = "minkowski",
        metric_params: dict[str, ArrayLike] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.algorithm = algorithm
        self.leaf_size = leaf_size
        self.p = p
        self.metric = metric
        self.metric_params = metric_params
        self.n_jobs = n_jobs

    def _fit_points(self, X: Matrix) -> None:
        """Build the index of the samples, or keep the distances between them."""
        params = dict(self.metric_params or {})
        self.n_samples_fit_ = X.shape[0]
        if self.metric == "precomputed":
            if X.shape[0] != X.shape[1]:
                raise ValueError(f"Precomputed matrix must be square. Input is a {X.shape[0]}x{X.shape[1]} matrix.")
            self._fit_X, self._index = checked(X), None
            self.effective_metric_, self.effective_metric_params_ = "precomputed", params
            return
        X = dense(X)
        if self.metric == "minkowski":
            if "p" in params:
                warnings.warn(
                    f"metric_params holds p={params['p']}, which replaces the parameter p={self.p}",
                    SyntaxWarning,
                    stacklevel=3,
                )
            p = float(np.asarray(params.pop("p", self.p)))
            if not p > 0:
                raise ValueError(f"p={p} must be positive")
            named = {1.0: "manhattan", 2.0: "euclidean", np.inf: "chebyshev"}
            weighted = params.get("w") is not None
            self.effective_metric_ = "minkowski" if weighted else named.get(p, "minkowski")
            self.effective_metric_params_ = params if self.effective_metric_ != "minkowski" else {**params, "p": p}
        else:
            p = _METRICS[self.metric]
            self.effective_metric_, self.effective_metric_params_ = self.metric, params
        weight = params.pop("w", None)
        self._fit_X = X
        points = X
        if self.effective_metric_ == "cosine":
            # The cosine distance of a row of zeros to every other row is 1. One more column, which is 1 for rows of
            # zeros and 0 for the others, gives that.
            zero = (X * X).sum(1, keepdims=True) == 0
            stack = jnp.concatenate if is_on_device(X) else np.concatenate
            points = stack([_normalised(X), zero.astype(X.dtype)], axis=1)
        self._index = Index(points, p, None if weight is None else np.asarray(weight, np.float64))

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in super().__getstate__().items() if k != "_index"}

    def _ready_index(self) -> Index | None:
        if not hasattr(self, "_index"):  # not pickled: rebuilt from the points
            self._fit_points(self._fit_X)
        return self._index

    def kneighbors(
        self, X: MatrixLike | None = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Return (distances [Q, K], indices [Q, K]) of the nearest samples, or without ``return_distance`` the indices.

        Without X the queries are the samples themselves, and no sample is its own neighbour.
        """
        distances, indices = self._search(X, n_neighbors)
        return (distances, indices) if return_distance else indices

    def _search(self, X: MatrixLike | None, n_neighbors: int | None) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(count, Integral):
            raise TypeError(f"n_neighbors does not take {type(count)} value, enter integer value")
        if count <= 0:
            raise ValueError(f"Expected n_neighbors > 0. Got {count}")
        own = X is None
        queries = self._fit_X if own else self._validated(X)
        wanted = count + own
        if wanted > self.n_samples_fit_:
            inequality = "n_neighbors < n_samples_fit" if own else "n_neighbors <= n_samples_fit"
            raise ValueError(
                f"Expected {inequality}, but n_neighbors = {count}, n_samples_fit = {self.n_samples_fit_}, "
                f"n_samples = {queries.shape[0]}"
            )
        index = self._ready_index()
        if index is None:
            distances, indices = nearest_of(queries, wanted)
        else:
            queries, cosine = np.asarray(queries), self.effective_metric_ == "cosine"
            asked = np.pad(_normalised(queries), ((0, 0), (0, 1))) if cosine else queries
            distances, indices = index.search(asked, wanted, self.n_samples_fit_)
            if cosine:
                distances = 0.5 * distances**2  # eq. 1 of the search
                distances[~queries.any(1)] = 1
        if own:
            itself = indices == np.arange(len(indices))[:, None]
            itself[~itself.any(1), -1] = True  # hidden by K or more duplicates: drop the last of them
            distances = distances[~itself].reshape(len(indices), count)
            indices = indices[~itself].reshape(len(indices), count)
        return distances, indices

    def _validated(self, X: MatrixLike) -> Distances:
        """Return validated queries: dense features, or distances to the samples."""
        if self.metric != "precomputed":
            return dense(validated_queries(self, X))
        refuse_formats_without_zeros(X)
        return checked(validated_queries(self, X))

    def kneighbors_graph(
        self, X: MatrixLike | None = None, n_neighbors: int | None = None, mode: str = "connectivity"
    ) -> sparse.csr_matrix:
        """Return the sparse matrix of neighbours [Q, I]: ones, or distances with mode "distance"."""
        if mode not in ("connectivity", "distance"):
            raise ValueError(f"mode={mode!r} must be 'connectivity' or 'distance'")
        distances, indices = self._search(X, n_neighbors)
        Q, K = indices.shape
        data = np.ones(Q * K) if mode == "connectivity" else distances.ravel()
        return sparse.csr_matrix((data, indices.ravel(), np.arange(0, Q * K + 1, K)), shape=(Q, self.n_samples_fit_))

    def _weighted_neighbors(self, X: MatrixLike | None) -> tuple[np.ndarray, np.ndarray]:
        """Return (weights [Q, K] of eq. 1, indices [Q, K])."""
        distances, indices = self._search(X, None)
        if self.weights in (None, "uniform"):
            return np.ones(distances.shape), indices
        if callable(self.weights):
            weight_QK = np.asarray(self.weights(distances))
        else:
            with np.errstate(divide="ignore"):
                weight_QK = 1.0 / distances
            exact = np.isinf(weight_QK)  # neighbours at distance zero share all the weight
            rows = exact.any(1)
            weight_QK[rows] = exact[rows]
        if not weight_QK.any(1).all():
            raise ValueError(
                "All neighbors of some sample is getting zero weights. Please modify 'weights' to avoid this case if "
                "you are using a user-defined function."
            )
        return weight_QK, indices

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.pairwise = self.metric == "precomputed"
        return tags


def _normalised(X: Array) -> Array:
    """Return the rows of X divided by their lengths; rows of zeros stay as they are."""
    norm = (X * X).sum(1, keepdims=True) ** 0.5
    return X / (norm + (norm == 0))


class KNeighborsClassifier(ClassifierMixin, _NeighborsBase):
    """Classification by the k nearest neighbours, as in sklearn.neighbors.KNeighborsClassifier.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.neighbors.KNeighborsClassifier.html, with these
    differences:

    algorithm, leaf_size, n_jobs: accepted and not used; the search is always exact and always by blocks.
    metric: one of the names euclidean (l2), manhattan (l1, cityblock), chebyshev (infinity), minkowski and cosine, or
        precomputed for given distances.
    """

    classes_: np.ndarray | list[np.ndarray]

    def fit(self, X: MatrixLike, y: ArrayLike) -> "KNeighborsClassifier":
        """Store X [I, D] and labels y [I] or [I, outputs]."""
        self._validate_params()
        if self.metric == "precomputed":
            refuse_formats_without_zeros(X)
        X, y = validated_samples(self, X, y, multi_output=True)
        check_classification_targets(y)
        self.outputs_2d_ = y.ndim > 1 and y.shape[1] > 1
        columns = y.reshape(len(y), -1)
        encoded = [np.unique(columns[:, k], return_inverse=True) for k in range(columns.shape[1])]
        self._y = np.stack([indices for _, indices in encoded], axis=1)
        self.classes_ = [classes for classes, _ in encoded] if self.outputs_2d_ else encoded[0][0]
        self._fit_points(X)
        return self

    def predict_proba(self, X: MatrixLike | None) -> np.ndarray | list[np.ndarray]:
        """Return the probability of each class [Q, classes] (eq. 1), or for several outputs a list of them."""
        probabilities = self._probabilities(X)
        return probabilities if self.outputs_2d_ else probabilities[0]

    def _probabilities(self, X: MatrixLike | None) -> list[np.ndarray]:
        """Return the probabilities of every output."""
        check_is_fitted(self)
        weight_QK, indices = self._weighted_neighbors(X)
        probabilities = []
        for k, classes in enumerate(self._classes_of_outputs()):
            labels_QK = self._y[indices, k]
            votes = np.zeros((len(indices), len(classes)))
            for column in range(indices.shape[1]):
                votes[np.arange(len(indices)), labels_QK[:, column]] += weight_QK[:, column]
            total = votes.sum(1, keepdims=True)
            probabilities.append(votes / np.where(total == 0, 1, total))
        return probabilities

    def _classes_of_outputs(self) -> list[np.ndarray]:
        return self.classes_ if isinstance(self.classes_, list) else [self.classes_]

    def predict(self, X: MatrixLike | None) -> np.ndarray:
        """Return the class with the largest probability, and of equals the first."""
        check_is_fitted(self)
        predicted = [c[p.argmax(1)] for c, p in zip(self._classes_of_outputs(), self._probabilities(X))]
        return np.stack(predicted, axis=1) if self.outputs_2d_ else predicted[0]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class KNeighborsRegressor(RegressorMixin, _NeighborsBase):
    """Regression by the k nearest neighbours, as in sklearn.neighbors.KNeighborsRegressor.

    Parameters and attributes are those of
    https://scikit-learn.org/stable/modules/generated/sklearn.neighbors.KNeighborsRegressor.html, with the differences
    that :class:`KNeighborsClassifier` lists.
    """

    def fit(self, X: MatrixLike, y: ArrayLike) -> "KNeighborsRegressor":
        """Store X [I, D] and targets y [I] or [I, outputs]."""
        self._validate_params()
        if self.metric == "precomputed":
            refuse_formats_without_zeros(X)
        X, y = validated_samples(self, X, y, multi_output=True, y_numeric=True)
        self._y = y
        self._fit_points(X)
        return self

    def predict(self, X: MatrixLike | None) -> np.ndarray:
        """Return the weighted mean of the neighbours' targets (eq. 1)."""
        check_is_fitted(self)
        weight_QK, indices = self._weighted_neighbors(X)
        y_IL = self._y.reshape(len(self._y), -1)
        total = np.einsum("qk,qkl->ql", weight_QK, y_IL[indices].astype(np.float64))
        predicted = total / weight_QK.sum(1, keepdims=True)
        return predicted[:, 0] if self._y.ndim == 1 else predicted
