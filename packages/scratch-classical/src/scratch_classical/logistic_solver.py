r"""Logistic regression, binary and multinomial, with L2, L1 and elastic-net penalties: the minimum and its derivative.

$$ \min_{w, b}\; C \sum_i \omega_i\, \ell(y_i, x_i^\top w + b) + \rho \|w\|_1 +
\tfrac{1-\rho}{2}\|w\|^2 \tag{1} $$

with the losses of :mod:`.objective`. Divided by $C n$, $n = \sum_i \omega_i$, its smooth part $f$ has gradient and
Hessian (p the predicted probabilities, $\tilde x = (x, 1)$)

$$ \nabla f = \tfrac1n \sum_i \omega_i (p_i - y_i) \tilde x_i^\top + \lambda_2 w, \qquad
   H = \tfrac1n \sum_i \omega_i (\operatorname{diag} p_i - p_i p_i^\top) \otimes \tilde x_i \tilde x_i^\top
   + \lambda_2 I \tag{2} $$

**L-BFGS** (:mod:`.lbfgs`) makes one pass over the data per step. Its matrix B is computed from a sample of the rows.
It is the mean over the classes of the diagonal blocks of eq. 2; for two classes that is the Hessian of the sample:

$$ B = \frac{1}{K \sum \omega_i} \sum_{i \in \text{sample}} \omega_i \Big(\sum_k p_{ik} (1 - p_{ik})\Big)
   \tilde x_i \tilde x_i^\top + \lambda_2 I \tag{3} $$

**Newton's method** (:mod:`.newton`) uses eq. 2 itself. Only this method takes an L1 penalty.

**Derivatives.** At the minimum $\nabla f + \lambda_1 \operatorname{sign}(w) = 0$ on the support, hence
$H_{SS}\, d\theta_S = -d(\nabla f + \lambda_1 \operatorname{sign}(w))_S$; no iteration is differentiated.

Shapes: I samples, R rows of a block, S rows of the sample, D features, E = D + 1 (features and intercept), K rows of
coefficients (1 for two classes), A values of C, F folds, P = E * K.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import Rows, as_floating, as_rows
from .lbfgs import Minimum, lbfgs
from .newton import newton
from .objective import LinearSolution


def _scores(theta_KE: jax.Array, X_RD: jax.Array) -> jax.Array:
    r"""Return $w_k^\top x_i + b_k$ as [K, R], because XLA's loops over classes are slow on the innermost axis."""
    return jax.lax.dot_general(theta_KE[:, :-1], X_RD, (((1,), (1,)), ((), ()))) + theta_KE[:, -1:]


