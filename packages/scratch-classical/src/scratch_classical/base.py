"""What the linear regressors share: prediction, validation and tags."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from .arrays import Matrix, MatrixLike, validated_queries, validated_samples, validated_weight


class LinearPredictor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What the linear regressors share: prediction and tags."""

    fit_intercept: bool
    coef_: np.ndarray
    intercept_: np.ndarray | np.floating | float

    def predict(self, X: MatrixLike) -> np.ndarray:
        """Return $Xw + b$ for every row of X."""
        check_is_fitted(self)
        return np.asarray(validated_queries(self, X) @ self.coef_.T + self.intercept_)

    def _validated_fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Matrix, np.ndarray, np.ndarray | None]:
        """Return X, y and the weights. X may hold NaN or infinity: the sums over X show that later."""
        X, y = validated_samples(self, X, y, multi_output=True, y_numeric=True, ensure_all_finite=False)
        return X, y, validated_weight(sample_weight, X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
