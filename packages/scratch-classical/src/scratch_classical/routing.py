"""Metadata routing: which arguments of ``fit`` go to the splitter and the scorer of a cross-validation.

Source: https://scikit-learn.org/stable/metadata_routing.html. With routing disabled, scikit-learn's default, the scorer
gets ``sample_weight`` and the splitter nothing; any other argument is an error.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, _raise_for_params, process_routing
from sklearn.utils.validation import _check_method_params

from .arrays import CrossValidator


class Routed(NamedTuple):
    """The arguments for the splitter's ``split`` and for the scorer."""

    split: dict[str, object]
    score: dict[str, object]

    def of(self, X: np.ndarray, picked: np.ndarray) -> dict[str, object]:
        """Return the scorer's arguments for some of the samples."""
        return _check_method_params(X, self.score, indices=picked)


class CrossValidated(BaseEstimator):
    """An estimator that splits its samples for cross-validation, and may score by a scorer."""

    cv: CrossValidator

    def _scorer(self) -> Callable[..., float] | None:
        """Return the scorer; None for an estimator that has none."""
        return None

    def get_metadata_routing(self) -> MetadataRouter:
        """Return what scikit-learn asks a router for: where the arguments of ``fit`` and ``score`` go."""
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(splitter=check_cv(self.cv), method_mapping=MethodMapping().add(caller="fit", callee="split"))
        scorer = self._scorer()
        if scorer is not None:
            calls = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
            router.add(scorer=scorer, method_mapping=calls)
        return router

    def _route(self, method: str, sample_weight: ArrayLike | None, params: dict[str, object]) -> Routed:
        """Return the arguments of ``method`` for the splitter and the scorer.

        Raises ValueError for ``params`` while routing is disabled.
        """
        _raise_for_params(params, self, method)
        scored = self._scorer() is not None
        given = params if sample_weight is None or not scored else {**params, "sample_weight": sample_weight}
        if not get_config()["enable_metadata_routing"]:
            return Routed({}, given)
        routed = process_routing(self, method, **given)
        return Routed(routed.splitter.split if method == "fit" else {}, routed.scorer.score if scored else {})
