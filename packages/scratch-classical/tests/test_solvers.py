"""The pure solvers: gradients against finite differences, vmap against loops, jit, and the objective."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scratch_classical import (
    Objective,
    kernel_matrix,
    precision,
    solve_elastic_net,
    solve_elastic_net_path,
    solve_lasso,
    solve_least_squares,
    solve_logistic_regression,
    solve_logistic_regression_path,
    solve_ridge,
    solve_svm,
    solve_svm_flat,
)

RANDOM = np.random.default_rng(0)
X, X_VAL = RANDOM.standard_normal((2, 40, 6)) + 0.5
TRUE = np.array([2.0, -1.0, 0.5, 0, 0, 0])
Y, Y_VAL = X @ TRUE + 0.3 * RANDOM.standard_normal(40), X_VAL @ TRUE
LABELS, LABELS_VAL = (Y.mean() < Y).astype(int), (Y_VAL.mean() < Y_VAL).astype(int)
THREE = np.digitize(Y, np.quantile(Y, [0.33, 0.67]))
WEIGHT = RANDOM.uniform(0.5, 2, 40)


@pytest.fixture(autouse=True)
def in_float64():
    with precision(np.float64):
        yield


def squares(fitted):
    coef, intercept = fitted
    return ((X_VAL @ coef + intercept - Y_VAL) ** 2).mean()


def log_loss(fitted):
    coef, intercept = fitted
    z = X_VAL @ coef + intercept
    return (jnp.logaddexp(0, z) - LABELS_VAL * z).mean()


def three_loss(fitted):
    coef, intercept = fitted
    z = X_VAL @ coef + intercept
    return (jax.nn.logsumexp(z, -1) - z[:, 0]).mean()


LOSSES = {
    "ridge": lambda a: squares(solve_ridge(X, Y, a)),
    "ridge, dual": lambda a: squares(solve_ridge(X[:5], Y[:5], a)),
    "ridge, weighted": lambda a: squares(solve_ridge(X, Y, 1.0, sample_weight=WEIGHT * a)),
    "ridge, X": lambda a: squares(solve_ridge(X * a, Y, 1.0)),
    "lasso": lambda a: squares(solve_lasso(X, Y, a, tol=1e-14)),
    "elastic net": lambda a: squares(solve_elastic_net(X, Y, a, 0.6, tol=1e-14)),
    "elastic net, ratio": lambda a: squares(solve_elastic_net(X, Y, 0.4, a, tol=1e-14)),
    "elastic net, X": lambda a: squares(solve_elastic_net(X * a, Y, 0.1, 0.5, tol=1e-14)),
    "elastic net, no intercept": lambda a: squares(solve_elastic_net(X, Y, a, fit_intercept=False, tol=1e-14)),
    "logistic": lambda a: log_loss(solve_logistic_regression(X, LABELS, a, tol=1e-13)),
    "logistic, X": lambda a: log_loss(solve_logistic_regression(X * a, LABELS, 1.0, tol=1e-13)),
    "logistic, weights": lambda a: log_loss(
        solve_logistic_regression(X, LABELS, 1.0, sample_weight=WEIGHT**a, tol=1e-13)
    ),
    "logistic, l1": lambda a: log_loss(solve_logistic_regression(X, LABELS, a, 0.7, tol=1e-13)),
    "logistic, path": lambda a: log_loss(
        tuple(v[-1] for v in solve_logistic_regression_path(X, LABELS, jnp.stack([0.1, a]), tol=1e-13))
    ),
    "multinomial": lambda a: three_loss(solve_logistic_regression(X, THREE, a, num_classes=3, tol=1e-13)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_the_validation_loss(name):
    loss, at, h = jax.jit(LOSSES[name]), 0.5, 1e-5
    expected = (loss(at + h) - loss(at - h)) / (2 * h)
    assert abs(float(expected)) > 1e-6
    # One linearisation for both directions: jax.jvp applies it and jax.grad transposes it.
    _, pushforward = jax.linearize(loss, at)
    (gradient,) = jax.linear_transpose(pushforward, at)(1.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(pushforward(1.0), expected, rtol=1e-5)


def test_vmap_over_alphas_and_folds_equals_a_loop():
    alphas = jnp.geomspace(0.01, 1, 4)
    for solve in (
        lambda a: solve_ridge(X, Y, a),
        lambda a: solve_elastic_net(X, Y, a, tol=1e-12),
        lambda a: solve_logistic_regression(X, LABELS, a, tol=1e-10),
    ):
        together = jax.vmap(solve)(alphas)
        for k, a in enumerate(alphas):
            for both, one in zip(together, solve(a)):
                np.testing.assert_allclose(both[k], one, rtol=1e-6, atol=1e-8)
    # All folds of a path in one call: a fold is a vector of weights.
    weights = np.ones((4, 40))
    for fold in range(4):
        weights[fold, fold::4] = 0
    path = jax.vmap(lambda w: solve_elastic_net_path(X, Y, alphas[::-1], 0.8, sample_weight=w, tol=1e-12))(weights)
    assert path[0].shape == (4, 4, 6)
    kept = weights[2] > 0
    alone = solve_elastic_net(X[kept], Y[kept], alphas[1], 0.8, tol=1e-12)
    np.testing.assert_allclose(path[0][2, 2], alone[0], rtol=1e-6, atol=1e-8)


def test_logistic_path_and_folds_equal_single_solutions():
    Cs, weights = jnp.array([0.01, 0.1, 1.0]), np.ones((2, 40))
    weights[0, ::2] = weights[1, 1::2] = 0
    for y, options in ((LABELS, {}), (THREE, {"num_classes": 3}), (LABELS, {"l1_ratio": 0.5})):
        solve = partial(solve_logistic_regression_path, X, y, Cs, tol=1e-11, **options)
        coefs, intercepts = jax.vmap(lambda w, solve=solve: solve(sample_weight=w))(weights)
        for f, kept in enumerate(weights > 0):
            for a, C in enumerate(Cs):
                coef, intercept = solve_logistic_regression(X[kept], y[kept], C, tol=1e-11, **options)
                np.testing.assert_allclose(coefs[f, a], coef, rtol=1e-6, atol=1e-8)
                np.testing.assert_allclose(intercepts[f, a], intercept, rtol=1e-6, atol=1e-8)


def test_least_squares_returns_the_shortest_solution():
    duplicated = np.concatenate([X, X[:, :2], np.ones((40, 1))], axis=1)
    coef, intercept = solve_least_squares(duplicated, Y)
    expected = np.linalg.pinv(duplicated - duplicated.mean(0)) @ (Y - Y.mean())
    np.testing.assert_allclose(coef, expected, atol=1e-12)
    assert coef[-1] == 0
    np.testing.assert_allclose(intercept, Y.mean() - duplicated.mean(0) @ expected)


def test_solvers_reach_the_minimum_of_the_objective():
    """A small step from a solution, in any direction, raises the objective that its docstring states."""
    n = len(Y)
    cases = [
        (Objective.ridge(0.7), solve_ridge(X, Y, 0.7), Y),
        (Objective.least_squares(), solve_least_squares(X, Y), Y),
        (Objective.lasso(0.3, n), solve_lasso(X, Y, 0.3, tol=1e-12), Y),
        (Objective.elastic_net(0.3, 0.4, n), solve_elastic_net(X, Y, 0.3, 0.4, tol=1e-12), Y),
        (Objective.logistic(0.8), solve_logistic_regression(X, LABELS, 0.8), LABELS),
        (Objective.logistic(0.8, 0.6), solve_logistic_regression(X, LABELS, 0.8, 0.6), LABELS),
        (Objective.logistic(0.8, multinomial=True), solve_logistic_regression(X, THREE, 0.8, num_classes=3), THREE),
    ]
    random = np.random.default_rng(1)
    for objective, (coef, intercept), y in cases:
        best = objective(coef, intercept, X, y)
        for _ in range(20):
            step = 1e-3 * random.standard_normal(coef.shape), 1e-3 * random.standard_normal(jnp.shape(intercept))
            assert objective(coef + step[0], intercept + step[1], X, y) > best


def test_the_proximal_operator_minimises_its_definition():
    objective, w = Objective.lasso(0.5, 1.0), np.array([1.2, -0.3, 0.1, -2.0])
    grid = np.linspace(-3, 3, 60001)
    brute = [grid[np.argmin(0.5 * (grid - v) ** 2 + 0.2 * 0.5 * np.abs(grid))] for v in w]
    np.testing.assert_allclose(objective.prox(w, 0.2), brute, atol=1e-4)
    assert float(objective.prox(np.array([0.05]), 0.2)[0]) == 0.0


def test_svm_levels_agree_and_vmap():
    random = np.random.default_rng(2)
    points = random.standard_normal((600, 3))
    y = np.where(points[:, 0] * points[:, 1] + 0.3 * random.standard_normal(600) > 0, 1.0, -1.0)
    # A kernel that is not stored is computed in float64 and kept in float32, so the stored one is rounded alike.
    K = kernel_matrix(points, points, 0.5).astype(np.float32)
    lower, upper = np.minimum(y, 0.0), np.maximum(y, 0.0)
    flat = solve_svm_flat(K, y, lower, upper, 0.0, 1e-8, 1e-8)
    two = solve_svm(K, y, lower, upper, 0.0, 1e-8)
    computed = solve_svm(points, y, lower, upper, 0.0, 1e-8, gamma=0.5, stored=False)
    for beta, b, violation, _ in (flat, two, computed):
        assert violation <= 1e-8
        np.testing.assert_allclose(K @ beta + b, K @ flat[0] + flat[1], atol=2e-6)
        assert abs(beta.sum()) < 1e-10
        assert (beta >= lower).all()
        assert (beta <= upper).all()
    bounds = jnp.array([0.5, 2.0])[:, None]
    several = jax.vmap(lambda c: solve_svm_flat(K, y, lower * c, upper * c, 0.0, 1e-6, 1e-6)[0])(bounds)
    alone = solve_svm_flat(K, y, lower * 2, upper * 2, 0.0, 1e-6, 1e-6)[0]
    np.testing.assert_allclose(K @ several[1], K @ alone, atol=1e-4)
