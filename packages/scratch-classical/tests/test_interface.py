"""What scikit-learn's users rely on besides the numbers: refusals, scoring, metadata routing, attributes."""

import numpy as np
import pytest
from scipy import sparse
from scratch_classical import (
    SVC,
    SVR,
    ElasticNet,
    ElasticNetCV,
    KNeighborsClassifier,
    KNeighborsRegressor,
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import get_scorer, log_loss, make_scorer, pairwise_distances
from sklearn.model_selection import GroupKFold, KFold, LeaveOneOut, PredefinedSplit, cross_val_score

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((60, 4))
Y = X @ np.array([1.0, -2.0, 0.0, 3.0]) + 0.1 * RANDOM.standard_normal(60)
LABELS = np.digitize(Y, [-1.5, 1.5])
WEIGHT = RANDOM.uniform(0.5, 2, 60)
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Ridge(alpha=np.nan), "alpha"),
        (Ridge(alpha=[-1.0]), "alpha"),
        (Ridge(fit_intercept="no"), "fit_intercept"),
        (Ridge(solver="svd", positive=True), "positive"),
        (Lasso(selection="foo"), "selection"),
        (ElasticNet(tol=-1), "tol"),
        (LassoCV(alphas=[1.0, -1.0]), r"alphas\[1\] == -1"),
        (LassoCV(alphas=[1.0, np.nan]), r"alphas\[1\] == nan"),
        (ElasticNetCV(l1_ratio=[0.5, 2.0]), r"l1_ratio\[1\] == 2"),
        (LogisticRegressionCV(Cs=[-1.0]), r"Cs\[0\] == -1"),
        (RidgeCV(alphas=[1.0, 0.0]), r"alphas\[1\] == 0"),
        (RidgeCV(cv=3, alpha_per_target=True), "alpha_per_target"),
        (LogisticRegression(penalty="elasticnet", l1_ratio=None), "l1_ratio"),
    ],
)
def test_a_wrong_parameter_is_named(model, name):
    with pytest.raises(ValueError, match=name):
        model.fit(X, LABELS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (RidgeCV(), np.float64),
        (Lasso(), np.float64),
        (LassoCV(cv=3), np.float64),
        (SVC(), np.float64),
        (LogisticRegression(), np.float32),
    ],
)
def test_overflow_is_refused(model, dtype):
    large = (np.finfo(dtype).max * RANDOM.uniform(size=(12, 4))).astype(dtype)
    with pytest.raises(ValueError, match="finite"):
        model.fit(large, np.arange(12) % 2)


def test_a_machine_predicts_float32_samples_whose_squares_overflow():
    large = (1e38 * X).astype(np.float32)
    np.testing.assert_allclose(SVR().fit(large, Y).predict(large), SVR().fit(X, Y).predict(X), rtol=0, atol=1e-3)


def test_a_cross_validated_path_that_did_not_converge_warns():
    collinear = np.cumsum(RANDOM.standard_normal((60, 4)), axis=1) + 10 * X[:, :1]
    with pytest.warns(ConvergenceWarning, match="increase the number of iterations"):
        LassoCV(cv=3, max_iter=1, tol=1e-8, alphas=[1.0, 1e-3, 1e6]).fit(collinear, Y)


