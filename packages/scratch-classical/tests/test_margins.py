"""Logistic regression, support vector machines and neighbours, compared with scikit-learn on hard problems."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scratch_classical as ours
import sklearn.linear_model as linear
import sklearn.svm as svm
from scipy.spatial.distance import cdist
from scratch_classical import LogisticRegression, LogisticRegressionCV
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

CANCER, IRIS, WINE = (
    (StandardScaler().fit_transform(X), y)
    for X, y in (load(return_X_y=True) for load in (load_breast_cancer, load_iris, load_wine))
)
ZEROS = np.random.default_rng(0).integers(0, 3, len(CANCER[1])).astype(float)


def dual_and_violation(K, target, beta, lower, upper, epsilon=0.0):
    """Return the dual objective and the violation of its optimality conditions (eq. 1 and 3 of smo)."""
    assert (beta >= lower).all()
    assert (beta <= upper).all()
    assert abs(beta.sum()) <= 1e-9 * np.abs(beta).sum()
    rest = target - K @ beta
    up = (rest - epsilon * np.where(beta >= 0, 1, -1))[beta < upper].max()
    down = (rest - epsilon * np.where(beta > 0, 1, -1))[beta > lower].min()
    return target @ beta - epsilon * np.abs(beta).sum() - 0.5 * beta @ K @ beta, up - down


def kernel_of(model, X):
    """Return K in float32, as both solvers keep it: with C of a thousand only its rounding is visible."""
    if callable(model.kernel):
        return model.kernel(X, X).astype(np.float32).astype(float)
    options = {"gamma": model._gamma, "coef0": model.coef0, "degree": model.degree} if model.kernel != "linear" else {}
    return pairwise_kernels(X, metric=model.kernel, filter_params=True, **options).astype(np.float32).astype(float)


MACHINES = {
    "C of a thousand": (CANCER, {"C": 1e3}, None),
    "linear, C of a thousand": (CANCER, {"C": 1e3, "kernel": "linear"}, None),
    "polynomial": (CANCER, {"kernel": "poly", "degree": 2, "coef0": 1.0, "C": 10.0}, None),
    "sigmoid": (CANCER, {"kernel": "sigmoid", "gamma": 0.01}, None),
    "callable": (CANCER, {"kernel": lambda a, b: (a @ b.T + 1) ** 2 / 900}, None),
    "weights of classes": (CANCER, {"class_weight": {0: 5.0, 1: 0.2}}, None),
    "weights of zero": (CANCER, {"gamma": 0.05}, ZEROS),
}


@pytest.mark.parametrize("name", MACHINES)
def test_svc_is_optimal(name):
    (X, y), options, weight = MACHINES[name]
    weight = np.ones(len(X)) if weight is None else weight
    used = np.flatnonzero(weight)
    mine = ours.SVC(**options).fit(X, y, weight)
    theirs = svm.SVC(**options, **({} if "gamma" in options else {"gamma": mine._gamma}))
    theirs.fit(X[used], y[used], weight[used])
    K, target = kernel_of(mine, X), np.where(y == 1, 1.0, -1.0)
    bound = mine.C * mine.class_weight_[y] * weight
    lower, upper = np.minimum(target * bound, 0), np.maximum(target * bound, 0)
    beta, beta_theirs = np.zeros((2, len(X)))
    beta[mine.support_] = mine.dual_coef_[0]
    beta_theirs[used[theirs.support_]] = theirs.dual_coef_[0]
    dual, violation = dual_and_violation(K, target, beta, lower, upper)
    assert violation <= mine.tol * (1 + 1e-6)
    if name != "sigmoid":  # this kernel is not positive definite, so there are several maxima
        assert dual >= dual_and_violation(K, target, beta_theirs, lower, upper)[0] * (1 - 1e-6)


@pytest.mark.parametrize("data", [IRIS, WINE])
def test_svc_of_several_classes_agrees(data, random):
    X, y = data
    weight = random.uniform(0.2, 2, len(y))
    options = {"C": 50.0, "gamma": 0.1, "tol": 1e-6, "class_weight": "balanced"}
    mine, theirs = (module.SVC(**options).fit(X, y, weight) for module in (ours, svm))
    np.testing.assert_array_equal(mine.support_, theirs.support_)
    np.testing.assert_allclose(mine.dual_coef_, theirs.dual_coef_, atol=1e-3)
    for shape in ("ovr", "ovo"):
        scores = (m.set_params(decision_function_shape=shape).decision_function(X) for m in (mine, theirs))
        np.testing.assert_allclose(*scores, atol=1e-4)
    np.testing.assert_array_equal(mine.predict(X), theirs.predict(X))


@pytest.mark.parametrize("C", [1.0, 1e3])
def test_svr_is_optimal(C, random):
    X = random.uniform(-2, 2, (300, 3))
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * random.standard_normal(300)
    weight = random.integers(0, 3, 300).astype(float)
    used = np.flatnonzero(weight)
    options = {"C": C, "gamma": 0.5, "epsilon": 0.05}
    mine, theirs = ours.SVR(**options).fit(X, y, weight), svm.SVR(**options).fit(X[used], y[used], weight[used])
    K = kernel_of(mine, X)
    beta, beta_theirs = np.zeros((2, 300))
    beta[mine.support_], beta_theirs[used[theirs.support_]] = mine.dual_coef_[0], theirs.dual_coef_[0]
    dual, violation = dual_and_violation(K, y, beta, -C * weight, C * weight, 0.05)
    assert violation <= mine.tol * (1 + 1e-6)
    assert dual >= dual_and_violation(K, y, beta_theirs, -C * weight, C * weight, 0.05)[0] * (1 - 1e-6)


def test_svc_without_convergence_warns():
    with pytest.warns(ConvergenceWarning, match="terminated early"):
        ours.SVC(C=100.0, max_iter=5).fit(*CANCER)
    with pytest.warns(ConvergenceWarning, match="failed to converge"):
        LogisticRegression(max_iter=2).fit(*CANCER)


def objective(model, X, y):
    """Return eq. 1 of logistic_solver."""
    scores = X @ model.coef_.T + model.intercept_
    if scores.shape[1] == 1:
        scores = np.concatenate([0 * scores, scores], axis=1)
    loss = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    l1, l2 = np.abs(model.coef_).sum(), (model.coef_**2).sum()
    return model.C * loss.sum() + model.l1_ratio * l1 + (1 - model.l1_ratio) / 2 * l2


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_logistic_objective_is_not_above_theirs(C, l1_ratio):
    """At the same tolerance, and for separable data too, where the gradient is small far from the minimum."""
    for X, y in (CANCER, IRIS, WINE):
        options = {"C": C, "l1_ratio": l1_ratio, "max_iter": 1000}
        mine = LogisticRegression(**options).fit(X, y)
        theirs = linear.LogisticRegression(**options, solver="saga" if l1_ratio else "lbfgs", random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs.fit(X, y)
        assert objective(mine, X, y) <= objective(theirs, X, y) * (1 + 1e-6)
        if l1_ratio == 1.0 and C < 1:
            assert (mine.coef_ == 0).sum() > mine.coef_.size / 2


def test_liblinear_penalises_the_intercept():
    options = {"solver": "liblinear", "intercept_scaling": 2.0, "tol": 1e-8, "max_iter": 1000}
    mine, theirs = LogisticRegression(**options).fit(*CANCER), linear.LogisticRegression(**options).fit(*CANCER)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, atol=1e-4)


SAGA = {"l1_ratios": np.array([0.0, 0.6]), "solver": "saga", "random_state": 0}


@pytest.mark.parametrize("options", [{}, SAGA, {"refit": False}])
def test_logistic_cross_validation_agrees(options, random):
    """C is large enough that some coefficient is not 0: else saga stops before its intercepts reach their minimum."""
    X, y = IRIS
    options = {"Cs": [1.0, 0.03, 0.1], "tol": 1e-7, "max_iter": 5000, "use_legacy_attributes": False, **options}
    options["scoring"] = "neg_log_loss"
    options["l1_ratios"] = options.get("l1_ratios", [0.0])
    weight = random.uniform(0.5, 2, len(y))
    both = LogisticRegressionCV, linear.LogisticRegressionCV
    mine, theirs = (model_class(**options).fit(X, y, weight) for model_class in both)
    assert (mine.C_, mine.l1_ratio_) == (theirs.C_, theirs.l1_ratio_)
    for name in ("scores_", "coefs_paths_", "coef_", "intercept_"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), atol=2e-4)


@pytest.mark.parametrize("model_class", [LogisticRegression, LogisticRegressionCV])
def test_logistic_regression_refuses_bad_options_and_warns(model_class):
    X, y = CANCER
    with pytest.warns(ConvergenceWarning, match="failed to converge after 1 iteration"):
        model_class(max_iter=1).fit(100 * X, y)
    for options, message in (
        ({"solver": "foo"}, "'solver' parameter .* Got 'foo'"),
        ({"penalty": "foo"}, "'penalty' parameter .* Got 'foo'"),
        ({"tol": -1.0}, "'tol' parameter .* Got -1.0"),
        ({"solver": "liblinear"}, "does not support multiclass"),
        ({"l1_ratio": 2.0}, "'l1_ratio' parameter .* Got 2.0")
        if model_class is LogisticRegression
        else ({"l1_ratios": [2.0]}, r"l1_ratios\[0\] == 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model_class(**options).fit(*IRIS)
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        model_class().fit(X, y, -np.ones(len(y)))


def test_liblinear_penalises_the_intercept_in_cross_validation_too(random):
    X = random.standard_normal((60, 4)) + 3
    options = {"Cs": [0.01, 0.1], "cv": 3, "solver": "liblinear", "tol": 1e-8, "max_iter": 1000, "l1_ratios": [0.0]}
    options |= {"scoring": "neg_log_loss", "use_legacy_attributes": False}
    both = LogisticRegressionCV, linear.LogisticRegressionCV
    mine, theirs = (model_class(**options).fit(X, X[:, 0] > 3.5) for model_class in both)
    for name in ("scores_", "coefs_paths_", "coef_", "intercept_"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), atol=1e-4)


def test_float32_far_from_the_origin():
    """There the squares of the samples take all digits, and none are left for their differences."""
    random = np.random.default_rng(0)
    X = random.standard_normal((400, 5))
    y = X[:, 0] * X[:, 1] > 0
    for offset in (0, 10_000):
        far = (X + offset).astype(np.float32)
        assert ours.SVC().fit(far, y).score(far, y) == pytest.approx(svm.SVC().fit(far, y).score(far, y), abs=0.005)
        assert ours.SVR().fit(far, X[:, 0]).score(far, X[:, 0]) > 0.98
    random = np.random.default_rng(0)
    X = random.standard_normal((400, 6))
    y = X @ random.standard_normal(6) + random.logistic(size=400) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=1000).fit((X + 3000).astype(np.float32), y)
    assert model.score((X + 3000).astype(np.float32), y) > 0.8


def test_samples_with_weight_zero_change_no_probability(random):
    X = random.standard_normal((120, 2))
    y = X[:, 0] + 0.5 * random.standard_normal(120) > 0
    more = np.concatenate([X, 10 * random.standard_normal((120, 2))]), np.concatenate([y, random.random(120) > 0.5])
    model = ours.SVC(probability=True, gamma=0.5, random_state=0)
    expected = model.fit(X, y).predict_proba(X)
    found = model.fit(*more, np.repeat([1.0, 0.0], 120)).predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_support_vector_machines_refuse_bad_options():
    for options, message in (
        ({"tol": -1.0}, "'tol' parameter .* Got -1.0"),
        ({"cache_size": 0}, "'cache_size' parameter .* Got 0"),
        ({"degree": 2.5}, "'degree' parameter .* Got 2.5"),
        ({"decision_function_shape": "foo"}, "'decision_function_shape' parameter .* Got 'foo'"),
        ({"kernel": lambda a, b: np.ones((3, 3))}, r"the kernel function gave the shape \(3, 3\) for 150 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.SVC(**options).fit(*IRIS)


METRICS = {
    "euclidean": ({"metric": "euclidean"}, {"metric": "euclidean"}),
    "manhattan": ({"metric": "manhattan"}, {"metric": "cityblock"}),
    "chebyshev": ({"metric": "chebyshev"}, {"metric": "chebyshev"}),
    "minkowski": ({"p": 1.5}, {"metric": "minkowski", "p": 1.5}),
    "cosine": ({"metric": "cosine"}, {"metric": "cosine"}),
    "weighted": ({"metric_params": {"w": [0.5, 2.0, 1.0]}}, {"metric": "minkowski", "w": [0.5, 2.0, 1.0]}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_the_nearest(metric, dtype, random):
    """Compared with all distances in float64: the same neighbours, except among ties of equal distance."""
    options, reference = METRICS[metric]
    X = np.concatenate([random.standard_normal((2900, 3)) + 2, random.integers(0, 3, (300, 3))]).astype(dtype)
    queries = np.concatenate([random.standard_normal((60, 3)) + 2, X[-60:]]).astype(dtype)
    model = ours.KNeighborsRegressor(n_neighbors=7, **options).fit(X, np.arange(len(X)))
    distances, indices = model.kneighbors(queries)
    every = cdist(queries.astype(float), X.astype(float), **reference)
    every[np.isnan(every)] = 1  # the cosine of rows of zeros
    nearest = np.sort(every, axis=1)[:, :7]
    exact = 1e-12 if dtype == np.float64 else 3e-7 * every.max()
    np.testing.assert_allclose(np.take_along_axis(every, indices, 1), nearest, atol=exact)
    np.testing.assert_allclose(distances, nearest, atol=exact)
    assert all(len(set(row)) == 7 for row in indices.tolist())
    assert distances.dtype == dtype


def test_neighbours_of_numbers_whose_squares_underflow_in_float32(random):
    X = random.standard_normal((3000, 3))
    expected = ours.KNeighborsRegressor().fit(X, X[:, 0]).kneighbors(X[:200])[1]
    np.testing.assert_array_equal(
        ours.KNeighborsRegressor().fit(1e-20 * X, X[:, 0]).kneighbors(1e-20 * X[:200])[1], expected
    )


def test_distances_that_overflow_are_refused(random):
    X = (1e20 * random.standard_normal((60, 3))).astype(np.float32)
    with pytest.raises(ValueError, match="leave the range of float32: scale the features"):
        ours.KNeighborsRegressor().fit(X, X[:, 0]).kneighbors(X)


@pytest.mark.parametrize("model", [ours.SVC(), LogisticRegression(), ours.KNeighborsClassifier(), ours.SVR()])
def test_clone_pickle_and_two_processes(model):
    X, y = IRIS
    fitted = clone(model).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    alone = cross_val_score(model, X, y, cv=2)
    np.testing.assert_allclose(cross_val_score(model, X, y, cv=2, n_jobs=2), alone)


def test_threads_share_a_fitted_model():
    X, y = IRIS
    model = ours.SVC().fit(X, y)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(model.predict, (X[k::2] for k in range(2))))
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate([model.predict(X[k::2]) for k in range(2)]))
