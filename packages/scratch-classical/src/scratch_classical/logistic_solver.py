r"""Logistic regression, binary and multinomial, with L2, L1 and elastic-net penalties: the minimum and its derivative.

$$ \min_{w, b}\; C \sum_i \omega_i\, \ell(y_i, x_i^\top w + b) + \rho \|w\|_1 +
\tfrac{1-\rho}{2}\|w\|^2 \tag{1} $$

with the losses of :mod:`.objective`. Divided by $C n$, $n = \sum_i \omega_i$, its smooth part $f$ has gradient and
Hessian (p the predicted probabilities, $\tilde x = (x, 1)$)

$$ \nabla f = \tfrac1n \sum_i \omega_i (p_i - y_i) \tilde x_i^\top + \lambda_2 w, \qquad
   H = \tfrac1n \sum_i \omega_i (\operatorname{diag} p_i - p_i p_i^\top) \otimes \tilde x_i \tilde x_i^\top
   + \lambda_2 I \tag{2} $$

**L-BFGS** (:mod:`.lbfgs`) makes one pass over the data per step. Its matrix B is the mean over the classes of the
diagonal blocks of eq. 2, over a sample of the rows; for two classes that is the Hessian of the sample:

$$ B = \frac{1}{K \sum \omega_i} \sum_{i \in \text{sample}} \omega_i \Big(\sum_k p_{ik} (1 - p_{ik})\Big)
   \tilde x_i \tilde x_i^\top + \lambda_2 I \tag{3} $$

**Newton's method** (:mod:`.newton`) uses eq. 2 itself, and is the one that takes an L1 penalty.

**Derivatives.** At the minimum $\nabla f + \lambda_1 \operatorname{sign}(w) = 0$ on the support, hence
$H_{SS}\, d\theta_S = -d(\nabla f + \lambda_1 \operatorname{sign}(w))_S$; no iteration is differentiated.

Shapes: I samples, R rows of a block, S rows of the sample, D features, E = D + 1 (features and intercept), K rows of
coefficients (1 for two classes), A values of C, F folds, P = E * K.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import Rows, as_rows
from .lbfgs import lbfgs
from .newton import newton


def _scores(theta_KE: Any, X_RD: Any) -> jax.Array:
    r"""Return $w_k^\top x_i + b_k$ as [K, R]: XLA's loops over classes are slow where those lie innermost."""
    return jax.lax.dot_general(theta_KE[:, :-1], X_RD, (((1,), (1,)), ((), ()))) + theta_KE[:, -1:]


def _loss_and_error(scores_KR: Any, y_KR: Any) -> tuple[jax.Array, jax.Array]:
    """Return the losses [R] and $p - y$ [K, R]; y is one row of zeros and ones, or one-hot."""
    if len(scores_KR) == 1:
        small_KR = jnp.exp(-jnp.abs(scores_KR))
        loss_KR = jnp.maximum(scores_KR, 0) + jnp.log1p(small_KR) - y_KR * scores_KR
        return loss_KR[0], jnp.where(scores_KR >= 0, 1, small_KR) / (1 + small_KR) - y_KR
    highest_R = scores_KR.max(0)
    power_KR = jnp.exp(scores_KR - highest_R)
    total_R = power_KR.sum(0)
    return jnp.log(total_R) + highest_R - (y_KR * scores_KR).sum(0), power_KR * (1 / total_R) - y_KR


def _value_and_gradient(theta_KE: Any, rows: Rows, y_IK: Any, weight_I: Any, total: Any, l2: Any, free: bool) -> Any:
    """Return f and its gradient [K, E]; without an intercept (not free) its entries are zero."""

    def part(X_RD: Any, y_RK: Any, weight_R: Any) -> Any:
        loss_R, error_KR = _loss_and_error(_scores(theta_KE, X_RD), y_RK.T)
        error_KR = error_KR * weight_R
        return weight_R @ loss_R, error_KR @ X_RD, error_KR.sum(1)

    value, slope_KD, slope_K = rows.sum(part, y_IK, weight_I)
    coef_KD = theta_KE[:, :-1]
    gradient_KE = jnp.concatenate([slope_KD / total + l2 * coef_KD, float(free) * slope_K[:, None] / total], axis=1)
    return value / total + 0.5 * l2 * (coef_KD**2).sum(), gradient_KE


def _with_ones(X_RD: Any, free: bool) -> jax.Array:
    return jnp.concatenate([X_RD, jnp.full((X_RD.shape[0], 1), float(free), X_RD.dtype)], axis=1)