def test_ridge_cv_of_float32_keeps_its_digits_with_a_tiny_alpha():
    exact = np.linalg.lstsq(np.c_[X, np.ones(60)].astype(np.float32).astype(np.float64), Y.astype(np.float32))[0]
    model = RidgeCV(alphas=[1e-8]).fit(X.astype(np.float32), Y.astype(np.float32))
    assert model.coef_.dtype == model.predict(X.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(model.coef_, exact[:4], rtol=0, atol=3e-7)


def test_unpenalised_multinomial_coefficients_are_symmetric():
    noisy = (LABELS + (RANDOM.uniform(size=60) < 0.3)) % 3
    model = LogisticRegression(C=np.inf, solver="newton-cholesky").fit(X, noisy)
    np.testing.assert_allclose(model.coef_.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(model.intercept_.sum(), 0, atol=1e-12)


class TestScoring:
    def test_logistic_cv_scores_by_its_scorer(self):
        model = LogisticRegressionCV(Cs=2, cv=3, scoring="neg_log_loss", use_legacy_attributes=False).fit(X, LABELS)
        assert model.score(X, LABELS) == -log_loss(LABELS, model.predict_proba(X))

    def test_logistic_cv_with_a_class_that_a_fold_lacks(self):
        folds = PredefinedSplit(np.where(LABELS == 2, 0, np.arange(60) % 2))
        model = LogisticRegressionCV(Cs=2, cv=folds, scoring="neg_log_loss", use_legacy_attributes=False)
        model.fit(X, LABELS)
        test = np.flatnonzero(folds.test_fold == 1)
        path = model.coefs_paths_[1, 0]  # of the Cs, where fold 1 is left out
        scores = X[test] @ path[1, :, :4].T + path[1, :, 4]
        probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        expected = -log_loss(LABELS[test], probability, labels=[0, 1, 2])
        np.testing.assert_allclose(model.scores_[1, 0, 1], expected, rtol=1e-6)

    @pytest.mark.parametrize("samples", [40, 4])
    def test_ridge_cv_scores_all_outputs_together(self, samples):
        targets = np.stack([Y, 3 * Y[::-1]], axis=1)[:samples]

        def first_output_twice(y, predicted):
            return np.average(((y - predicted) ** 2).mean(0), weights=[2, 1])

        scorer = make_scorer(first_output_twice, greater_is_better=False)
        model = RidgeCV(alphas=[1.0], scoring=scorer).fit(X[:samples], targets)
        left_out = np.empty((samples, 2))
        for train, test in LeaveOneOut().split(X[:samples]):
            left_out[test] = Ridge(1.0).fit(X[train], targets[train]).predict(X[test])
        np.testing.assert_allclose(model.best_score_, -first_output_twice(targets, left_out), rtol=1e-9)


class TestRouting:
    GROUPS = np.arange(60) % 5

    @pytest.mark.parametrize("estimator", [LassoCV, ElasticNetCV, RidgeCV, LogisticRegressionCV])
    def test_groups_reach_the_splitter(self, estimator):
        y = LABELS if estimator is LogisticRegressionCV else Y
        folds = list(GroupKFold(3).split(X, y, self.GROUPS))
        with pytest.raises(ValueError, match="enable_metadata_routing=True"):
            estimator(cv=GroupKFold(3)).fit(X, y, groups=self.GROUPS)
        with config_context(enable_metadata_routing=True):
            routed = estimator(cv=GroupKFold(3)).fit(X, y, groups=self.GROUPS)
        np.testing.assert_array_equal(routed.coef_, estimator(cv=folds).fit(X, y).coef_)

    @pytest.mark.parametrize("requested", [True, False])
    def test_a_scorer_gets_the_weights_that_it_asked_for(self, requested):
        seen = []

        def metric(y, predicted, sample_weight=None):
            seen.append(sample_weight is not None)
            return 0.0

        with config_context(enable_metadata_routing=True):
            scorer = make_scorer(metric).set_score_request(sample_weight=requested)
            RidgeCV(scoring=scorer).fit(X, Y, sample_weight=WEIGHT)
            RidgeCV(scoring=scorer, cv=3).fit(X, Y, sample_weight=WEIGHT)
            model = LogisticRegressionCV(Cs=1, cv=2, scoring=scorer).fit(X, LABELS, sample_weight=WEIGHT)
            if requested:
                model.score(X, LABELS, sample_weight=WEIGHT)
            else:
                with pytest.raises(TypeError, match="sample_weight"):
                    model.score(X, LABELS, sample_weight=WEIGHT)
        assert set(seen) == {requested}

    @config_context(enable_metadata_routing=True)
    def test_the_default_scorers_work_with_weights(self):
        RidgeCV().fit(X, Y, sample_weight=WEIGHT)
        scorer = get_scorer("accuracy").set_score_request(sample_weight=True)
        LogisticRegressionCV(Cs=1, cv=2, scoring=scorer).fit(X, LABELS, sample_weight=WEIGHT)


class TestAttributes:
    def test_logistic_coefficients_may_be_written_and_made_sparse(self):
        model = LogisticRegression(l1_ratio=1.0, C=0.1).fit(X, LABELS > 0)
        before = model.decision_function(X)
        assert sparse.issparse(model.sparsify().coef_)
        np.testing.assert_array_equal(model.decision_function(X), before)
        model.densify().coef_[:] = 0
        np.testing.assert_array_equal(model.decision_function(X), np.full(60, model.intercept_[0]))

    def test_no_iteration_is_counted_as_none(self):
        with pytest.warns(ConvergenceWarning, match="Increase the number of iterations"):
            assert LogisticRegression(max_iter=0).fit(X, LABELS > 0).n_iter_ == 0

    def test_input_that_was_checked_before(self):
        np.testing.assert_array_equal(Lasso(0.1).fit(X, Y, check_input=False).coef_, Lasso(0.1).fit(X, Y).coef_)
        with pytest.raises(AttributeError):  # nothing turned the list into an array
            Lasso(0.1).fit(X.tolist(), Y, check_input=False)

    @pytest.mark.parametrize("padding", [0, 300])  # with 304 features a working set is used
    def test_a_warm_start_at_the_minimum_makes_no_sweep(self, padding):
        wide = np.pad(X, ((0, 0), (0, padding)))
        model = Lasso(0.1, warm_start=True).fit(wide, Y)
        coef, sweeps = model.coef_, model.n_iter_
        np.testing.assert_array_equal(model.fit(wide, Y).coef_, coef)
        assert (sweeps > 1, model.n_iter_) == (True, 0)

    def test_paths_belong_to_the_estimators(self):
        alphas, coefs, _ = Lasso.path(X, Y, l1_ratio=1.0, alphas=[0.1])
        np.testing.assert_array_equal(coefs, LassoCV.path(X, Y, alphas=alphas)[1])

    def test_ridge_of_one_column_has_the_shapes_of_scikit_learn(self):
        for model in (Ridge(), RidgeCV()):
            model.fit(X, Y[:, None])
            assert (model.coef_.shape, model.intercept_.shape) == ((4,), (1,))
        assert Ridge(solver="lsqr").fit(X, Y).solver_ == "lsqr"

    @pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array])
    def test_machines_fitted_to_sparse_samples_have_sparse_attributes(self, container):
        for model, y in ((SVC(kernel="linear"), LABELS), (SVR(kernel="linear"), Y)):
            dense = model.fit(X, y)
            coef, duals, predicted = dense.coef_, dense.dual_coef_, dense.predict(X)
            with pytest.raises(ValueError, match="trained on dense data"):
                dense.predict(container(X))
            packed = model.fit(container(X), y)
            assert all(map(sparse.issparse, (packed.coef_, packed.dual_coef_, packed.support_vectors_)))
            np.testing.assert_allclose(packed.coef_.toarray(), coef, rtol=1e-9)
            np.testing.assert_allclose(packed.dual_coef_.toarray(), duals, rtol=1e-9)
            np.testing.assert_allclose(packed.predict(container(X)), predicted, rtol=1e-9)

    def test_linear_coefficients_of_a_machine_are_read_only(self):
        model = SVC(kernel="linear").fit(X, LABELS)
        with pytest.raises(ValueError, match="read-only"):
            model.coef_[0, 0] = 1

    def test_probabilities_that_were_not_fitted_are_a_not_fitted_error(self):
        model = SVC().fit(X, LABELS)
        assert not hasattr(model, "predict_proba")
        with pytest.raises(NotFittedError, match="probability=True"):
            model.set_params(probability=True).predict_proba(X)

    def test_a_kernel_function_may_take_samples_of_any_type(self):
        words = ["A A", "A", "B", "B B", "A B"]

        def kernel(one, other):
            return [[a.count("A") * b.count("A") + a.count("B") * b.count("B") for b in other] for a in one]

        model = SVC(kernel=kernel).fit(words, [1, 1, 2, 2, 1])
        counts = [[word.count("A"), word.count("B")] for word in words]
        linear = SVC(kernel="linear").fit(counts, [1, 1, 2, 2, 1])
        np.testing.assert_allclose(model.decision_function(words), linear.decision_function(counts), rtol=1e-6)
        with pytest.raises(ValueError, match=r"gave the shape \(1, 1\)"):
            SVC(kernel=lambda a, b: [[1.0]]).fit(words, [1, 1, 2, 2, 1])


