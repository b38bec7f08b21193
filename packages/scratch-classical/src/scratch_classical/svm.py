"""Support vector machines: classification and regression through the dual, by sequential minimal optimisation.

Both are one problem in $\\beta$ (for classification $\\beta_i = y_i \\alpha_i$, $y_i = \\pm 1$, $\\varepsilon = 0$; for
regression $\\beta_i = \\alpha_i - \\alpha_i^*$), with K the kernel matrix:

$$ \\max_\\beta \\; y^\\top \\beta - \\varepsilon \\|\\beta\\|_1 - \\tfrac12 \\beta^\\top K \\beta, \\qquad
   \\sum_i \\beta_i = 0, \\quad l_i \\le \\beta_i \\le u_i \\tag{1} $$

$l_i, u_i$ are $0$ and $C_i$ in the order of the sign of $y_i$ for classification and $\\mp C_i$ for regression;
$C_i = C \\omega_i$. The decision function is $\\sum_i \\beta_i k(x_i, x) + b$, over the support vectors
$\\beta_i \\ne 0$. The kernels are

$$ x^\\top z, \\quad (\\gamma x^\\top z + c)^p, \\quad e^{-\\gamma \\|x - z\\|^2}, \\quad \\tanh(\\gamma x^\\top z
+ c) \\tag{2} $$

Increasing or decreasing $\\beta_i$ changes eq. 1 at the rates ($\\operatorname{sign}(0) = +1$ upwards, $-1$ downwards)

$$ F^{\\uparrow}_i = y_i - (K\\beta)_i - \\varepsilon \\operatorname{sign} \\beta_i, \\qquad F^{\\downarrow}_i
\\text{ likewise} \\tag{3} $$

and $\\beta$ is optimal to the tolerance when $\\max_{\\beta_i < u_i} F^{\\uparrow}_i - \\min_{\\beta_j > l_j}
F^{\\downarrow}_j
\\le$ tol. One step moves a pair, $\\beta_i \\mathrel{+}= t$, $\\beta_j \\mathrel{-}= t$: i the largest
$F^{\\uparrow}$ and j the
largest gain (Fan, Chen and Lin 2005, second-order working set selection)

$$ j = \\arg\\max_j \\frac{(F^{\\uparrow}_i - F^{\\downarrow}_j)^2}{\\eta_{ij}}, \\quad
   \\eta_{ij} = K_{ii} + K_{jj} - 2 K_{ij}, \\quad t = \\frac{F^{\\uparrow}_i - F^{\\downarrow}_j}{\\eta_{ij}}
   \\text{, clipped} \\tag{4} $$

**Two levels.** Above a few hundred samples the steps run on a working set of the worst violators, half of it kept
from the set before, whose square of K fits the cache; then $K\\beta$ is brought up to date with one product. The rows
of K this needs are taken from a stored K, or computed on the spot when K would exceed ``cache_size``. K is kept in
float32, as in LIBSVM's cache, and everything else in float64; small or precise problems compute it in float64 first.

Shapes: I samples, D features, W samples of a working set, S support vectors, P pairs of classes.
"""

import warnings
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .arrays import bucket, pad, precision, validated

FLAT_BELOW = 512  # samples up to which there is one level only
WORKING_SET = 256


@partial(jax.jit, static_argnames=("kind", "degree"))
def kernel_matrix(
    X_ID: Any, Z_JD: Any, gamma: Any = 1.0, coef0: Any = 0.0, *, kind: str = "rbf", degree: int = 3
) -> jax.Array:
    """Return k(x_i, z_j) of eq. 2 for kind linear, poly, rbf or sigmoid."""
    product = jnp.matmul(X_ID, Z_JD.T, precision="highest")
    if kind == "linear":
        return product
    if kind == "poly":
        return (gamma * product + coef0) ** degree
    if kind == "sigmoid":
        return jnp.tanh(gamma * product + coef0)
    square = (X_ID**2).sum(1)[:, None] + (Z_JD**2).sum(1) - 2 * product
    return jnp.exp(-gamma * jnp.maximum(square, 0))


def _rates(y: Any, product: Any, beta: Any, epsilon: Any) -> tuple[jax.Array, jax.Array]:
    """Return eq. 3, upwards and downwards."""
    rest = y - product
    return rest - epsilon * jnp.where(beta >= 0, 1, -1), rest - epsilon * jnp.where(beta > 0, 1, -1)