def _hessian(theta_KE: Any, rows: Rows, weight_I: Any, total: Any, l2: Any, free: bool) -> jax.Array:
    """Return eq. 2 as [P, P] in the order [E, K], with ones on the diagonal where it is zero."""
    K, E = theta_KE.shape

    def part(X_RD: Any, weight_R: Any) -> jax.Array:
        Z_RE = _with_ones(X_RD, free)
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
    # Adding a constant to all intercepts changes nothing: the term keeps the system definite, and does not act on
    # gradients, which sum to zero over the classes.
    if K > 1 and free:
        on_P = (1 - penalised_EK).ravel()
        hessian_PP = hessian_PP + jnp.outer(on_P, on_P) * jnp.clip(jnp.diagonal(hessian_PP).mean(), 1e-3) / K
    diagonal_P = jnp.diagonal(hessian_PP)
    floor = jnp.finfo(hessian_PP.dtype).eps ** 0.75 * diagonal_P.max()
    return hessian_PP + jnp.diag(jnp.where(diagonal_P > 0, floor, 1))


def _inverse_at(theta_KE: Any, sample_SD: Any, weight_S: Any, l2: Any, free: bool) -> jax.Array:
    """Return the inverse of eq. 3 [E, E], or only of its diagonal: [E] when there are many features.

    In float32, far from the origin, B can be singular; then its diagonal serves too.
    """
    K, E = theta_KE.shape
    scores_KS = _scores(theta_KE, sample_SD)
    if K == 1:
        p_S = jax.nn.sigmoid(scores_KS[0])
        curvature_S = p_S * (1 - p_S)
    else:
        curvature_S = (1 - (jax.nn.softmax(scores_KS, axis=0) ** 2).sum(0)) / K
    curvature_S = curvature_S * weight_S / jnp.maximum(weight_S.sum(), jnp.finfo(weight_S.dtype).tiny)
    Z_SE = _with_ones(sample_SD, free)
    ridge_E = jnp.full(E, l2).at[-1].set(0)
    diagonal_E = curvature_S @ Z_SE**2 + ridge_E
    ridge_E = ridge_E + jnp.where(diagonal_E > 0, 1e-3 * jnp.finfo(Z_SE.dtype).eps ** 0.5 * diagonal_E, 1)
    if E > 1024:
        return 1 / (diagonal_E + ridge_E)
    inverse_EE = jnp.linalg.inv(Z_SE.T @ (Z_SE * curvature_S[:, None]) + jnp.diag(ridge_E))
    usable = jnp.isfinite(inverse_EE).all() & (jnp.diagonal(inverse_EE) > 0).all()
    return jnp.where(usable, inverse_EE, jnp.diag(1 / (diagonal_E + ridge_E)))


@partial(jax.jit, static_argnames=("free", "method"))
def minimise(
    rows: Rows, y_IK: Any, weight_I: Any, sample_SD: Any, sample_weight_S: Any, start_KE: Any, C: Any, l1_ratio: Any,
    tol: Any, max_iter: Any, free: bool, method: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Return (theta [K, E], iterations, largest violation) for eq. 1 over C n; method is lbfgs, newton or sparse."""
    total = weight_I.sum()
    l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)

    def fun(theta_KE: Any) -> Any:
        return _value_and_gradient(theta_KE, rows, y_IK, weight_I, total, l2, free)

    if method == "lbfgs":
        return lbfgs(fun, lambda t: _inverse_at(t, sample_SD, sample_weight_S, l2, free), start_KE, tol, max_iter)

    def hessian(theta_KE: Any) -> jax.Array:
        return _hessian(theta_KE, rows, weight_I, total, l2, free)

    return newton(fun, hessian, start_KE, l1, tol, max_iter, method == "sparse")


@partial(jax.jit, static_argnames=("free", "method"))
def minimise_path(
    rows: Rows, y_IK: Any, weight_FI: Any, sample_SD: Any, sample_weight_FS: Any, start_KE: Any, C_A: Any,
    l1_ratio: Any, tol: Any, max_iter: Any, free: bool, method: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Return what :func:`minimise` does, with axes [F, A] in front: every fold, every C from the minimum before it.

    A fold is a row of weights, zero for the samples that it leaves out. Folds run one after another: together, each
    would wait for the slowest.
    """

    def fold(weights: Any) -> Any:
        def step(start_KE: Any, C: Any) -> Any:
            found = minimise(
                rows, y_IK, weights[0], sample_SD, weights[1], start_KE, C, l1_ratio, tol, max_iter, free, method
            )
            return found[0], found

        return jax.lax.scan(step, start_KE, C_A)[1]

    return jax.lax.map(fold, (weight_FI, sample_weight_FS))


@partial(jax.custom_jvp, nondiff_argnums=(8, 9))
def _solve(
    X: Any, y_IK: Any, C: Any, l1_ratio: Any, weight_I: Any, start_KE: Any, tol: Any, max_iter: Any, free: bool,
    method: str,
) -> jax.Array:  # fmt: skip
    rows = as_rows(X)
    return minimise(rows, y_IK, weight_I, X, weight_I, start_KE, C, l1_ratio, tol, max_iter, free, method)[0]


@_solve.defjvp
def _solve_jvp(free: bool, method: str, primals: Any, tangents: Any) -> Any:
    theta_KE = _solve(*primals, free, method)
    X, _, C, l1_ratio, weight_I, *_ = primals

    def condition(X: Any, y_IK: Any, C: Any, l1_ratio: Any, weight_I: Any) -> jax.Array:
        """Return what vanishes on the support at the minimum."""
        total = weight_I.sum()
        l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)
        _, g_KE = _value_and_gradient(theta_KE, as_rows(X), y_IK, weight_I, total, l2, free)
        return g_KE.at[:, :-1].add(l1 * jnp.sign(theta_KE[:, :-1]))

    _, change_KE = jax.jvp(condition, primals[:5], tangents[:5])
    total = weight_I.sum()
    H_PP = _hessian(theta_KE, as_rows(X), weight_I, total, (1 - l1_ratio) / (C * total), free)
    on_KE = jnp.ones_like(theta_KE)
    if method == "sparse":
        on_KE = on_KE.at[:, :-1].set(theta_KE[:, :-1] != 0)
    on_P = on_KE.T.ravel()
    system_PP = H_PP * on_P * on_P[:, None] + jnp.diag(1 - on_P)
    d_P = -jax.scipy.linalg.solve(system_PP, on_P * change_KE.T.ravel(), assume_a="sym")
    return theta_KE, d_P.reshape(theta_KE.shape[::-1]).T


