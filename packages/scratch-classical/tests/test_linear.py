"""The linear estimators beyond the goldens: sparse products, folds in one call, halves of Gram matrices."""

import numpy as np
import pytest
from scipy import sparse
from scratch_classical import ElasticNet, Lasso, LassoCV, LinearRegression, Ridge, RidgeCV, lasso_path, precision
from scratch_classical.arrays import lay_out
from scratch_classical.moments import moments_of_rows, problem
from sklearn.model_selection import GridSearchCV, ShuffleSplit


@pytest.mark.parametrize("num_features", [3, 70, 400])
def test_moments_of_blocks_are_those_of_the_whole(num_features, random):
    """One group of columns, two, and six; weights of zero; a column that is constant and far from zero."""
    num_samples = 700_000 // num_features
    X = random.standard_normal((num_samples, num_features)) + 5
    X[:, -1] = 1e6
    y, weight = random.standard_normal((num_samples, 2)), random.integers(0, 3, num_samples).astype(float)
    with precision(np.float64):
        layout = lay_out(X)
        assert layout.rows.num_blocks > 1
        m = moments_of_rows(*problem(layout, X, y, weight, True))
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


def test_sparse_input_too_large_to_be_dense_is_refused():
    huge = sparse.csr_array((999_999, 1_000_000))  # wide: a tall one stays sparse in Ridge
    for model in (Ridge(), LassoCV(), RidgeCV()):
        with pytest.raises(MemoryError, match=r"X is sparse, \d+ x 1000000, and would be copied"):
            model.fit(huge, np.ones(999_999))


@pytest.mark.parametrize("shape", [(60, 5), (25, 40)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_ridge_folds_in_one_call_are_the_refits(shape, fit_intercept, random):
    X = random.standard_normal(shape) + 2
    y = np.stack([X[:, 0] - X[:, 1], X[:, 2]], axis=1) + random.standard_normal((shape[0], 2))
    alphas = [0.1, 1.0, 10.0, 100.0]
    for cv in (4, ShuffleSplit(3, random_state=0)):  # the second does not part the samples
        found = RidgeCV(alphas, cv=cv, fit_intercept=fit_intercept).fit(X, y)
        search = GridSearchCV(Ridge(fit_intercept=fit_intercept), {"alpha": alphas}, cv=cv).fit(X, y)
        assert found.alpha_ == search.best_params_["alpha"]
        np.testing.assert_allclose(found.best_score_, search.best_score_, rtol=1e-9)
        np.testing.assert_allclose(found.coef_, search.best_estimator_.coef_, rtol=1e-9)


def test_negative_weights_are_refused():
    for model in (Ridge(), LinearRegression(), Lasso()):
        with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
            model.fit(np.eye(3), np.ones(3), [1.0, -1.0, 1.0])
