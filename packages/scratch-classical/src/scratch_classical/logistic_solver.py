r"""Logistic regression, binary and multinomial, with L2, L1 and elastic-net penalties: the minimum.

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

Shapes: I samples, R rows of a block, S rows of the sample, D features, E = D + 1 (features and intercept), K rows of
coefficients (1 for two classes), A values of C, P = E * K.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .arrays import Rows
from .lbfgs import Minimum, lbfgs
from .newton import newton


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


def loss_and_gradient(
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


def loss_hessian(
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

    In float32, with samples far from the origin, B can be singular. The inverse of its diagonal is then returned, as
    [E, E].
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
        return loss_and_gradient(theta_KE, rows, y_IK, weight_I, total, l2, intercept)

    def inverse_at(theta_KE: jax.Array) -> jax.Array:
        return _inverse_at(theta_KE, sample_SD, sample_weight_S, l2, intercept)

    def hessian(theta_KE: jax.Array) -> jax.Array:
        return loss_hessian(theta_KE, rows, weight_I, total, l2, intercept)

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