def _pure_problem(
    X: Any, y: Any, l1_ratio: Any, sample_weight: Any, num_classes: int, l1: bool | None, tol: Any, max_iter: Any
) -> tuple[Any, ...]:
    """Return (X, y_IK, l1_ratio, weight_I, start_KE, tol, max_iter, method)."""
    if l1 is None:
        l1 = not (isinstance(l1_ratio, (int, float)) and l1_ratio == 0)
    X = jnp.asarray(X)
    X = X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    if num_classes == 2:
        y_IK = jnp.asarray(y)[:, None].astype(X.dtype)
    else:
        y_IK = jax.nn.one_hot(y, num_classes, dtype=X.dtype)
    tol = jnp.maximum(jnp.asarray(tol, X.dtype), 4 * jnp.finfo(X.dtype).eps)
    start_KE = jnp.zeros((y_IK.shape[1], X.shape[1] + 1), X.dtype)
    method = "sparse" if l1 else "lbfgs"
    return X, y_IK, jnp.asarray(l1_ratio, X.dtype), weight_I, start_KE, tol, jnp.asarray(max_iter), method


def _parts(theta_KE: Any) -> tuple[jax.Array, jax.Array]:
    if len(theta_KE) == 1:
        return theta_KE[0, :-1], theta_KE[0, -1]
    return theta_KE[:, :-1].T, theta_KE[:, -1]


@partial(jax.jit, static_argnames=("num_classes", "fit_intercept", "l1"))
def solve_logistic_regression(
    X: Any,
    y: Any,
    C: Any = 1.0,
    l1_ratio: Any = 0.0,
    *,
    num_classes: int = 2,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    l1: bool | None = None,
    tol: Any = 1e-8,
    max_iter: Any = 200,
) -> tuple[jax.Array, jax.Array]:
    """Return the minimiser (coef, intercept) of eq. 1 for labels y [I] in 0 .. num_classes - 1.

    Two classes give coef [D] and one intercept, more give [D, K] and [K]. ``l1`` says whether there is an L1
    penalty; None means that ``l1_ratio`` is a number and not zero. Differentiable in X, C, l1_ratio and
    sample_weight; vmap over any array. tol bounds the gradient of the mean loss.
    """
    X, y_IK, l1_ratio, weight_I, start_KE, tol, max_iter, method = _pure_problem(
        X, y, l1_ratio, sample_weight, num_classes, l1, tol, max_iter
    )
    C = jnp.asarray(C, X.dtype)
    return _parts(_solve(X, y_IK, C, l1_ratio, weight_I, start_KE, tol, max_iter, bool(fit_intercept), method))


@partial(jax.jit, static_argnames=("num_classes", "fit_intercept", "l1"))
def solve_logistic_regression_path(
    X: Any,
    y: Any,
    Cs: Any,
    l1_ratio: Any = 0.0,
    *,
    num_classes: int = 2,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    l1: bool | None = None,
    tol: Any = 1e-8,
    max_iter: Any = 200,
) -> tuple[jax.Array, jax.Array]:
    """Return (coefs, intercepts) of :func:`solve_logistic_regression` for every C of ``Cs`` [A], stacked in front.

    Each starts from the minimum of the one before, so that small C should come first. vmap over ``sample_weight``
    runs all folds: a fold is a vector of weights, zero for the samples that it leaves out. Differentiable as well.
    """
    X, y_IK, l1_ratio, weight_I, start_KE, tol, max_iter, method = _pure_problem(
        X, y, l1_ratio, sample_weight, num_classes, l1, tol, max_iter
    )

    def step(start_KE: Any, C: Any) -> Any:
        start_KE = jax.lax.stop_gradient(start_KE)
        theta_KE = _solve(X, y_IK, C, l1_ratio, weight_I, start_KE, tol, max_iter, bool(fit_intercept), method)
        return theta_KE, _parts(theta_KE)

    return jax.lax.scan(step, start_KE, jnp.asarray(Cs, X.dtype))[1]
