"""scikit-learn's own conformance suite, for every estimator, with no exclusions."""

import warnings

import numpy as np
import pytest
import scratch_classical
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, check_param_validation

pytestmark = pytest.mark.usefixtures("compile_quickly")
ESTIMATORS = [
    name
    for name in scratch_classical.__all__
    if hasattr(getattr(scratch_classical, name), "fit") and isinstance(getattr(scratch_classical, name), type)
]


def test_the_list_is_complete():
    assert len(ESTIMATORS) == 13


@pytest.mark.parametrize("name", ESTIMATORS)
def test_parameters_are_validated(name):
    check_param_validation(name, getattr(scratch_classical, name)())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_check_estimator(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A check gives classes of 3, 2 and 1 samples: 5 folds cannot hold one of each, as in scikit-learn's own tests.
        settings = {"cv": 3} if name == "LogisticRegressionCV" else {}
        results = check_estimator(getattr(scratch_classical, name)(**settings), on_skip=None, on_fail=None)
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "skipped")]
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 45


def test_pipeline_grid_search_and_cross_validation():
    random = np.random.default_rng(0)
    X = random.standard_normal((120, 6)) * 10 + 3
    y = (X[:, 0] > 3).astype(int)
    pipeline = make_pipeline(StandardScaler(), scratch_classical.SVC())
    search = GridSearchCV(pipeline, {"svc__C": [0.1, 1.0], "svc__kernel": ["linear", "rbf"]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
    assert cross_val_score(scratch_classical.LogisticRegression(), X, y, cv=3).mean() > 0.9
