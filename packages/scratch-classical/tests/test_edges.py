"""Awkward input: rank deficiency, constants, single samples, ties, sparse input, precision, limits; and pictures."""

import numpy as np
import pytest
from scipy import sparse
from scratch_classical import SVC, SVR, KNeighborsClassifier, Lasso, LinearRegression, Ridge

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((60, 5))
Y = X @ np.array([1.0, -2.0, 0, 0, 3.0]) + 0.1 * RANDOM.standard_normal(60)


def test_duplicated_and_constant_columns_give_the_shortest_solution():
    awkward = np.concatenate([X, X[:, :1], np.full((60, 1), 7.0)], axis=1)
    model = LinearRegression().fit(awkward, Y)
    expected = np.linalg.pinv(awkward - awkward.mean(0), rcond=1e-12) @ (Y - Y.mean())
    np.testing.assert_allclose(model.coef_, expected, atol=1e-10)
    assert model.coef_[-1] == 0
    assert model.rank_ == 5


def test_condition_number_of_a_million(random):
    U, _, Vt = np.linalg.svd(random.standard_normal((5000, 20)), full_matrices=False)
    bad = (U * np.geomspace(1, 1e-6, 20)) @ Vt
    true = random.standard_normal(20)
    model = LinearRegression(fit_intercept=False).fit(bad, bad @ true)
    assert np.linalg.norm(model.coef_ - true) <= 1e-8 * np.linalg.norm(true)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_sample_one_feature_and_dtype(dtype, random):
    for shape in ((1, 3), (5, 1)):
        data = random.standard_normal(shape).astype(dtype)
        for model in (LinearRegression(), Ridge(), Lasso(0.01)):
            fitted = model.fit(data, data[:, 0])
            assert np.isfinite(fitted.coef_).all()
            assert fitted.coef_.dtype == fitted.predict(data).dtype == dtype


def test_rows_used_in_place_and_copied_rows_agree(random):
    """Above four megabytes blocks of the input are used in place, which a copy in Fortran order does not allow."""
    wide = random.standard_normal((9001, 70)) + 3
    target = wide @ random.standard_normal(70) + random.standard_normal(9001)
    weight = random.uniform(0, 2, 9001)
    for offset in (0, 1):  # the buffer begins at another alignment
        raw = np.zeros(wide.size + 1)
        used = raw[offset : offset + wide.size].reshape(wide.shape)
        used[:] = wide
        one = Ridge().fit(used, target, weight)
        two = Ridge().fit(np.asfortranarray(wide), target, weight)
        np.testing.assert_allclose(one.coef_, two.coef_, rtol=1e-11)
        np.testing.assert_allclose(one.intercept_, two.intercept_, rtol=1e-10)


def test_lasso_working_set_has_exact_zeros_and_a_small_gap(random):
    wide = random.standard_normal((400, 600))
    target = wide[:, :8].sum(1) + 0.1 * random.standard_normal(400)
    model = Lasso(0.1).fit(wide, target)
    rest = target - model.predict(wide)
    centered = wide - wide.mean(0)
    slope = np.abs(centered.T @ rest) / 400
    assert 8 <= (model.coef_ != 0).sum() < 60
    assert slope.max() <= 0.1 * (1 + 1e-3)
    assert 0 <= model.dual_gap_ <= 1e-4 * (target - target.mean()) @ (target - target.mean()) / 400


def test_neighbours_of_duplicates_and_ties():
    grid = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0)), -1).reshape(-1, 2)  # every distance is tied
    model = KNeighborsClassifier(n_neighbors=4).fit(np.repeat(grid, 2, axis=0), np.arange(7200) % 2)
    distances, indices = model.kneighbors(grid[:50])
    brute = np.sort(((grid[:50, None] - np.repeat(grid, 2, axis=0)[None]) ** 2).sum(-1), axis=1)[:, :4] ** 0.5
    np.testing.assert_allclose(distances, brute, atol=1e-12)
    assert all(len(set(row)) == 4 for row in indices.tolist())


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_input_is_accepted(container):
    for model in (Ridge(), Lasso(0.01), SVR(), LinearRegression()):
        dense, packed = model.fit(X, Y).predict(X), model.fit(container(X), Y).predict(container(X))
        np.testing.assert_allclose(dense, packed, rtol=1e-9)


def test_svm_with_a_computed_kernel_is_optimal_and_equals_the_stored_one(random):
    points = random.standard_normal((1500, 4))
    labels = (points[:, 0] * points[:, 1] > 0).astype(int)
    stored, computed = SVC(C=2.0).fit(points, labels), SVC(C=2.0, cache_size=0.1).fit(points, labels)
    np.testing.assert_allclose(stored.decision_function(points), computed.decision_function(points), atol=3e-3)
    signs = np.where(labels == 1, 1, -1)
    beta = np.zeros(1500)
    beta[computed.support_] = computed.dual_coef_[0]
    margin = signs * computed.decision_function(points)
    alpha = signs * beta
    assert abs(beta.sum()) < 1e-9
    assert alpha.min() >= 0
    assert alpha.max() <= 2.0
    assert (margin[alpha == 0] >= 1 - 2e-3).all()
    assert (margin[alpha == 2.0] <= 1 + 2e-3).all()
    free = (alpha > 0) & (alpha < 2.0)
    np.testing.assert_allclose(margin[free], 1, atol=2e-3)


def test_svc_probabilities_and_callable_kernel():
    labels = np.digitize(Y, [-1, 1])
    model = SVC(kernel=lambda a, b: a @ b.T, probability=True, random_state=0).fit(X, labels)
    linear = SVC(kernel="linear").fit(X, labels)
    np.testing.assert_allclose(model.decision_function(X), linear.decision_function(X), atol=1e-5)
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == labels).mean() > 0.9


def test_pictures_are_drawn():
    pytest.importorskip("matplotlib", reason="an extra: pictures are optional").use("Agg")
    from scratch_classical import lasso_path
    from scratch_classical.plot import plot_decision_boundary, plot_learning_curve, plot_regularization_path

    labels = (X[:, 0] > 0).astype(int)
    ax = plot_decision_boundary(SVC().fit(X[:, :2], labels), X[:, :2], labels, resolution=20)
    assert len(ax.collections) >= 4
    alphas, coefs, _ = lasso_path(X, Y, alphas=10)
    assert len(plot_regularization_path(alphas, coefs).lines) == 6
    assert len(plot_learning_curve(Ridge(), X, Y, cv=3, sizes=(0.5, 1.0)).lines) == 2
    with pytest.raises(ValueError, match="two features"):
        plot_decision_boundary(SVC(), X, labels)
    with pytest.raises(ValueError, match="fitted to the classes"):
        plot_decision_boundary(SVC().fit(X[:, :2], labels), X[:, :2], labels + 1)