def _loss_and_error(scores_KR: jax.Array, y_KR: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the losses [R] and $p - y$ [K, R]; y is one row of zeros and ones, or one-hot."""
    if len(scores_KR) == 1:
        small_KR = jnp.exp(-jnp.abs(scores_KR))
        loss_KR = jnp.maximum(scores_KR, 0) + jnp.log1p(small_KR) - y_KR * scores_KR
        return loss_KR[0], jnp.where(scores_KR >= 0, 1, small_KR) / (1 + small_KR) - y_KR
    highest_R = scores_KR.max(0)
    power_KR = jnp.exp(scores_KR - highest_R)
    total_R = power_KR.sum(0)
    return jnp.log(total_R) + highest_R - (y_KR * scores_KR).sum(0), power_KR * (1 / total_R) - y_KR


def _value_and_gradient(
    theta_KE: jax.Array,
    rows: Rows,
    y_IK: jax.Array,
    weight_I: jax.Array,
    total: jax.Array,
    l2: jax.Array,
    intercept: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return f and its gradient [K, E], which is zero for the intercepts if there are none."""

    def part(X_RD: jax.Array, y_RK: jax.Array, weight_R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        loss_R, error_KR = _loss_and_error(_scores(theta_KE, X_RD), y_RK.T)
        error_KR = error_KR * weight_R
        return weight_R @ loss_R, error_KR @ X_RD, error_KR.sum(1)

    value, slope_KD, slope_K = rows.sum(part, y_IK, weight_I)
    coef_KD = theta_KE[:, :-1]
    slope_K1 = float(intercept) * slope_K[:, None] / total
    gradient_KE = jnp.concatenate([slope_KD / total + l2 * coef_KD, slope_K1], axis=1)
    return value / total + 0.5 * l2 * (coef_KD**2).sum(), gradient_KE


def _with_ones(X_RD: jax.Array, intercept: bool) -> jax.Array:
    """Append the column of the intercept, which is zero if there is none."""
    return jnp.concatenate([X_RD, jnp.full((X_RD.shape[0], 1), float(intercept), X_RD.dtype)], axis=1)


def _hessian(
    theta_KE: jax.Array, rows: Rows, weight_I: jax.Array, total: jax.Array, l2: jax.Array, intercept: bool
) -> jax.Array:
    """Return eq. 2 as [P, P] in the order [E, K], with ones on the diagonal where it is zero."""
    K, E = theta_KE.shape

    def part(X_RD: jax.Array, weight_R: jax.Array) -> jax.Array:
        Z_RE = _with_ones(X_RD, intercept)
        scores_KR = _scores(theta_KE, X_RD)
        if K == 1:
            p_KR = jax.nn.sigmoid(scores_KR)
            curvature_KKR = (p_KR * (1 - p_KR))[None]
        else:
            p_KR = jax.nn.softmax(scores_KR, axis=0)
            curvature_KKR = jnp.eye(K, dtype=p_KR.dtype)[:, :, None] * p_KR - p_KR[:, None] * p_KR
        weighted = (curvature_KKR * weight_R).reshape(K * K, -1)
        blocks = jax.lax.map(lambda c_R: Z_RE.T @ (Z_RE * c_R[:, None]), weighted)
        return blocks.reshape(K, K, E, E).transpose(2, 0, 3, 1)

    P = E * K
    penalised_EK = jnp.ones((E, K), theta_KE.dtype).at[-1].set(0)
    hessian_PP = (rows.sum(part, weight_I) / total).reshape(P, P) + l2 * jnp.diag(penalised_EK.ravel())
    # Adding a constant to all intercepts changes no probability, so H is singular in that direction. This term makes it
    # positive definite. It does not change the step, because gradients sum to zero over the classes.
    if K > 1 and intercept:
        on_P = (1 - penalised_EK).ravel()
        hessian_PP = hessian_PP + jnp.outer(on_P, on_P) * jnp.clip(jnp.diagonal(hessian_PP).mean(), 1e-3) / K
    diagonal_P = jnp.diagonal(hessian_PP)
    floor = jnp.finfo(hessian_PP.dtype).eps ** 0.75 * diagonal_P.max()
    return hessian_PP + jnp.diag(jnp.where(diagonal_P > 0, floor, 1))


def _inverse_at(
    theta_KE: jax.Array, sample_SD: jax.Array, weight_S: jax.Array, l2: jax.Array, intercept: bool
) -> jax.Array:
    """Return the inverse of eq. 3 [E, E], or with many features that of its diagonal [E].

    In float32, far from the origin, B can be singular. The inverse of its diagonal is then returned as [E, E].
    """
    K, E = theta_KE.shape
    scores_KS = _scores(theta_KE, sample_SD)
    if K == 1:
        p_S = jax.nn.sigmoid(scores_KS[0])
        curvature_S = p_S * (1 - p_S)
    else:
        curvature_S = (1 - (jax.nn.softmax(scores_KS, axis=0) ** 2).sum(0)) / K
    curvature_S = curvature_S * weight_S / jnp.maximum(weight_S.sum(), jnp.finfo(weight_S.dtype).tiny)
    Z_SE = _with_ones(sample_SD, intercept)
    ridge_E = jnp.full(E, l2).at[-1].set(0)
    diagonal_E = curvature_S @ Z_SE**2 + ridge_E
    ridge_E = ridge_E + jnp.where(diagonal_E > 0, 1e-3 * jnp.finfo(Z_SE.dtype).eps ** 0.5 * diagonal_E, 1)
    if E > 1024:
        return 1 / (diagonal_E + ridge_E)
    factor_EE = jnp.linalg.cholesky(Z_SE.T @ (Z_SE * curvature_S[:, None]) + jnp.diag(ridge_E))
    inverse_EE = jax.scipy.linalg.cho_solve((factor_EE, True), jnp.eye(E, dtype=Z_SE.dtype))
    usable = jnp.isfinite(inverse_EE).all() & (jnp.diagonal(inverse_EE) > 0).all()
    return jnp.where(usable, inverse_EE, jnp.diag(1 / (diagonal_E + ridge_E)))


class Problem(NamedTuple):
    """Samples laid out for the solver: y [I, K] (zeros and ones, one column for two classes), weights, and a sample.

    ``sample_SD`` are some of the rows, with weights ``sample_weight_S``, from which B of eq. 3 is computed.
    """

    rows: Rows
    y_IK: jax.Array
    weight_I: jax.Array
    sample_SD: jax.Array
    sample_weight_S: jax.Array


@partial(jax.jit, static_argnames=("intercept", "method"))
def minimise(
    problem: Problem,
    start_KE: jax.Array,
    C: jax.Array,
    l1_ratio: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    intercept: bool,
    method: str,
) -> Minimum:
    """Minimise eq. 1 divided by C n. ``method`` is "lbfgs", "newton", or with an L1 penalty "sparse"."""
    rows, y_IK, weight_I, sample_SD, sample_weight_S = problem
    total = weight_I.sum()
    l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)

    def value_and_gradient(theta_KE: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _value_and_gradient(theta_KE, rows, y_IK, weight_I, total, l2, intercept)

    def inverse_at(theta_KE: jax.Array) -> jax.Array:
        return _inverse_at(theta_KE, sample_SD, sample_weight_S, l2, intercept)

    def hessian(theta_KE: jax.Array) -> jax.Array:
        return _hessian(theta_KE, rows, weight_I, total, l2, intercept)

    if method == "lbfgs":
        return lbfgs(value_and_gradient, inverse_at, start_KE, tol, max_iter)
    return newton(value_and_gradient, hessian, start_KE, l1, tol, max_iter, method == "sparse")


@partial(jax.jit, static_argnames=("intercept", "method"))
def minimise_path(
    problem: Problem,
    start_KE: jax.Array,
    C_A: jax.Array,
    l1_ratio: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    intercept: bool,
    method: str,
) -> Minimum:
    """Return the minima of :func:`minimise` for every C, with an axis [A] in front.

    Each C starts from the minimum before it. A fold is a vector of weights, zero for the samples that it leaves out.
    """

    def step(start_KE: jax.Array, C: jax.Array) -> tuple[jax.Array, Minimum]:
        found = minimise(problem, start_KE, C, l1_ratio, tol, max_iter, intercept, method)
        return found.theta, found

    return jax.lax.scan(step, start_KE, C_A)[1]


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
        _, g_KE = _value_and_gradient(theta_KE, as_rows(X), y_IK, weight_I, total, l2, intercept)
        return g_KE.at[:, :-1].add(l1 * jnp.sign(theta_KE[:, :-1]))

    _, change_KE = jax.jvp(condition, primals[:5], tangents[:5])
    total = weight_I.sum()
    H_PP = _hessian(theta_KE, as_rows(X), weight_I, total, (1 - l1_ratio) / (C * total), intercept)
    on_KE = jnp.ones_like(theta_KE)
    if method == "sparse":
        on_KE = on_KE.at[:, :-1].set(theta_KE[:, :-1] != 0)
    on_P = on_KE.T.ravel()
    system_PP = H_PP * on_P * on_P[:, None] + jnp.diag(1 - on_P)
    d_P = -jax.scipy.linalg.solve(system_PP, on_P * change_KE.T.ravel(), assume_a="sym")
    return theta_KE, d_P.reshape(theta_KE.shape[::-1]).T


class _SolveArguments(NamedTuple):
    """The arguments of :func:`_solve` but for C and the static ones."""

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
    r"""Return the minimiser (coef, intercept) of eq. 1 for X [I, D] and labels y [I] in 0 .. num_classes - 1.

    Two classes give coef [D] and one intercept, more give [D, K] and [K]. $\rho$ is ``l1_ratio``. ``l1`` states whether
    there is an L1 penalty, which must be known when the program is compiled; with None there is one if ``l1_ratio`` is
    passed. tol bounds the gradient of the mean loss. Differentiable in X, C, l1_ratio and sample_weight;
    vmap over any array.
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