def _violation(y: Any, product: Any, beta: Any, lower: Any, upper: Any, epsilon: Any) -> tuple[jax.Array, jax.Array]:
    """Return the rates where they count: -inf upwards at the upper bound, +inf downwards at the lower bound."""
    up, down = _rates(y, product, beta, epsilon)
    return jnp.where(beta < upper, up, -jnp.inf), jnp.where(beta > lower, down, jnp.inf)


def _first(mask: Any) -> jax.Array:
    """Return the index of the first True: a maximum and this are vectorised, argmax is not."""
    W = mask.shape[0]
    return jnp.minimum(jnp.where(mask, jnp.arange(W, dtype=jnp.int32), W).min(), W - 1)


def _steps(
    K_WW: Any, y_W: Any, beta_W: Any, product_W: Any, lower_W: Any, upper_W: Any, epsilon: Any,
    tol: Any, fine: Any, patience: Any, limit: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Return (beta, K beta, steps) after steps of eq. 4 until the violation is below ``fine``.

    After ``patience`` steps a violation below ``tol`` is enough; ``limit`` steps are the end in any case.
    """
    dtype = beta_W.dtype
    diagonal_W = jnp.diagonal(K_WW).astype(dtype)

    def step(state: Any) -> Any:
        beta_W, product_W, _, count = state
        up_W, down_W = _violation(y_W, product_W, beta_W, lower_W, upper_W, epsilon)
        highest = up_W.max()
        i = _first(up_W == highest)
        row_W = K_WW[i].astype(dtype)
        ahead_W = highest - down_W
        eta_W = jnp.maximum(diagonal_W[i] + diagonal_W - 2 * row_W, 1e-12)
        gain_W = jnp.where(ahead_W > 0, ahead_W * ahead_W / eta_W, -1)
        j = _first(gain_W == gain_W.max())
        # A step may not cross zero, where the sign in eq. 3 changes.
        above = jnp.where((epsilon > 0) & (beta_W[i] < 0), 0, upper_W[i]) - beta_W[i]
        below = beta_W[j] - jnp.where((epsilon > 0) & (beta_W[j] > 0), 0, lower_W[j])
        t = jnp.maximum(jnp.minimum(ahead_W[j] / eta_W[j], jnp.minimum(above, below)), 0)
        new_i = jnp.where(t == above, beta_W[i] + above, beta_W[i] + t)
        new_j = jnp.where(t == below, beta_W[j] - below, beta_W[j] - t)
        product_W = product_W + t * (row_W - K_WW[j].astype(dtype))
        gap = highest - down_W.min()
        moves = gap > fine
        beta_W = jnp.where(moves, beta_W.at[i].set(new_i).at[j].set(new_j), beta_W)
        product_W = jnp.where(moves, product_W, state[1])
        return beta_W, product_W, gap, count + 1

    def going(state: Any) -> jax.Array:
        *_, gap, count = state
        return (gap > jnp.where(count < patience, fine, tol)) & (count < limit)

    begin = beta_W, product_W, jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32)
    beta_W, product_W, _, count = jax.lax.while_loop(going, step, begin)
    return beta_W, product_W, count


def _bias(y: Any, product: Any, beta: Any, lower: Any, upper: Any, epsilon: Any) -> tuple[jax.Array, jax.Array]:
    """Return (b, violation): the mean rate of free variables, else the middle of the interval that is left."""
    up, down = _violation(y, product, beta, lower, upper, epsilon)
    highest, lowest = up.max(), down.min()
    free = (beta > lower) & (beta < upper) & ((epsilon == 0) | (beta != 0))
    mean = jnp.where(free, jnp.where(beta > 0, down, up), 0).sum() / jnp.maximum(free.sum(), 1)
    middle = 0.5 * (
        jnp.where(jnp.isfinite(highest), highest, lowest) + jnp.where(jnp.isfinite(lowest), lowest, highest)
    )
    return jnp.where(free.any(), mean, middle), highest - lowest


@jax.jit
def solve_svm_flat(
    K_II: Any,
    y_I: Any,
    lower_I: Any,
    upper_I: Any,
    epsilon: Any = 0.0,
    tol: Any = 1e-3,
    fine: Any = 1e-3,
    limit: Any = -1,
) -> tuple[jax.Array, ...]:
    """Return (beta [I], b, violation, steps): eq. 1 with one level of steps; vmap over any array.

    ``tol`` bounds the violation, ``fine`` (at most tol) is aimed at for the first 100 I steps, a ``limit`` below zero
    is none.
    """
    I = K_II.shape[0]
    limit = jnp.where(limit < 0, jnp.iinfo(jnp.int32).max, limit)
    start = jnp.zeros_like(y_I)
    beta, product, count = _steps(
        K_II, y_I, start, start, lower_I, upper_I, epsilon, tol, jnp.minimum(tol, fine), 100 * I, limit
    )
    return beta, *_bias(y_I, product, beta, lower_I, upper_I, epsilon), count


@partial(jax.jit, static_argnames=("kind", "degree", "stored", "precise"))
def solve_svm(
    source: Any,
    y_I: Any,
    lower_I: Any,
    upper_I: Any,
    epsilon: Any = 0.0,
    tol: Any = 1e-3,
    limit: Any = -1,
    gamma: Any = 1.0,
    coef0: Any = 0.0,
    *,
    kind: str = "rbf",
    degree: int = 3,
    stored: bool = True,
    precise: bool = True,
) -> tuple[jax.Array, ...]:
    """Return (beta [I], b, violation, steps): eq. 1 with two levels.

    ``source`` is K [I, I] if ``stored``, else X [I, D], from which the rows of K that a working set needs are
    computed each time: memory W I instead of I^2. Without ``precise`` $K\\beta$ is brought up to date in float32, which
    is faster and good for tolerances above 1e-5.
    """
    I = y_I.shape[0]
    W, dtype = min(WORKING_SET, I), y_I.dtype
    half = W // 2
    limit = jnp.where(limit < 0, jnp.iinfo(jnp.int32).max, limit)

    def rows(index_W: Any) -> jax.Array:
        if stored:
            return source[index_W]
        return kernel_matrix(source[index_W], source, gamma, coef0, kind=kind, degree=degree).astype(jnp.float32)

    def gap_of(beta_I: Any, product_I: Any) -> jax.Array:
        up, down = _violation(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        return up.max() - down.min()

    def outer(state: Any) -> Any:
        beta_I, product_I, kept_W, gap, count = state
        up, down = _violation(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        up, down = up.astype(jnp.float32), down.astype(jnp.float32)
        # The newest half of the last set stays: pairs that were nearly settled would otherwise come back in turn.
        big = jnp.float32(jnp.finfo(jnp.float32).max)
        stays = jnp.zeros(I, bool).at[kept_W[:half]].set(True)
        up, down = jnp.maximum(up, -big), jnp.minimum(down, big)
        _, top = jax.lax.top_k(jnp.where(stays, -jnp.inf, up), half // 2)
        taken = stays.at[top].set(True)
        _, bottom = jax.lax.top_k(jnp.where(taken, -jnp.inf, -down), half - half // 2)
        index_W = jnp.concatenate([top, bottom, kept_W[: W - half]])
        rows_WI = rows(index_W)
        K_WW = rows_WI[:, index_W]
        inner_tol = jnp.maximum(0.1 * gap, 0.5 * tol)
        old_W = beta_I[index_W]
        new_W, _, steps = _steps(
            K_WW, y_I[index_W], old_W, product_I[index_W], lower_I[index_W], upper_I[index_W], epsilon,
            inner_tol, inner_tol, 0, jnp.minimum(limit - count, 20 * W),
        )  # fmt: skip
        change_W = new_W - old_W
        summed = dtype if precise else rows_WI.dtype
        product_I = product_I + (change_W.astype(summed) @ rows_WI.astype(summed)).astype(dtype)
        beta_I = beta_I.at[index_W].set(new_W)
        return beta_I, product_I, index_W, gap_of(beta_I, product_I), count + steps

    def going(state: Any) -> jax.Array:
        return (state[3] > tol) & (state[4] < limit)

    start = jnp.zeros_like(y_I)
    begin = start, start, jnp.arange(W, dtype=jnp.int32), gap_of(start, start), jnp.zeros((), jnp.int32)
    beta, product, _, _, count = jax.lax.while_loop(going, outer, begin)
    return beta, *_bias(y_I, product, beta, lower_I, upper_I, epsilon), count


@partial(jax.jit, static_argnames=("kind", "degree"))
def _decide(X_JD: Any, vectors_SD: Any, coef_SP: Any, gamma: Any, coef0: Any, kind: str, degree: int) -> jax.Array:
    """Return $\\sum_i \\beta_i k(x_i, x)$ [J, P], a block of queries at a time."""
    J, D = X_JD.shape
    block = min(256, J)

    def part(X: Any) -> jax.Array:
        return kernel_matrix(X, vectors_SD, gamma, coef0, kind=kind, degree=degree) @ coef_SP

    return jax.lax.map(part, X_JD.reshape(J // block, block, D)).reshape(J, -1)


class _SupportVectorMachine(BaseEstimator):
    """What classification and regression share: kernels, one fit of eq. 1, the decision function."""

    kernel: Any
    gamma: Any
    degree: int
    coef0: float
    tol: float
    cache_size: float
    max_iter: int
    _X_fit: np.ndarray
    support_: np.ndarray
    dual_coef_: np.ndarray
    intercept_: np.ndarray

    def _validated_fit(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        kinds = ("linear", "poly", "rbf", "sigmoid", "precomputed")
        if not callable(self.kernel) and self.kernel not in kinds:
            raise ValueError(f"kernel={self.kernel!r} must be one of {', '.join(kinds)} or a function")
        X, y = validated(self, X, y, need_y=True, y_numeric=isinstance(self, RegressorMixin))
        X = np.asarray(X)
        if self.kernel == "precomputed" and X.shape[0] != X.shape[1]:
            raise ValueError(
                f"Precomputed matrix must be a square matrix. Input is a {X.shape[0]}x{X.shape[1]} matrix."
            )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
            if not (sample_weight > 0).any():
                raise ValueError("Invalid input - all samples have zero or negative weights.")
        self._gamma = self._gamma_of(X, sample_weight)
        self.shape_fit_ = X.shape
        return X, y, sample_weight

    def _gamma_of(self, X: np.ndarray, sample_weight: np.ndarray | None) -> float:
        """Return gamma as a number; "scale" counts samples by weight, so that a weight of 2 is the sample twice."""
        if self.kernel == "precomputed" or callable(self.kernel):
            return 0.0
        if not isinstance(self.gamma, str):
            if not self.gamma >= 0:
                raise ValueError(f"gamma={self.gamma} must not be negative")
            return float(self.gamma)
        if self.gamma == "auto":
            return 1.0 / X.shape[1]
        if self.gamma != "scale":
            raise ValueError(f"gamma={self.gamma!r} must be 'scale', 'auto' or a number")
        wide = X.astype(np.float64, copy=False)
        if sample_weight is None or (sample_weight == sample_weight[0]).all():
            variance = wide.var()
        else:
            per_row = sample_weight / (sample_weight.sum() * X.shape[1])
            mean = per_row @ wide.sum(1)
            variance = per_row @ ((wide - mean) ** 2).sum(1)
        return 1.0 / (X.shape[1] * variance) if variance != 0 else 1.0

    def _kernel_options(self) -> dict[str, Any]:
        return {"kind": self.kernel, "degree": int(self.degree)}

    def _solve(
        self, X: np.ndarray, y_I: np.ndarray, lower_I: np.ndarray, upper_I: np.ndarray, epsilon: float
    ) -> tuple[np.ndarray, float, int, bool]:
        """Return (beta, b, steps, converged?) for one problem; X holds the kernel if that was computed outside."""
        I = len(y_I)
        given = callable(self.kernel) or self.kernel == "precomputed"
        fine = self.tol < 1e-5 or I <= FLAT_BELOW
        dtype = np.dtype(np.float64 if fine else np.float32)
        padded = bucket(I, 64)
        with precision(np.float64):
            y, lower, upper = (pad(np.asarray(v, np.float64), padded) for v in (y_I, lower_I, upper_I))
            gamma, coef0 = dtype.type(self._gamma), dtype.type(self.coef0)
            if given:
                source, stored, options = (
                    pad(X.astype(np.float32), padded, padded),
                    True,
                    {"kind": "linear", "degree": 1},
                )
            else:
                options = self._kernel_options()
                stored = 4 * padded**2 <= self.cache_size * 2**20
                rows = X.astype(np.float64)
                if self.kernel == "rbf":
                    rows = rows - rows.mean(0)  # the kernel sees differences only; fewer digits are lost
                source = pad(rows.astype(dtype), padded, bucket(X.shape[1]))
                if stored:
                    source = kernel_matrix(source, source, gamma, coef0, **options).astype(np.float32)
            limit = np.int32(self.max_iter)
            if stored and padded <= FLAT_BELOW:
                found = solve_svm_flat(source, y, lower, upper, float(epsilon), self.tol, 1e-10, limit)
            else:
                found = solve_svm(
                    source,
                    y,
                    lower,
                    upper,
                    float(epsilon),
                    self.tol,
                    limit,
                    gamma,
                    coef0,
                    stored=stored,
                    precise=fine,
                    **options,
                )
            beta, b, violation, count = (np.asarray(v) for v in found)
        converged = not violation > self.tol
        if not converged:
            warnings.warn(
                f"Solver terminated early (max_iter={self.max_iter}). Consider pre-processing your data with "
                "StandardScaler or MinMaxScaler.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return beta[:I], float(b), max(int(count), 1), converged

    def _scores(self, X: Any, coef_SP: np.ndarray) -> np.ndarray:
        """Return $\\sum_i \\beta_i k(x_i, x)$ for validated queries [J, P]."""
        if callable(self.kernel):
            return np.asarray(self.kernel(X, self._X_fit))[:, self.support_] @ coef_SP
        if self.kernel == "precomputed":
            return X[:, self.support_] @ coef_SP
        if not len(self.support_vectors_):
            return np.zeros((len(X), coef_SP.shape[1]), X.dtype)
        if self.kernel == "linear":
            return X @ (self.support_vectors_.T @ coef_SP)
        dtype = np.result_type(X.dtype, self.support_vectors_.dtype)
        rows, columns = bucket(len(self.support_vectors_), 64), bucket(X.shape[1])
        J = bucket(len(X), 64)
        J = J if J <= 256 else -(-J // 256) * 256
        with precision(dtype):
            scores = _decide(
                pad(X.astype(dtype), J, columns), pad(self.support_vectors_.astype(dtype), rows, columns),
                pad(coef_SP.astype(dtype), rows, coef_SP.shape[1]), dtype.type(self._gamma), dtype.type(self.coef0),
                **self._kernel_options(),
            )  # fmt: skip
            return np.asarray(scores)[: len(X)]

    def _validated_queries(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = np.asarray(validated(self, X, reset=False))
        if self.kernel == "precomputed" and X.shape[1] != self.shape_fit_[0]:
            raise ValueError(
                f"X.shape[1] = {X.shape[1]} should be equal to {self.shape_fit_[0]}, "
                "the number of samples at training time"
            )
        return X

    def _keep_vectors(self, X: np.ndarray) -> None:
        """Set support_vectors_ (none where the kernel is not computed from features)."""
        if callable(self.kernel) or self.kernel == "precomputed":
            self.support_vectors_ = np.empty((0, 0), X.dtype)
        else:
            self.support_vectors_ = X[self.support_]
        self.fit_status_ = 0

    @property
    def coef_(self) -> np.ndarray:
        """The weights of the features, for the linear kernel only."""
        if self.kernel != "linear":
            raise AttributeError("coef_ is only available when using a linear kernel")
        return self._primal()

    def _primal(self) -> np.ndarray:
        return self.dual_coef_ @ self.support_vectors_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        tags.input_tags.sparse = self.kernel != "precomputed" and not callable(self.kernel)
        return tags


def fit_sigmoid(scores_I: np.ndarray, positive_I: np.ndarray) -> tuple[float, float]:
    """Return (A, B) of $p = 1 / (1 + e^{A s + B})$ by Newton's method (Lin, Lin and Weng 2007, on Platt 2000)."""
    ahead, behind = positive_I.sum(), (~positive_I).sum()
    target = np.where(positive_I, (ahead + 1) / (ahead + 2), 1 / (behind + 2))

    def loss(a: float, b: float) -> float:
        z = a * scores_I + b
        return float((target * z + np.logaddexp(0, -z)).sum())

    a, b = 0.0, float(np.log((behind + 1) / (ahead + 1)))
    value = loss(a, b)
    for _ in range(100):
        p = 1 / (1 + np.exp(np.clip(a * scores_I + b, -500, 500)))
        error, curvature = target - p, p * (1 - p)
        gradient = np.array([error @ scores_I, error.sum()])
        if np.abs(gradient).max() < 1e-5:
            break
        mixed = curvature @ scores_I
        hessian = np.array([[curvature @ scores_I**2, mixed], [mixed, curvature.sum()]]) + 1e-12 * np.eye(2)
        step, t = -np.linalg.solve(hessian, gradient), 1.0
        while t > 1e-10 and (tried := loss(a + t * step[0], b + t * step[1])) >= value + 1e-4 * t * (gradient @ step):
            t *= 0.5
        if t <= 1e-10:
            break
        a, b, value = a + t * step[0], b + t * step[1], tried
    return float(a), float(b)


def couple(pairwise_JKK: np.ndarray) -> np.ndarray:
    """Return class probabilities [J, K] from r_kl = P(k | k or l) (Wu, Lin and Weng 2004, second method).

    They minimise $\\sum_{k \\ne l} (r_{lk} p_k - r_{kl} p_l)^2$ with $\\sum_k p_k = 1$, a linear system.
    """
    J, K, _ = pairwise_JKK.shape
    Q = -np.swapaxes(pairwise_JKK, 1, 2) * pairwise_JKK
    columns = np.swapaxes(pairwise_JKK, 1, 2) ** 2
    off = ~np.eye(K, dtype=bool)
    Q[:, np.arange(K), np.arange(K)] = (columns * off).sum(2)
    system = np.zeros((J, K + 1, K + 1))
    system[:, :K, :K] = Q
    system[:, :K, K] = system[:, K, :K] = 1
    right = np.zeros((J, K + 1, 1))
    right[:, K] = 1
    p = np.clip(np.linalg.solve(system, right)[:, :K, 0], 0, None)
    return p / p.sum(1, keepdims=True)


def _has_probabilities(estimator: "SVC") -> bool:
    if estimator.probability in (False, "deprecated"):
        raise AttributeError("predict_proba is not available when probability=False")
    return True


class SVC(ClassifierMixin, _SupportVectorMachine):
    """Support vector classification, one against one. Parameters and attributes are those of scikit-learn's class.

    ``cache_size`` (MB) bounds the kernel matrix that is stored; larger problems compute its rows when needed. With
    ``sample_weight``, gamma="scale" uses the weighted variance. Up to 512 samples a problem is solved well beyond
    ``tol``.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: Any = "scale",
        coef0: float = 0.0,
        shrinking: bool = True,
        probability: Any = "deprecated",
        tol: float = 1e-3,
        cache_size: float = 200,
        class_weight: Any = None,
        verbose: bool = False,
        max_iter: int = -1,
        decision_function_shape: str = "ovr",
        break_ties: bool = False,
        random_state: Any = None,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.degree = degree
        self.gamma = gamma
        self.coef0 = coef0
        self.shrinking = shrinking
        self.probability = probability
        self.tol = tol
        self.cache_size = cache_size
        self.class_weight = class_weight
        self.verbose = verbose
        self.max_iter = max_iter
        self.decision_function_shape = decision_function_shape
        self.break_ties = break_ties
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SVC":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and labels y [I]."""
        if not self.C > 0:
            raise ValueError(f"C={self.C} must be positive")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "The number of classes has to be greater than one; "
                f"got {len(self.classes_)} class: {self.classes_[0]!r}"
            )
        self.class_weight_ = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        bound_I = self.C * self.class_weight_[indices] * (1.0 if sample_weight is None else sample_weight)
        bound_I = np.maximum(bound_I, 0)
        if any(not (bound_I[indices == k] > 0).any() for k in range(len(self.classes_))):
            raise ValueError("Invalid input - all samples with positive weights belong to the same class.")
        full = X
        if callable(self.kernel):
            self._X_fit = X
            full = np.asarray(self.kernel(X, X), np.float64)
        solved = self._solve_pairs(full, indices, bound_I)
        self._store(X, indices, solved)
        if self.probability is True:
            self._fit_probabilities(full, indices, bound_I)
        return self

    def _solve_pairs(self, X: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> list[tuple[Any, ...]]:
        """Return (members, beta, b, steps, converged?) for every pair of classes, the first of which is positive.

        With two classes the second is positive, as everywhere in scikit-learn.
        """
        given = callable(self.kernel) or self.kernel == "precomputed"
        num_classes, solved = len(self.classes_), []
        for first, second in combinations(range(num_classes), 2):
            members = np.flatnonzero((indices == first) | (indices == second))
            positive = indices[members] == (second if num_classes == 2 else first)
            y, bound = np.where(positive, 1.0, -1.0), bound_I[members]
            lower, upper = np.where(positive, 0.0, -bound), np.where(positive, bound, 0.0)
            part = X[np.ix_(members, members)] if given else X if len(members) == len(X) else X[members]
            solved.append((members, *self._solve(part, y, lower, upper, 0.0)))
        return solved

    def _store(self, X: np.ndarray, indices: np.ndarray, solved: list[tuple[Any, ...]]) -> None:
        """Set the attributes in libsvm's order: support vectors by class, coefficients by opponent."""
        num_classes = len(self.classes_)
        used = np.zeros(len(X), bool)
        for members, beta, *_ in solved:
            used[members[beta != 0]] = True
        support = np.flatnonzero(used)
        support = support[np.argsort(indices[support], kind="stable")]
        self.support_ = support.astype(np.int32)
        self.n_support_ = np.bincount(indices[support], minlength=num_classes).astype(np.int32)
        position = np.full(len(X), -1)
        position[support] = np.arange(len(support))
        dual = np.zeros((max(num_classes - 1, 1), len(support)), X.dtype)
        for (first, second), (members, beta, *_) in zip(combinations(range(num_classes), 2), solved):
            nonzero = np.flatnonzero(beta)
            own, at = indices[members[nonzero]], position[members[nonzero]]
            dual[np.where(own == first, second - 1, first), at] = beta[nonzero]
        self.dual_coef_ = dual
        self.intercept_ = np.array([b for _, _, b, *_ in solved], X.dtype)
        self.n_iter_ = np.array([count for _, _, _, count, _ in solved], np.int32)
        self._keep_vectors(X)
        self.fit_status_ = int(not all(converged for *_, converged in solved))

    def _pair_coefficients(self) -> np.ndarray:
        """Return the coefficients of every pair's decision function [S, P]."""
        num_classes = len(self.classes_)
        if num_classes == 2:
            return self.dual_coef_.T
        edges = np.concatenate([[0], np.cumsum(self.n_support_)])
        coef_SP = np.zeros((len(self.support_), len(self.intercept_)), self.dual_coef_.dtype)
        for p, (first, second) in enumerate(combinations(range(num_classes), 2)):
            mine, theirs = slice(edges[first], edges[first + 1]), slice(edges[second], edges[second + 1])
            coef_SP[mine, p] = self.dual_coef_[second - 1, mine]
            coef_SP[theirs, p] = self.dual_coef_[first, theirs]
        return coef_SP

    def _primal(self) -> np.ndarray:
        return self._pair_coefficients().T @ self.support_vectors_

    def _pair_scores(self, X: Any) -> np.ndarray:
        X = self._validated_queries(X)
        return self._scores(X, self._pair_coefficients()) + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the score of the second class [J], of each class [J, K] ("ovr") or of each pair [J, P] ("ovo")."""
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return scores_JP[:, 0]
        return self._one_against_rest(scores_JP) if self.decision_function_shape == "ovr" else scores_JP

    def _one_against_rest(self, scores_JP: np.ndarray) -> np.ndarray:
        """Return votes plus sums of scores squeezed into (-1/3, 1/3), which only break ties."""
        J, num_classes = len(scores_JP), len(self.classes_)
        votes, sums = np.zeros((J, num_classes)), np.zeros((J, num_classes))
        for p, (first, second) in enumerate(combinations(range(num_classes), 2)):
            score = scores_JP[:, p]
            sums[:, first] += score
            sums[:, second] -= score
            votes[score >= 0, first] += 1
            votes[score < 0, second] += 1
        return votes + sums / (3 * (np.abs(sums) + 1))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the most votes of the pairs, the first among equals unless ``break_ties``."""
        check_is_fitted(self)
        if self.break_ties and self.decision_function_shape == "ovo":
            raise ValueError("break_ties must be False when decision_function_shape is 'ovo'")
        scores_JP = self._pair_scores(X)
        if len(self.classes_) == 2:
            return self.classes_[(scores_JP[:, 0] > 0).astype(int)]
        if self.break_ties:
            return self.classes_[self._one_against_rest(scores_JP).argmax(1)]
        votes = np.zeros((len(scores_JP), len(self.classes_)), int)
        for p, (first, second) in enumerate(combinations(range(len(self.classes_)), 2)):
            won = scores_JP[:, p] > 0
            votes[won, first] += 1
            votes[~won, second] += 1
        return self.classes_[votes.argmax(1)]

    def _fit_probabilities(self, X: np.ndarray, indices: np.ndarray, bound_I: np.ndarray) -> None:
        """Fit a sigmoid per pair to scores of samples held out of five folds."""
        given = callable(self.kernel) or self.kernel == "precomputed"
        random = check_random_state(self.random_state)
        self.probA_, self.probB_ = np.zeros(len(self.intercept_)), np.zeros(len(self.intercept_))
        for p, (first, second) in enumerate(combinations(range(len(self.classes_)), 2)):
            members = random.permutation(np.flatnonzero((indices == first) | (indices == second)))
            positive = indices[members] == (second if len(self.classes_) == 2 else first)
            scores = np.zeros(len(members))
            for fold in np.array_split(np.arange(len(members)), 5):
                if not len(fold):
                    continue
                rest = np.setdiff1d(np.arange(len(members)), fold)
                y = np.where(positive[rest], 1.0, -1.0)
                if len(np.unique(y)) < 2:
                    scores[fold] = y[0] if len(y) else 0.0
                    continue
                inside, outside, bound = members[rest], members[fold], bound_I[members[rest]]
                part = X[np.ix_(inside, inside)] if given else X[inside]
                limits = np.where(y > 0, 0.0, -bound), np.where(y > 0, bound, 0.0)
                beta, b, *_ = self._solve(part, y, *limits, 0.0)
                if given:
                    scores[fold] = X[np.ix_(outside, inside)] @ beta + b
                else:
                    held = SVC(kernel=self.kernel, degree=self.degree, coef0=self.coef0)
                    held._gamma, held.support_vectors_ = self._gamma, X[inside[beta != 0]]
                    scores[fold] = held._scores(X[outside], beta[beta != 0][:, None].astype(X.dtype))[:, 0] + b
            self.probA_[p], self.probB_[p] = fit_sigmoid(scores, positive)

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class [J, K]: sigmoids of the pairs' scores, coupled."""
        scores_JP = self._pair_scores(X)
        z = np.clip(self.probA_ * scores_JP + self.probB_, -500, 500)
        first_JP = np.clip(1 / (1 + np.exp(z)), 1e-7, 1 - 1e-7)
        if len(self.classes_) == 2:
            return np.concatenate([1 - first_JP, first_JP], axis=1)
        K = len(self.classes_)
        pairwise = np.zeros((len(scores_JP), K, K))
        for p, (first, second) in enumerate(combinations(range(K), 2)):
            pairwise[:, first, second], pairwise[:, second, first] = first_JP[:, p], 1 - first_JP[:, p]
        return couple(pairwise)

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))


