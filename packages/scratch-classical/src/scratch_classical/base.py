"""What the linear regressors share: prediction, validation and tags."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .arrays import validated


class LinearPredictor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What the linear regressors share: prediction and tags."""

    fit_intercept: bool
    coef_: np.ndarray
    intercept_: Any

    def predict(self, X: Any) -> np.ndarray:
        """Return $Xw + b$ for every row of X."""
        check_is_fitted(self)
        X = validated(self, X, reset=False, keep_sparse=True)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def _validated_fit(
        self, X: Any, y: Any, sample_weight: Any, keep_sparse: bool = False
    ) -> tuple[Any, np.ndarray, Any]:
        """Return X, y and the weights; whether X is finite is left to the sums over it."""
        options = {"multi_output": True, "y_numeric": True, "ensure_all_finite": False}
        X, y = validated(self, X, y, need_y=True, keep_sparse=keep_sparse, **options)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, np.empty((X.shape[0], 1), X.dtype), dtype=X.dtype, ensure_non_negative=True
            )
        return X, y, sample_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