class TestGivenDistances:
    DISTANCES = pairwise_distances(X)

    @pytest.mark.parametrize("estimator", [KNeighborsClassifier, KNeighborsRegressor])
    def test_they_give_what_the_features_give(self, estimator):
        features, given = estimator(weights="distance"), estimator(weights="distance", metric="precomputed")
        np.testing.assert_allclose(
            cross_val_score(given, self.DISTANCES, LABELS, cv=KFold(3)),
            cross_val_score(features, X, LABELS, cv=KFold(3)),
        )
        features.fit(X, LABELS), given.fit(self.DISTANCES, LABELS)
        for one, other in zip(features.kneighbors(), given.kneighbors()):
            np.testing.assert_allclose(one, other)

    def test_a_sparse_graph(self):
        graph = KNeighborsClassifier().fit(X, LABELS).kneighbors_graph(X, 7, mode="distance")
        model = KNeighborsClassifier(metric="precomputed").fit(graph, LABELS)
        np.testing.assert_array_equal(model.kneighbors(graph, 5)[1], graph.indices.reshape(60, 7)[:, :5])
        with pytest.raises(ValueError, match="smallest number of neighbors in the precomputed graph is 7"):
            model.kneighbors(graph, 8)
        with pytest.raises(TypeError, match="explicit zeros"):
            model.kneighbors(graph.todok())
        with pytest.raises(ValueError, match="must not be negative"):
            model.kneighbors(-graph)
        with pytest.raises(ValueError, match="60x4"):
            model.fit(X, LABELS)

    def test_weights_that_are_all_zero_are_refused(self):
        model = KNeighborsRegressor(weights=lambda distances: 0 * distances).fit(X, Y)
        with pytest.raises(ValueError, match="zero weights"):
            model.predict(X)