class SVR(RegressorMixin, _SupportVectorMachine):
    """Support vector regression. Parameters and attributes are those of scikit-learn's class; see :class:`SVC`."""

    def __init__(
        self,
        *,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: Any = "scale",
        coef0: float = 0.0,
        tol: float = 1e-3,
        C: float = 1.0,
        epsilon: float = 0.1,
        shrinking: bool = True,
        cache_size: float = 200,
        verbose: bool = False,
        max_iter: int = -1,
    ) -> None:
        self.kernel = kernel
        self.degree = degree
        self.gamma = gamma
        self.coef0 = coef0
        self.tol = tol
        self.C = C
        self.epsilon = epsilon
        self.shrinking = shrinking
        self.cache_size = cache_size
        self.verbose = verbose
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SVR":
        """Fit to X [I, D] (or a kernel matrix [I, I]) and targets y [I]."""
        if not self.C > 0 or not self.epsilon >= 0:
            raise ValueError(f"C={self.C} must be positive and epsilon={self.epsilon} not negative")
        X, y, sample_weight = self._validated_fit(X, y, sample_weight)
        full = X
        if callable(self.kernel):
            self._X_fit = X
            full = np.asarray(self.kernel(X, X), np.float64)
        bound_I = self.C * (np.ones(len(y)) if sample_weight is None else np.maximum(sample_weight, 0))
        beta, b, count, converged = self._solve(full, y.astype(np.float64), -bound_I, bound_I, self.epsilon)
        self.support_ = np.flatnonzero(beta).astype(np.int32)
        self.n_support_ = np.array([len(self.support_)], np.int32)
        self.dual_coef_ = beta[None, self.support_].astype(X.dtype)
        self.intercept_ = np.array([b], X.dtype)
        self.n_iter_ = count
        self._keep_vectors(X)
        self.fit_status_ = int(not converged)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the decision function [J]."""
        X = self._validated_queries(X)
        return self._scores(X, self.dual_coef_.T)[:, 0] + self.intercept_[0]
