r"""Logistic regression as functions for ``jax.jit``, ``jax.vmap`` and ``jax.grad``.

The minimum is that of :mod:`.logistic_solver`, with its f, H and equations.

**Derivatives.** At the minimum $\nabla f + \lambda_1 \operatorname{sign}(w) = 0$ on the support, hence
$H_{SS}\, d\theta_S = -d(\nabla f + \lambda_1 \operatorname{sign}(w))_S$; no iteration is differentiated.

Shapes: I samples, D features, E = D + 1 (features and intercept), K rows of coefficients (1 for two classes), A values
of C, P = E * K.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import as_floating, as_rows
from .logistic_solver import Problem, loss_and_gradient, loss_hessian, minimise
from .objective import LinearSolution


@partial(jax.custom_jvp, nondiff_argnums=(8, 9))
def _solve(
    X: jax.Array,
    y_IK: jax.Array,
    C: jax.Array,
    l1_ratio: jax.Array,
    weight_I: jax.Array,
    start_KE: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    intercept: bool,
    method: str,
) -> jax.Array:
    problem = Problem(as_rows(X), y_IK, weight_I, X, weight_I)
    return minimise(problem, start_KE, C, l1_ratio, tol, max_iter, intercept, method).theta


@_solve.defjvp
def _solve_jvp(
    intercept: bool, method: str, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    theta_KE = _solve(*primals, intercept, method)
    X, _, C, l1_ratio, weight_I, *_ = primals

    def condition(X: jax.Array, y_IK: jax.Array, C: jax.Array, l1_ratio: jax.Array, weight_I: jax.Array) -> jax.Array:
        """Return what is zero on the support at the minimum."""
        total = weight_I.sum()
        l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)
        _, g_KE = loss_and_gradient(theta_KE, as_rows(X), y_IK, weight_I, total, l2, intercept)
        return g_KE.at[:, :-1].add(l1 * jnp.sign(theta_KE[:, :-1]))

    _, change_KE = jax.jvp(condition, primals[:5], tangents[:5])
    total = weight_I.sum()
    H_PP = loss_hessian(theta_KE, as_rows(X), weight_I, total, (1 - l1_ratio) / (C * total), intercept)
    on_KE = jnp.ones_like(theta_KE)
    if method == "sparse":
        on_KE = on_KE.at[:, :-1].set(theta_KE[:, :-1] != 0)
    on_P = on_KE.T.ravel()
    system_PP = H_PP * on_P * on_P[:, None] + jnp.diag(1 - on_P)
    d_P = -jax.scipy.linalg.solve(system_PP, on_P * change_KE.T.ravel(), assume_a="sym")
    return theta_KE, d_P.reshape(theta_KE.shape[::-1]).T


class _SolveArguments(NamedTuple):
    """The arguments of :func:`_solve` except C and the static ones."""

    X: jax.Array
    y_IK: jax.Array
    l1_ratio: jax.Array
    weight_I: jax.Array
    start_KE: jax.Array
    tol: jax.Array
    max_iter: jax.Array


def _solve_arguments(
    X: ArrayLike,
    y: ArrayLike,
    l1_ratio: ArrayLike,
    sample_weight: ArrayLike | None,
    num_classes: int,
    tol: ArrayLike,
    max_iter: ArrayLike,
) -> _SolveArguments:
    X = as_floating(X)
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    if num_classes == 2:
        y_IK = jnp.asarray(y)[:, None].astype(X.dtype)
    else:
        y_IK = jax.nn.one_hot(y, num_classes, dtype=X.dtype)
    tol = jnp.maximum(jnp.asarray(tol, X.dtype), 4 * jnp.finfo(X.dtype).eps)
    start_KE = jnp.zeros((y_IK.shape[1], X.shape[1] + 1), X.dtype)
    return _SolveArguments(X, y_IK, jnp.asarray(l1_ratio, X.dtype), weight_I, start_KE, tol, jnp.asarray(max_iter))


def _method(l1_ratio: ArrayLike, l1: bool | None) -> str:
    if l1 is None:
        l1 = not (isinstance(l1_ratio, (int, float)) and l1_ratio == 0)
    return "sparse" if l1 else "lbfgs"


def _solution(theta_KE: jax.Array) -> LinearSolution:
    if len(theta_KE) == 1:
        return LinearSolution(theta_KE[0, :-1], theta_KE[0, -1])
    return LinearSolution(theta_KE[:, :-1].T, theta_KE[:, -1])


@partial(jax.jit, static_argnames=("num_classes", "fit_intercept", "l1"))
def solve_logistic_regression(
    X: ArrayLike,
    y: ArrayLike,
    C: ArrayLike = 1.0,
    l1_ratio: ArrayLike = 0.0,
    *,
    num_classes: int = 2,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    l1: bool | None = None,
    tol: ArrayLike = 1e-8,
    max_iter: ArrayLike = 200,
) -> LinearSolution:
    r"""Return the minimiser (coef, intercept) of eq. 1 of :mod:`.logistic_solver`.

    X is [I, D], and the labels y [I] are in 0 .. num_classes - 1. Two classes give coef [D] and one intercept, more
    give [D, K] and [K]. $\rho$ is ``l1_ratio``. ``l1`` states whether there is an L1 penalty, which must be known when
    the program is compiled; None assumes one if ``l1_ratio`` is passed. tol bounds the gradient of the mean loss.
    Differentiable in X, C, l1_ratio and sample_weight; vmap over any array.
    """
    method = _method(l1_ratio, l1)
    X, y_IK, l1_ratio, weight_I, *others = _solve_arguments(X, y, l1_ratio, sample_weight, num_classes, tol, max_iter)
    C = jnp.asarray(C, X.dtype)
    return _solution(_solve(X, y_IK, C, l1_ratio, weight_I, *others, bool(fit_intercept), method))


@partial(jax.jit, static_argnames=("num_classes", "fit_intercept", "l1"))
def solve_logistic_regression_path(
    X: ArrayLike,
    y: ArrayLike,
    Cs: ArrayLike,
    l1_ratio: ArrayLike = 0.0,
    *,
    num_classes: int = 2,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    l1: bool | None = None,
    tol: ArrayLike = 1e-8,
    max_iter: ArrayLike = 200,
) -> LinearSolution:
    """Return the minimisers of :func:`solve_logistic_regression` for every C of ``Cs`` [A], with an axis [A] in front.

    Each starts from the minimum before it, so small C should come first. A fold is a vector of weights, zero for the
    samples that it leaves out: vmap over ``sample_weight`` solves all folds. Differentiable as well.
    """
    method = _method(l1_ratio, l1)
    X, y_IK, l1_ratio, weight_I, start_KE, tol, max_iter = _solve_arguments(
        X, y, l1_ratio, sample_weight, num_classes, tol, max_iter
    )

    def step(start_KE: jax.Array, C: jax.Array) -> tuple[jax.Array, LinearSolution]:
        start_KE = jax.lax.stop_gradient(start_KE)
        theta_KE = _solve(X, y_IK, C, l1_ratio, weight_I, start_KE, tol, max_iter, bool(fit_intercept), method)
        return theta_KE, _solution(theta_KE)

    return jax.lax.scan(step, start_KE, jnp.asarray(Cs, X.dtype))[1]
