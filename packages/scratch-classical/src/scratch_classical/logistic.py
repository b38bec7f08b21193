"""Logistic regression, binary and multinomial, with L2, L1 and elastic-net penalties.

$$ \\min_{w, b}\\; C \\sum_i \\omega_i\\, \\ell(y_i, x_i^\\top w + b) + \\rho \\|w\\|_1 +
\\tfrac{1-\\rho}{2}\\|w\\|^2 \\tag{1} $$

with the losses of :mod:`.objective`. Divided by $C n$, $n = \\sum_i \\omega_i$, its smooth part $f$ has gradient and
Hessian (p the predicted probabilities, $\\tilde x = (x, 1)$)

$$ \\nabla f = \\tfrac1n \\sum_i \\omega_i \\tilde x_i (p_i - y_i)^\\top + \\lambda_2 w, \\qquad
   H = \\tfrac1n \\sum_i \\omega_i (\\operatorname{diag} p_i - p_i p_i^\\top) \\otimes \\tilde x_i \\tilde x_i^\\top
   + \\lambda_2 I \\tag{2} $$

**L-BFGS** (Nocedal and Wright, algorithm 7.4), one pass over the data per step. Its initial matrix is not a multiple
of the identity but the inverse of eq. 2 at $w = 0$, where $p = 1/K$, over a sample of the rows:

$$ H_0 = \\kappa \\tfrac1m \\sum_{i \\in \\text{sample}} \\tilde x_i \\tilde x_i^\\top + \\lambda_2 I,
   \\qquad \\kappa = 1/4 \\text{ (binary)},\\; 1/K \\text{ (multinomial)} \\tag{3} $$

It stops when $\\max |\\nabla f| \\le$ tol and $\\tfrac12 \\nabla f^\\top H_0^{-1} \\nabla f$, which estimates how
far f is
above its minimum, is below 2.5e-7 of f.

**Newton** uses eq. 2 itself. With an L1 penalty each Newton step minimises the quadratic model plus
$\\lambda_1\\|w\\|_1$ by coordinate descent, after eliminating the intercept (the Schur complement centres X), so zeros
are exact.

**Derivatives.** At the minimum $\\nabla f + \\lambda_1 \\operatorname{sign}(w) = 0$ on the support, hence
$H_{SS}\\, d\\theta_S = -d(\\nabla f + \\lambda_1 \\operatorname{sign}(w))_S$; no iteration is differentiated.

Shapes: I samples, R rows of a block, D features, E = D + 1 (features and intercept), K columns of coefficients (1 for
two classes), M pairs kept by L-BFGS, P = E * K.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .arrays import Rows, as_rows, bucket, is_on_device, lay_out, pad, precision, refuse_non_finite, validated
from .coordinate_descent import descend
from .objective import Objective, logistic_loss, multinomial_loss

MEMORY = 10  # pairs kept by L-BFGS, as in scikit-learn
GAP = 2.5e-7  # relative distance to the minimum at which L-BFGS may stop


def _loss_sum(theta_EK: Any, X_RD: Any, y_RK: Any, weight_R: Any) -> jax.Array:
    """Return the weighted sum of losses; y is one column of zeros and ones, or one-hot."""
    if theta_EK.shape[1] == 1:
        losses = logistic_loss(y_RK[:, 0], X_RD @ theta_EK[:-1, 0] + theta_EK[-1, 0])
    else:
        losses = multinomial_loss(y_RK, X_RD @ theta_EK[:-1] + theta_EK[-1])
    return weight_R @ losses


def _value_and_gradient(theta_EK: Any, rows: Rows, y_IK: Any, weight_I: Any, total: Any, l2: Any, free: bool) -> Any:
    """Return f and its gradient [E, K]; without an intercept (not free) its entries are zero."""

    def part(X_RD: Any, y_RK: Any, weight_R: Any) -> Any:
        return jax.value_and_grad(_loss_sum)(theta_EK, X_RD, y_RK, weight_R)

    value, gradient_EK = rows.sum(part, y_IK, weight_I)
    coef_DK = theta_EK[:-1]
    gradient_EK = (gradient_EK / total).at[:-1].add(l2 * coef_DK).at[-1].multiply(float(free))
    return value / total + 0.5 * l2 * (coef_DK**2).sum(), gradient_EK


def _hessian(theta_EK: Any, rows: Rows, weight_I: Any, total: Any, l2: Any, free: bool) -> jax.Array:
    """Return eq. 2 as [E, K, E, K], with ones on the diagonal where it is zero."""
    E, K = theta_EK.shape

    def part(X_RD: Any, weight_R: Any) -> jax.Array:
        Z_RE = jnp.concatenate([X_RD, jnp.full((X_RD.shape[0], 1), float(free), X_RD.dtype)], axis=1)
        scores_RK = Z_RE @ theta_EK
        if K == 1:
            p_R = jax.nn.sigmoid(scores_RK[:, 0])
            curvature_RKK = (p_R * (1 - p_R))[:, None, None]
        else:
            p_RK = jax.nn.softmax(scores_RK, axis=-1)
            curvature_RKK = jnp.eye(K, dtype=p_RK.dtype) * p_RK[:, None] - p_RK[:, :, None] * p_RK[:, None]
        weighted = (curvature_RKK * weight_R[:, None, None]).reshape(-1, K * K)
        blocks = jax.lax.map(lambda c_R: Z_RE.T @ (Z_RE * c_R[:, None]), weighted.T)
        return blocks.reshape(K, K, E, E).transpose(2, 0, 3, 1)

    hessian = rows.sum(part, weight_I) / total
    P = E * K
    penalised_EK = jnp.ones((E, K), hessian.dtype).at[-1].set(0)
    flat = hessian.reshape(P, P) + l2 * jnp.diag(penalised_EK.ravel())
    # Adding a constant to all intercepts changes nothing: the term keeps the system definite, and does not act on
    # gradients, which sum to zero over the classes.
    if K > 1 and free:
        on_intercepts = jnp.zeros((E, K), flat.dtype).at[-1].set(1).ravel()
        flat = flat + jnp.outer(on_intercepts, on_intercepts) * jnp.clip(jnp.diagonal(flat).mean(), 1e-3) / K
    diagonal = jnp.diagonal(flat)
    floor = jnp.finfo(flat.dtype).eps ** 0.75 * diagonal.max()
    return flat + jnp.diag(jnp.where(diagonal > 0, floor, 1))


def _preconditioner(sample_SD: Any, weight_S: Any, l2: Any, num_columns: int, free: bool) -> jax.Array:
    """Return the inverse of eq. 3 [E, E], or only of its diagonal [E] when there are many features."""
    E = sample_SD.shape[1] + 1
    kappa = 1 / max(4, num_columns) if num_columns == 1 else 1 / num_columns
    Z_SE = jnp.concatenate([sample_SD, jnp.full((sample_SD.shape[0], 1), float(free), sample_SD.dtype)], axis=1)
    total = jnp.maximum(weight_S.sum(), jnp.finfo(weight_S.dtype).tiny)
    ridge_E = jnp.full(E, l2).at[-1].set(0)
    diagonal_E = kappa * weight_S @ Z_SE**2 / total + ridge_E
    ridge_E = ridge_E + jnp.where(diagonal_E > 0, 1e-3 * jnp.finfo(Z_SE.dtype).eps ** 0.5 * diagonal_E, 1)
    if E > 1024:
        return 1 / (diagonal_E + ridge_E)
    matrix = kappa * Z_SE.T @ (Z_SE * weight_S[:, None]) / total + jnp.diag(ridge_E)
    return jnp.linalg.inv(matrix)


def _lbfgs(fun: Any, start_EK: Any, inverse: Any, tol: Any, max_iter: Any) -> tuple[Any, ...]:
    """Return (theta, iterations, max |gradient|) of L-BFGS with initial matrix ``inverse`` (eq. 3)."""
    E, K = start_EK.shape
    P, dtype = E * K, start_EK.dtype
    eps = jnp.finfo(dtype).eps

    def apply(g_P: Any) -> jax.Array:
        g_EK = g_P.reshape(E, K)
        return (inverse @ g_EK if inverse.ndim == 2 else inverse[:, None] * g_EK).ravel()

    def flat(theta_P: Any) -> Any:
        value, gradient_EK = fun(theta_P.reshape(E, K))
        return value, gradient_EK.ravel()

    def direction(g_P: Any, s_MP: Any, y_MP: Any, rho_M: Any, gamma: Any) -> jax.Array:
        def backward(m: Any, state: Any) -> Any:
            q_P, alpha_M = state
            last = MEMORY - 1 - m
            alpha = rho_M[last] * (s_MP[last] @ q_P)
            return q_P - alpha * y_MP[last], alpha_M.at[last].set(alpha)

        def forward(m: Any, r_P: Any) -> jax.Array:
            return r_P + (alpha_M[m] - rho_M[m] * (y_MP[m] @ r_P)) * s_MP[m]

        q_P, alpha_M = jax.lax.fori_loop(0, MEMORY, backward, (g_P, jnp.zeros_like(rho_M)))
        return -jax.lax.fori_loop(0, MEMORY, forward, gamma * apply(q_P))

    def searching(state: Any) -> jax.Array:
        t, value, _, old, slope, tries = state
        # Rounding in f must not stop a step that the gradient calls downhill.
        return ~(value <= old + 1e-4 * t * slope + 10 * eps * jnp.abs(old)) & (tries < 31)

    def step(state: Any) -> Any:
        theta_P, value, g_P, s_MP, y_MP, rho_M, gamma, count, _ = state
        d_P = direction(g_P, s_MP, y_MP, rho_M, gamma)
        slope = g_P @ d_P

        def halve(inner: Any) -> Any:
            t, _, _, old, slope, tries = inner
            t = 0.5 * t
            return t, *flat(theta_P + t * d_P), old, slope, tries + 1

        first = jnp.full((), 2, dtype), jnp.full((), jnp.inf, dtype), g_P, value, slope, jnp.zeros((), jnp.int32)
        t, new_value, new_g_P, *_, tries = jax.lax.while_loop(searching, halve, first)
        s_P, y_P = t * d_P, new_g_P - g_P
        curvature = s_P @ y_P
        usable = curvature > eps * jnp.sqrt((s_P @ s_P) * (y_P @ y_P))
        rho = jnp.where(usable, 1 / jnp.where(usable, curvature, 1), 0)
        seen = y_P @ apply(y_P)
        gamma = jnp.where(usable & (seen > 0), curvature / jnp.where(seen > 0, seen, 1), gamma)
        s_MP, y_MP = jnp.concatenate([s_MP[1:], s_P[None]]), jnp.concatenate([y_MP[1:], y_P[None]])
        rho_M = jnp.concatenate([rho_M[1:], rho[None]])
        done = converged(new_value, new_g_P) | (tries >= 31) | (slope == 0)
        return theta_P + s_P, new_value, new_g_P, s_MP, y_MP, rho_M, gamma, count + 1, done

    def converged(value: Any, g_P: Any) -> jax.Array:
        return (jnp.max(jnp.abs(g_P)) <= tol) & (0.5 * g_P @ apply(g_P) <= GAP * value)

    theta_P = start_EK.ravel()
    value, g_P = flat(theta_P)
    pairs = jnp.zeros((MEMORY, P), dtype), jnp.zeros((MEMORY, P), dtype), jnp.zeros(MEMORY, dtype)
    done = converged(value, g_P)
    begin = theta_P, value, g_P, *pairs, jnp.ones((), dtype), jnp.zeros((), jnp.int32), done
    theta_P, _, g_P, *_, count, _ = jax.lax.while_loop(lambda s: ~s[-1] & (s[-2] < max_iter), step, begin)
    return theta_P.reshape(E, K), count, jnp.max(jnp.abs(g_P))


def _newton(fun: Any, hessian: Any, start_EK: Any, l1: Any, tol: Any, max_iter: Any, sparse: bool) -> tuple[Any, ...]:
    """Return (theta, iterations, largest violation of optimality); coordinate descent inside if ``sparse``."""
    E, K = start_EK.shape
    D, dtype = E - 1, start_EK.dtype
    eps = jnp.finfo(dtype).eps

    def penalty(theta_EK: Any) -> jax.Array:
        return l1 * jnp.abs(theta_EK[:-1]).sum() if sparse else jnp.zeros((), dtype)

    def violation(theta_EK: Any, g_EK: Any) -> jax.Array:
        if not sparse:
            return jnp.max(jnp.abs(g_EK))
        coef_DK, slope_DK = theta_EK[:-1], g_EK[:-1]
        at_zero = jnp.maximum(jnp.abs(slope_DK) - l1, 0)
        wrong = jnp.where(coef_DK == 0, at_zero, jnp.abs(slope_DK + l1 * jnp.sign(coef_DK)))
        return jnp.maximum(wrong.max(initial=0), jnp.max(jnp.abs(g_EK[-1])))

    def target(theta_EK: Any, g_EK: Any) -> jax.Array:
        """Return the minimiser of the quadratic model at theta, plus the L1 norm."""
        H = hessian(theta_EK)
        right_P = H @ theta_EK.ravel() - g_EK.ravel()
        if not sparse:
            return jax.scipy.linalg.solve(H, right_P, assume_a="pos").reshape(E, K)
        n = D * K
        across = jax.scipy.linalg.solve(H[n:, n:], jnp.concatenate([H[n:, :n], right_P[n:, None]], 1), assume_a="pos")
        gram, cross = H[:n, :n] - H[:n, n:] @ across[:, :n], right_P[:n] - H[:n, n:] @ across[:, n]
        bound = cross @ jax.scipy.linalg.solve(gram, cross, assume_a="pos")
        coef, _, _ = descend(gram, cross, bound, l1, 0.0, theta_EK[:-1].ravel(), 1e-3 * tol, 1000)
        intercept = across[:, n] - across[:, :n] @ coef
        return jnp.concatenate([coef, intercept]).reshape(E, K)

    def step(state: Any) -> Any:
        theta_EK, value, g_EK, count, _, _ = state
        d_EK = target(theta_EK, g_EK) - theta_EK
        slope = (g_EK * d_EK).sum() + penalty(theta_EK + d_EK) - penalty(theta_EK)
        old = value + penalty(theta_EK)

        def attempt(t: Any) -> Any:
            new_EK = theta_EK + t * d_EK
            value, g_EK = fun(new_EK)
            return t, value, g_EK, value + penalty(new_EK)

        def too_high(state: Any) -> jax.Array:
            t, *_, whole = state
            return ~(whole <= old + 1e-4 * t * slope + 10 * eps * jnp.abs(old)) & (t > 1e-9)

        before = jnp.full((), 2, dtype), value, g_EK, jnp.full((), jnp.inf, dtype)
        t, value, g_EK, _ = jax.lax.while_loop(too_high, lambda s: attempt(0.5 * s[0]), before)
        new_EK = theta_EK + t * d_EK
        # A step that no longer moves anything is the end of the digits.
        stuck = jnp.max(jnp.abs(t * d_EK)) <= 2 * eps * jnp.max(jnp.abs(new_EK))
        wrong = violation(new_EK, g_EK)
        return new_EK, value, g_EK, count + 1, wrong, (wrong <= tol) | stuck | (t <= 1e-9)

    value, g_EK = fun(start_EK)
    wrong = violation(start_EK, g_EK)
    begin = start_EK, value, g_EK, jnp.zeros((), jnp.int32), wrong, wrong <= tol
    theta_EK, *_, count, wrong, _ = jax.lax.while_loop(lambda s: ~s[-1] & (s[3] < max_iter), step, begin)
    return theta_EK, count, wrong


@partial(jax.jit, static_argnames=("free", "method"))
def _fit(
    rows: Rows,
    y_IK: Any,
    weight_I: Any,
    sample_SD: Any,
    sample_weight_S: Any,
    start_EK: Any,
    C: Any,
    l1_ratio: Any,
    tol: Any,
    max_iter: Any,
    free: bool,
    method: str,
) -> tuple[Any, ...]:
    """Return (theta [E, K], iterations, largest violation) for eq. 1 over C n; method is lbfgs, newton or sparse."""
    total = weight_I.sum()
    l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)

    def fun(theta_EK: Any) -> Any:
        return _value_and_gradient(theta_EK, rows, y_IK, weight_I, total, l2, free)

    if method == "lbfgs":
        inverse = _preconditioner(sample_SD, sample_weight_S, l2, start_EK.shape[1], free)
        return _lbfgs(fun, start_EK, inverse, tol, max_iter)

    def hessian(theta_EK: Any) -> jax.Array:
        return _hessian(theta_EK, rows, weight_I, total, l2, free)

    return _newton(fun, hessian, start_EK, l1, tol, max_iter, method == "sparse")


@partial(jax.custom_jvp, nondiff_argnums=(7, 8))
def _solve(
    X: Any, y_IK: Any, C: Any, l1_ratio: Any, weight_I: Any, tol: Any, max_iter: Any, free: bool, method: str
) -> jax.Array:
    start_EK = jnp.zeros((X.shape[1] + 1, y_IK.shape[1]), X.dtype)
    return _fit(
        as_rows(X), y_IK, weight_I, X, weight_I, start_EK, C, l1_ratio, tol, max_iter, free=free, method=method
    )[0]  # fmt: skip


@_solve.defjvp
def _solve_jvp(free: bool, method: str, primals: Any, tangents: Any) -> Any:
    theta_EK = _solve(*primals, free, method)
    X, _, C, l1_ratio, weight_I, *_ = primals

    def condition(X: Any, y_IK: Any, C: Any, l1_ratio: Any, weight_I: Any) -> jax.Array:
        """Return what vanishes on the support at the minimum."""
        total = weight_I.sum()
        l1, l2 = l1_ratio / (C * total), (1 - l1_ratio) / (C * total)
        _, g_EK = _value_and_gradient(theta_EK, as_rows(X), y_IK, weight_I, total, l2, free)
        return g_EK.at[:-1].add(l1 * jnp.sign(theta_EK[:-1]))

    _, change_EK = jax.jvp(condition, primals[:5], tangents[:5])
    total = weight_I.sum()
    H = _hessian(theta_EK, as_rows(X), weight_I, total, (1 - l1_ratio) / (C * total), free)
    on_EK = jnp.ones_like(theta_EK)
    if method == "sparse":
        on_EK = on_EK.at[:-1].set(theta_EK[:-1] != 0)
    on_P = on_EK.ravel()
    system = H * on_P * on_P[:, None] + jnp.diag(1 - on_P)
    d_P = -jax.scipy.linalg.solve(system, on_P * change_EK.ravel(), assume_a="sym")
    return theta_EK, d_P.reshape(theta_EK.shape)


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
    if l1 is None:
        l1 = not (isinstance(l1_ratio, (int, float)) and l1_ratio == 0)
    X = jnp.asarray(X)
    X = X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    y_IK = y[:, None].astype(X.dtype) if num_classes == 2 else jax.nn.one_hot(y, num_classes, dtype=X.dtype)
    C, l1_ratio, tol = (jnp.asarray(v, X.dtype) for v in (C, l1_ratio, tol))
    tol = jnp.maximum(tol, 4 * jnp.finfo(X.dtype).eps)
    theta_EK = _solve(
        X, y_IK, C, l1_ratio, weight_I, tol, jnp.asarray(max_iter), bool(fit_intercept), "sparse" if l1 else "lbfgs"
    )
    if num_classes == 2:
        return theta_EK[:-1, 0], theta_EK[-1, 0]
    return theta_EK[:-1], theta_EK[-1]


class _LinearClassifier(ClassifierMixin, BaseEstimator):
    """What the two estimators share: validation, weights, prediction."""

    n_features_in_: int
    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """Return $Xw + b$: [I] for two classes, else [I, K]."""
        check_is_fitted(self)
        X = validated(self, X, reset=False)
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest score."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`, without underflow."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([0 * scores, scores], axis=1)
        shifted = scores - scores.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class [I, K]."""
        return np.exp(self.predict_log_proba(X))

    def _encode(self, X: Any, y: Any, sample_weight: Any, class_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return X, class indices and weights; sets classes_."""
        X, y = validated(self, X, y, need_y=True, ensure_all_finite=False)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{self.classes_[0]!r}"
            )
        weight = np.ones(len(y), X.dtype)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, np.empty((len(y), 1), X.dtype), dtype=X.dtype, copy=True)
        if class_weight is not None:
            options = {} if sample_weight is None else {"sample_weight": weight}
            per_class = compute_class_weight(class_weight, classes=self.classes_, y=y, **options)
            weight = weight * per_class.astype(X.dtype)[indices]
        return X, indices, weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _Problem:
    """One data set laid out for the solver, for fits with several C and l1_ratio, each started from the last."""

    def __init__(self, X: Any, indices: np.ndarray, weight: np.ndarray, num_classes: int, free: bool) -> None:
        I, D = X.shape
        self.dtype, self.free, self.num_features = np.dtype(X.dtype), bool(free), D
        self.num_columns = 1 if num_classes == 2 else num_classes
        self.layout = lay_out(X, block_rows=512 if D <= 256 else 128)
        width = self.layout.rows.tail.shape[1]
        if num_classes == 2:
            y_IK = indices[:, None].astype(self.dtype)
        else:
            y_IK = (indices[:, None] == np.arange(num_classes)).astype(self.dtype)
        self.y_IK, self.weight_I = self.layout.arrange(y_IK), self.layout.arrange(weight.astype(self.dtype))
        every = max(1, I // max(2000, 4 * D))
        if is_on_device(X):
            self.sample = X[::every], weight[::every].astype(self.dtype)
        else:
            picked = np.asarray(X[::every])
            S = bucket(len(picked), 64)
            self.sample = pad(picked, S, width), pad(weight[::every].astype(self.dtype), S)
        self.theta_EK = np.zeros((width + 1, self.num_columns), self.dtype)

    def start(self, coef_KD: np.ndarray, intercept_K: np.ndarray) -> None:
        """Start from given coefficients."""
        self.theta_EK[: self.num_features] = coef_KD.T
        self.theta_EK[-1] = intercept_K

    def fit(self, C: float, l1_ratio: float, tol: float, max_iter: int, method: str) -> tuple[Any, ...]:
        """Return (coef [K, D], intercept [K], iterations, violation)."""
        theta_EK, count, wrong = _fit(
            self.layout.rows, self.y_IK, self.weight_I, *self.sample, self.theta_EK,
            self.dtype.type(C), self.dtype.type(l1_ratio), self.dtype.type(tol), np.int32(max_iter),
            free=self.free, method=method,
        )  # fmt: skip
        self.theta_EK = np.array(theta_EK)
        coef_KD = np.ascontiguousarray(self.theta_EK[: self.num_features].T)
        return coef_KD, self.theta_EK[-1].copy(), int(count), float(wrong)


_SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")


def _method(solver: str, l1_ratio: float, size: int) -> str:
    if l1_ratio:
        return "sparse"
    return "newton" if solver == "newton-cholesky" and size <= 2048 else "lbfgs"


class LogisticRegression(_LinearClassifier):
    """Logistic regression: eq. 1 with $\\rho$ = ``l1_ratio``.

    Parameters and attributes are those of scikit-learn's class of this name, whose objective it minimises.
    ``solver="newton-cholesky"`` takes Newton steps, an ``l1_ratio`` above 0 proximal Newton steps, everything else is
    L-BFGS; ``"liblinear"`` penalises the intercept, as that library does.
    """

    def __init__(
        self,
        penalty: Any = "deprecated",
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: Any = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs

    def _penalty(self) -> tuple[float, float]:
        """Return (C, l1_ratio), also from the older ``penalty`` parameter."""
        C, l1_ratio = float(self.C), float(self.l1_ratio or 0)
        if self.penalty in ("l1", "l2"):
            l1_ratio = float(self.penalty == "l1")
        elif self.penalty is None:
            C = np.inf
        elif self.penalty not in ("deprecated", "elasticnet"):
            raise ValueError(f"penalty={self.penalty!r} must be one of l1, l2, elasticnet, None")
        if not C > 0:
            raise ValueError(f"C={self.C} must be positive")
        if not 0 <= l1_ratio <= 1:
            raise ValueError(f"l1_ratio={self.l1_ratio} must lie between 0 and 1")
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver={self.solver!r} must be one of {', '.join(_SOLVERS)}")
        return C, l1_ratio

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LogisticRegression":
        """Fit to X [I, D] and labels y [I]."""
        C, l1_ratio = self._penalty()
        X, indices, weight = self._encode(X, y, sample_weight, self.class_weight)
        penalise_intercept = self.solver == "liblinear"
        if penalise_intercept and len(self.classes_) > 2:
            raise ValueError("The 'liblinear' solver does not support multiclass classification (n_classes >= 3).")
        extra = penalise_intercept and self.fit_intercept
        if extra:
            X = np.concatenate([X, np.full((len(X), 1), self.intercept_scaling, X.dtype)], axis=1)
        with precision(X.dtype):
            free = self.fit_intercept and not extra
            data = _Problem(X, indices, weight, len(self.classes_), free)
            if self.warm_start and hasattr(self, "coef_") and not extra:
                data.start(self.coef_, self.intercept_)
            method = _method(self.solver, l1_ratio, data.theta_EK.size)
            coef, intercept, count, wrong = data.fit(C, l1_ratio, self.tol, self.max_iter, method)
        if not (np.isfinite(wrong) and np.isfinite(coef).all()):
            refuse_non_finite(self, X)
        if count >= self.max_iter and not wrong <= self.tol:
            warnings.warn(
                f"{self.solver} failed to converge after {count} iteration(s): the gradient is {wrong:.1e}, tol is "
                f"{self.tol:.1e}. Increase max_iter, or scale the features.",
                ConvergenceWarning,
                stacklevel=2,
            )
        if extra:
            coef, intercept = coef[:, :-1], coef[:, -1] * self.intercept_scaling
        self.coef_, self.intercept_ = coef, intercept
        self.n_iter_ = np.array([max(count, 1)], dtype=np.int32)
        return self


class LogisticRegressionCV(_LinearClassifier):
    """Logistic regression with C (and ``l1_ratio``) chosen by cross-validation.

    Each fold's C run from small to large, every fit starting from the one before. Parameters and attributes are
    those of scikit-learn's class; ``use_legacy_attributes=False`` gives arrays where the older form has dictionaries.
    """

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Any = "warn",
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        penalty: Any = "deprecated",
        scoring: Any = "warn",
        solver: str = "lbfgs",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: Any = None,
        use_legacy_attributes: Any = "warn",
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LogisticRegressionCV":
        """Choose C by cross-validation, then fit to all of X [I, D] and labels y [I]."""
        y_given = y
        X, indices, weight = self._encode(X, y, sample_weight, self.class_weight)
        X = np.asarray(X)
        refuse_non_finite(self, X)
        labels, num_classes, D = self.classes_[indices], len(self.classes_), X.shape[1]
        del y_given
        ratios_L = np.atleast_1d(0.0 if self.l1_ratios in ("warn", None) else self.l1_ratios).astype(float)
        if self.penalty == "l1":
            ratios_L = np.ones(1)
        Cs = np.logspace(-4, 4, int(self.Cs)) if np.ndim(self.Cs) == 0 else np.asarray(self.Cs, float)
        scorer = get_scorer("accuracy" if self.scoring in ("warn", None) else self.scoring)
        folds = list(check_cv(self.cv, labels, classifier=True).split(X, labels))
        K = 1 if num_classes == 2 else num_classes
        F, L, A, E = len(folds), len(ratios_L), len(Cs), D + int(self.fit_intercept)
        paths = np.zeros((F, L, A, K, E))
        scores = np.zeros((F, L, A))
        counts = np.zeros((F, L, A), np.int32)
        with precision(X.dtype):
            for f, (train, test) in enumerate(folds):
                for l, ratio in enumerate(ratios_L):
                    data = _Problem(X[train], indices[train], weight[train], num_classes, self.fit_intercept)
                    for a in np.argsort(Cs):
                        method = _method(self.solver, ratio, data.theta_EK.size)
                        coef, intercept, count, _ = data.fit(Cs[a], ratio, self.tol, self.max_iter, method)
                        paths[f, l, a, :, :D] = coef
                        if self.fit_intercept:
                            paths[f, l, a, :, D] = intercept
                        counts[f, l, a] = max(count, 1)
                        scored = LogisticRegression()
                        scored.classes_, scored.n_features_in_ = self.classes_, D
                        scored.coef_, scored.intercept_ = coef, intercept
                        options = {} if sample_weight is None else {"sample_weight": np.asarray(sample_weight)[test]}
                        scores[f, l, a] = scorer(scored, X[test], labels[test], **options)
            mean_LA = scores.mean(0)
            if self.refit:
                l, a = np.unravel_index(np.argmax(mean_LA), mean_LA.shape)
                C, ratio = Cs[a], ratios_L[l]
                data = _Problem(X, indices, weight, num_classes, self.fit_intercept)
                average = paths[:, l, a].mean(0)
                data.start(average[:, :D], average[:, D] if self.fit_intercept else np.zeros(K))
                method = _method(self.solver, ratio, data.theta_EK.size)
                self.coef_, self.intercept_, _, _ = data.fit(C, ratio, self.tol, self.max_iter, method)
            else:
                best = [np.unravel_index(np.argmax(s), s.shape) for s in scores]
                C, ratio = np.mean([Cs[a] for _, a in best]), np.mean([ratios_L[l] for l, _ in best])
                average = np.mean([paths[f, l, a] for f, (l, a) in enumerate(best)], axis=0)
                self.coef_ = average[:, :D].astype(X.dtype)
                self.intercept_ = (average[:, D] if self.fit_intercept else np.zeros(K)).astype(X.dtype)
        self._store(Cs, ratios_L, C, ratio, paths, scores, counts)
        return self

    def _store(
        self, Cs: Any, ratios_L: Any, C: float, ratio: float, paths: np.ndarray, scores: np.ndarray, counts: np.ndarray
    ) -> None:
        """Set the attributes in the newer or the older form."""
        self.Cs_ = Cs
        listed = not isinstance(self.l1_ratios, str) and self.l1_ratios is not None
        if self.use_legacy_attributes is False:
            self.l1_ratios_ = ratios_L
            self.C_, self.l1_ratio_, self.n_iter_ = float(C), float(ratio), counts
            self.coefs_paths_, self.scores_ = paths, scores
            return
        K = paths.shape[3]
        self.l1_ratios_ = ratios_L if listed else np.array([None])
        self.C_ = np.full(K, C)
        self.l1_ratio_ = np.full(K, ratio) if listed else np.array([None] * K)
        keep = slice(None) if listed else 0
        F = len(paths)
        path_per_class = {
            self.classes_[1 if K == 1 else k]: paths[:, :, :, k].transpose(0, 2, 1, 3) if listed else paths[:, 0, :, k]
            for k in range(K)
        }
        self.coefs_paths_ = path_per_class
        self.scores_ = {
            self.classes_[1 if K == 1 else k]: scores.transpose(0, 2, 1) if listed else scores[:, keep]
            for k in range(K)
        }
        self.n_iter_ = counts.transpose(0, 2, 1)[None] if listed else counts[:, 0].reshape(1, F, -1)


__all__ = ["LogisticRegression", "LogisticRegressionCV", "Objective", "solve_logistic_regression"]
