"""The linear estimators beyond the goldens: sparse products, folds in one call, Gram matrices in blocks."""

import jax
import numpy as np
import pytest
from scipy import sparse
from scratch_classical import (
    ElasticNet,
    ElasticNetCV,
    Lasso,
    LassoCV,
    LinearRegression,
    Ridge,
    RidgeCV,
    lasso_path,
    precision,
    solve_ridge,
)
from scratch_classical.arrays import lay_out
from scratch_classical.moments import arranged, moments_of
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso as TheirLasso
from sklearn.linear_model import LassoCV as TheirLassoCV
from sklearn.linear_model import lasso_path as their_lasso_path
from sklearn.model_selection import GridSearchCV, ShuffleSplit, cross_val_score


@pytest.mark.parametrize("num_features", [3, 70, 400])
def test_moments_of_blocks_equal_those_of_the_whole_matrix(num_features, random):
    """With one group of columns, two and six, weights of zero, and a constant column far from zero."""
    num_samples = 700_000 // num_features
    X = random.standard_normal((num_samples, num_features)) + 5
    X[:, -1] = 1e6
    y, weight = random.standard_normal((num_samples, 2)), random.integers(0, 3, num_samples).astype(float)
    with precision(np.float64):
        layout = lay_out(X)
        assert layout.rows.num_blocks > 1
        m = moments_of(arranged(layout, X, y, weight, True))
    Z, V = X - np.average(X, axis=0, weights=weight), y - np.average(y, axis=0, weights=weight)
    np.testing.assert_allclose(m.gram[:-1, :-1], (Z.T @ (Z * weight[:, None]))[:-1, :-1], rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(m.cross[:-1], (Z.T @ (V * weight[:, None]))[:-1], rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(m.target, weight @ V**2, rtol=1e-12)
    assert not np.asarray(m.gram)[-1].any()
    assert not np.asarray(m.cross)[-1].any()


def test_tall_sparse_input_is_never_made_dense(monkeypatch, random):
    packed = sparse.random_array((400, 30), density=0.2, rng=random, format="csr")
    packed = sparse.csr_array(packed + sparse.csr_array(np.eye(1, 30, 7).repeat(400, axis=0)))  # column 7 is shifted
    X, weight = packed.toarray(), random.uniform(0, 2, 400)
    y = X[:, :3].sum(1) + 0.1 * random.standard_normal(400)
    models = [Ridge(0.3), LinearRegression(), Lasso(0.003, tol=1e-12), ElasticNet(0.01, tol=1e-12, fit_intercept=False)]
    expected = [(m.fit(X, y, weight).coef_, m.predict(X)) for m in models]
    path = lasso_path(X, y, alphas=5, tol=1e-12)[1]
    convert = sparse.csr_array.toarray

    def small_only(self, *args, **options):
        assert self.shape != packed.shape, "a dense copy of X was made"
        return convert(self, *args, **options)

    monkeypatch.setattr(sparse.csr_array, "toarray", small_only)
    for model, (coef, predicted) in zip(models, expected):
        model.fit(packed, y, weight)
        np.testing.assert_allclose(model.coef_, coef, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(model.predict(packed), predicted, rtol=1e-8)
    np.testing.assert_allclose(lasso_path(packed, y, alphas=5, tol=1e-12)[1], path, atol=1e-7)


def test_sparse_input_that_would_not_fit_as_a_dense_copy_is_refused():
    huge = sparse.csr_array((999_999, 1_000_000))  # wide: a tall one stays sparse in Ridge
    for model in (Ridge(), LassoCV(), RidgeCV()):
        with pytest.raises(MemoryError, match=r"X is sparse, \d+ x 1000000, and would be copied"):
            model.fit(huge, np.ones(999_999))


@pytest.mark.parametrize("shape", [(60, 5), (25, 40)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_ridge_folds_in_one_call_equal_refits(shape, fit_intercept, random):
    X = random.standard_normal(shape) + 2
    y = np.stack([X[:, 0] - X[:, 1], X[:, 2]], axis=1) + random.standard_normal((shape[0], 2))
    alphas = [0.1, 1.0, 10.0, 100.0]
    for cv in (4, ShuffleSplit(3, random_state=0)):  # the test folds of the second are no partition of the samples
        found = RidgeCV(alphas, cv=cv, fit_intercept=fit_intercept).fit(X, y)
        search = GridSearchCV(Ridge(fit_intercept=fit_intercept), {"alpha": alphas}, cv=cv).fit(X, y)
        assert found.alpha_ == search.best_params_["alpha"]
        np.testing.assert_allclose(found.best_score_, search.best_score_, rtol=1e-9)
        np.testing.assert_allclose(found.coef_, search.best_estimator_.coef_, rtol=1e-9)


def test_negative_weights_are_refused():
    for model in (Ridge(), LinearRegression(), Lasso(), LassoCV(cv=3), ElasticNetCV(cv=3)):
        with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
            model.fit(np.eye(3), np.ones(3), [1.0, -1.0, 1.0])


def test_positive_coefficients_reach_the_minimum_on_correlated_columns(random):
    for correlation in (0.3, 0.01):
        X = random.standard_normal((200, 1)) + correlation * random.standard_normal((200, 6))
        y = X @ [1.0, 2, 3, 1, 0, 0.5]
        found = LinearRegression(positive=True).fit(X, y)
        assert ((y - found.predict(X)) ** 2).sum() < 1e-18 * (y @ y)
    Y = np.stack([X[:, 0] - X[:, 1], X[:, 2]], axis=1) + random.standard_normal((200, 2))
    found = Ridge([1.0, 20.0], positive=True).fit(X, Y)
    for k, alpha in enumerate((1.0, 20.0)):
        slope = (X - X.mean(0)).T @ (Y - found.predict(X))[:, k] - alpha * found.coef_[k]
        assert (found.coef_[k] >= 0).all()
        assert (slope < 1e-9).all()
        assert abs(slope @ found.coef_[k]) < 1e-9


def test_errors_are_averaged_over_folds_with_and_without_weights(random):
    cv = [(np.arange(2, 13), np.arange(2)), (np.arange(2), np.arange(2, 13))]
    for _ in range(12):
        X = random.standard_normal((13, 3))
        y, weight = X[:, 0] + random.standard_normal(13), random.uniform(0.1, 2, 13)
        options = {"cv": cv, "alphas": np.geomspace(2, 0.01, 40), "tol": 1e-10}
        plain = LassoCV(**options).fit(X, y)
        assert plain.alpha_ == LassoCV(**options).fit(X, y, np.ones(13)).alpha_
        assert LassoCV(**options).fit(X, y, weight).alpha_ == TheirLassoCV(**options).fit(X, y, weight).alpha_


def test_a_fold_without_weight_is_named(random):
    X, weight = random.standard_normal((60, 4)), np.repeat([1.0, 0.0, 1.0], 20)
    for model in (LassoCV(cv=3), ElasticNetCV(cv=3), RidgeCV(cv=3)):
        with pytest.raises(ValueError, match="at least one non-zero number: the test samples of fold 1"):
            model.fit(X, X[:, 0], weight)


def test_training_folds_may_repeat_samples(random):
    X, parts = random.standard_normal((60, 4)), np.arange(60).reshape(3, 20)
    y = X[:, 0] + random.standard_normal(60)
    folds = [(np.repeat(np.setdiff1d(np.arange(60), test)[:4], 10), test) for test in parts]
    found = LassoCV(alphas=[0.05], cv=folds, tol=1e-10).fit(X, y).mse_path_.ravel()
    refits = [((y[b] - Lasso(0.05, tol=1e-10).fit(X[a], y[a]).predict(X[b])) ** 2).mean() for a, b in folds]
    np.testing.assert_allclose(found, refits, rtol=1e-6)


@pytest.mark.parametrize(("shape", "rtol"), [((30, 200), 1e-8), ((30, 29), 1e-6)])  # square refits are nearly singular
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_leave_one_out_of_few_samples_equals_refits(shape, rtol, fit_intercept, dtype, random):
    X = random.integers(0, 256, shape).astype(dtype)
    y = (X[:, :9].mean(1) / 100 + random.standard_normal(30)).astype(dtype)
    weight = random.uniform(0.5, 2, 30).astype(dtype)
    alphas = np.array([0.01, 1.0, 100.0, 1e7])
    errors_IA = np.empty((30, 4))
    for i in range(30):
        keep = np.arange(30) != i
        Z, v, w = X[keep].astype(float), y[keep].astype(float), weight[keep].astype(float)
        mean_x, mean_y = (np.average(a, axis=0, weights=w) if fit_intercept else 0 for a in (Z, v))
        U, sigma, Vt = np.linalg.svd((Z - mean_x) * np.sqrt(w)[:, None], full_matrices=False)
        rotated_M = U.T @ ((v - mean_y) * np.sqrt(w))
        coef_DA = Vt.T @ (sigma[:, None] * rotated_M[:, None] / (sigma[:, None] ** 2 + alphas))
        errors_IA[i] = float(weight[i]) * (y[i] - mean_y - (X[i] - mean_x) @ coef_DA) ** 2
    for alpha, errors in zip(alphas, errors_IA.T):
        model = RidgeCV([alpha], fit_intercept=fit_intercept, store_cv_results=True).fit(X, y, weight)
        np.testing.assert_allclose(model.cv_results_[:, 0], errors, rtol=rtol, atol=rtol * np.mean(errors))


@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 1e-6), (np.float64, 0.0)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_working_sets_grow_under_a_tolerance_below_rounding(dtype, tol, random):
    X = random.standard_normal((500, 700))
    y = X[:, :200] @ random.standard_normal(200)

    def objective(model):
        model.fit(X.astype(dtype), y.astype(dtype))
        return 0.5 * np.mean((y - model.predict(X)) ** 2) + 0.3 * np.abs(model.coef_).sum()

    best = objective(TheirLasso(0.3, tol=1e-6))
    assert objective(Lasso(0.3, tol=tol, max_iter=2000)) < best * (1 + 1e-5)


@pytest.mark.parametrize("alpha", [0.7, np.array([0.7, 2.0])])
def test_the_derivative_of_ridge_at_a_weight_of_zero_equals_finite_differences(alpha, random):
    X, Y = random.standard_normal((4, 5)), random.standard_normal((4, 2))
    weight, step = np.array([1.0, 0, 1, 1]), 1e-6 * np.eye(4)

    def total(weight_I):
        coef, intercept = solve_ridge(X, Y, alpha, sample_weight=weight_I)
        return coef.sum() + intercept.sum()

    with precision(np.float64):
        found = jax.grad(total)(weight)
        differences = [(-3 * total(weight) + 4 * total(weight + s) - total(weight + 2 * s)) / 2e-6 for s in step]
        kept = solve_ridge(X[weight > 0], Y[weight > 0], alpha)[0]
        np.testing.assert_allclose(solve_ridge(X, Y, alpha, sample_weight=weight)[0], kept, rtol=1e-9)
    np.testing.assert_allclose(found, differences, rtol=1e-6)


def test_errors_of_a_close_fit_in_float32_keep_their_digits(random):
    X = random.standard_normal((200, 6)).astype(np.float32) + 100
    y = X @ np.array([1, 2, -1, 0.5, 0, 3], np.float32)
    model = LassoCV(cv=5, tol=1e-8, eps=1e-6, max_iter=50_000).fit(X, y)
    exact = LassoCV(cv=5, tol=1e-8, alphas=model.alphas_, max_iter=50_000).fit(X.astype(float), y.astype(float))
    assert (model.mse_path_ > 0).all()
    np.testing.assert_allclose(model.mse_path_, exact.mse_path_, rtol=0.02, atol=1e-7)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # theirs; the grids alone are compared
def test_grids_for_positive_coefficients_equal_theirs(random):
    X = random.standard_normal((60, 4))
    y = -np.abs(X[:, 0]) - X[:, 1] + 0.1 * random.standard_normal(60)
    for Z in (X, -(X**2), np.abs(X)):
        expected = TheirLassoCV(positive=True, cv=3).fit(Z, y).alphas_
        np.testing.assert_allclose(LassoCV(positive=True, cv=3).fit(Z, y).alphas_, expected, rtol=1e-9)
        expected = their_lasso_path(Z, y, positive=True)[0]
        np.testing.assert_allclose(lasso_path(Z, y, positive=True)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(60, 4), (20, 30)])
def test_ridge_folds_accept_a_penalty_of_zero(shape, random):
    X = random.standard_normal(shape)
    y = X[:, 0] + random.standard_normal(shape[0])
    found = RidgeCV([0.0, 1.0], cv=3).fit(X, y).best_score_
    scores = [cross_val_score(m, X, y, cv=3).mean() for m in (LinearRegression(), Ridge(1.0))]
    np.testing.assert_allclose(found, max(scores), rtol=1e-9)
    np.testing.assert_allclose(RidgeCV([0.0], cv=3).fit(X, y).best_score_, scores[0], rtol=1e-9)
    with pytest.raises(ValueError, match=r"alphas\[0\] == 0.0, must be > 0.0"):
        RidgeCV([0.0, 1.0]).fit(X, y)


def test_paths_warn_and_refuse_unknown_options(random):
    X = random.standard_normal((60, 4))
    y = X.sum(1) + random.standard_normal(60)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        lasso_path(X, y, max_iter=1, tol=1e-12)
    with pytest.raises(TypeError, match="n_alpha"):
        lasso_path(X, y, n_alpha=5)


def test_a_sparse_column_far_from_zero_keeps_its_digits(random):
    z = random.standard_normal(3000)
    packed = sparse.hstack([sparse.random_array((3000, 50), density=0.05, rng=random), 1e7 + z[:, None]]).tocsr()
    for model in (LinearRegression(), Ridge(), Lasso(0.01)):
        expected = model.fit(packed.toarray(), z).coef_
        np.testing.assert_allclose(model.fit(packed, z).coef_, expected, rtol=1e-6, atol=1e-7)
