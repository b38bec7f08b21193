r"""Lasso and elastic net by coordinate descent on the Gram matrix; paths and cross-validation.

$$ \min_{w, b} \frac{1}{2n} \sum_i \omega_i (y_i - x_i^\top w - b)^2 + \alpha\rho \|w\|_1
   + \frac{\alpha(1-\rho)}{2} \|w\|^2, \qquad n = \sum_i \omega_i \tag{1} $$

With the centred moments $G = X^\top X$, $q = X^\top y$ of :mod:`.moments`, and with $\lambda_1 = n\alpha\rho$,
$\lambda_2 = n\alpha(1-\rho)$, this is $n^{-1}$ times

$$ P(w) = \tfrac12 \|y\|^2 - q^\top w + \tfrac12 w^\top G w + \lambda_1 \|w\|_1
   + \tfrac{\lambda_2}{2}\|w\|^2 \tag{2} $$

Coordinate descent minimises it one coordinate at a time and keeps $g = q - Gw$ up to date (Friedman, Hastie and
Tibshirani 2010, section 2.2). Coordinates with $w_j = 0$ and $|g_j| \le \lambda_1$ do not move and are skipped:

$$ w_j \leftarrow \frac{S_{\lambda_1}(g_j + G_{jj} w_j)}{G_{jj} + \lambda_2}, \qquad
   S_\lambda(z) = \operatorname{sign}(z)\max(|z| - \lambda, 0) \tag{3} $$

It stops by the duality gap. With $r = y - Xw$, $h = g - \lambda_2 w$ and
$c = \min(1, \lambda_1 / \|h\|_\infty)$ the point $c\,r$ is dual feasible, and

$$ \text{gap} = \tfrac{1 + c^2}{2} \left(\|r\|^2 + \lambda_2\|w\|^2\right) + \lambda_1 \|w\|_1 - c\,
r^\top y \tag{4} $$

**Derivatives.** On the support $S$ the stationarity condition $G_{SS} w_S + \lambda_2 w_S = q_S - \lambda_1
\operatorname{sign}(w_S)$ holds in a neighbourhood, so by the implicit function theorem

$$ (G_{SS} + \lambda_2 I)\, dw_S = dq_S - dG_{S}\, w - d\lambda_1 \operatorname{sign}(w_S) - d\lambda_2\,
w_S \tag{5} $$

and no iteration is differentiated.

Shapes: D features, A values of alpha.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .arrays import Array, as_floating
from .moments import Moments, moments
from .objective import LinearSolution, soft_threshold


class Descent(NamedTuple):
    """A minimiser of eq. 2: coef [D], its duality gap (eq. 4) and the number of sweeps. A path has [A] in front."""

    coef: jax.Array
    gap: jax.Array
    sweeps: jax.Array


def duality_gap(
    coef_D: jax.Array,
    left_D: jax.Array,
    cross_D: jax.Array,
    target: jax.Array,
    l1: jax.Array,
    l2: jax.Array,
    positive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return (gap of eq. 4, P of eq. 2), given $g$ = left_D.

    With l1 = 0 the gap is the squared norm of the gradient over 2 l2, which bounds the distance to the minimum too.
    """
    square = jnp.maximum(target - coef_D @ (cross_D + left_D), 0)  # |r|^2
    aligned = target - coef_D @ cross_D  # r'y
    norm = coef_D @ coef_D
    slope_D = left_D - l2 * coef_D  # h
    steepest = jnp.max(slope_D if positive else jnp.abs(slope_D))
    c = jnp.where(steepest > l1, l1 / jnp.where(steepest > l1, steepest, 1), 1)
    absolute = jnp.abs(coef_D).sum()
    gap = 0.5 * (1 + c**2) * (square + l2 * norm) + l1 * absolute - c * aligned
    if positive:
        slope_D = jnp.where(coef_D > 0, slope_D, jnp.maximum(slope_D, 0))
    smooth_gap = (slope_D @ slope_D) / jnp.where(l2 > 0, 2 * l2, 1)
    return jnp.where(l1 > 0, gap, smooth_gap), 0.5 * square + l1 * absolute + 0.5 * l2 * norm


@partial(jax.custom_jvp, nondiff_argnums=(8,))
def _descend(
    gram_DD: jax.Array,
    cross_D: jax.Array,
    target: jax.Array,
    l1: jax.Array,
    l2: jax.Array,
    start_D: jax.Array,
    tol: jax.Array,
    max_iter: jax.Array,
    positive: bool,
) -> Descent:
    D = cross_D.shape[0]
    diagonal_D = jnp.diagonal(gram_DD)
    tiny = jnp.finfo(cross_D.dtype).eps

    def coordinate(position: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        coef_D, left_D, order_D, moved = state
        j = order_D[position]
        old, curvature = coef_D[j], diagonal_D[j]
        reached = left_D[j] + curvature * old
        new = soft_threshold(reached, l1) / (curvature + l2)  # eq. 3
        if positive:
            new = jnp.maximum(new, 0)
        new = jnp.where(curvature > 0, new, 0)
        left_D = left_D - (new - old) * gram_DD[j]
        return coef_D.at[j].set(new), left_D, order_D, jnp.maximum(moved, jnp.abs(new - old))

    def sweep(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        coef_D, left_D, *_, count = state
        visit_D = (coef_D != 0) | ((left_D if positive else jnp.abs(left_D)) > l1)
        order_D = jnp.nonzero(visit_D, size=D, fill_value=0)[0].astype(jnp.int32)
        begin = coef_D, left_D, order_D, jnp.zeros_like(target)
        coef_D, left_D, _, moved = jax.lax.fori_loop(0, visit_D.sum(dtype=jnp.int32), coordinate, begin)
        gap, value = duality_gap(coef_D, left_D, cross_D, target, l1, l2, positive)
        settled = moved <= jnp.maximum(tol, tiny) * jnp.max(jnp.abs(coef_D))
        close = (l1 > 0) & (gap <= 1e-6 * value)
        done = (gap <= jnp.maximum(tol, tiny) * target) & (settled | close)
        return coef_D, left_D, gap, done | (moved == 0), count + 1

    left_D = cross_D - gram_DD @ start_D
    gap, value = duality_gap(start_D, left_D, cross_D, target, l1, l2, positive)
    close = 1e-6 * value
    there = (l1 > 0) & (gap <= jnp.minimum(jnp.maximum(tol, tiny) * target, close)) & (close >= tiny * target)
    begin = start_D, left_D, gap, there, jnp.zeros((), jnp.int32)
    coef_D, _, gap, _, count = jax.lax.while_loop(lambda s: ~s[3] & (s[4] < max_iter), sweep, begin)
    return Descent(coef_D, gap, count)


@_descend.defjvp
def _descend_jvp(
    positive: bool, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[Descent, Descent]:
    gram_DD, _, _, _, l2, *_ = primals
    d_gram, d_cross, _, d_l1, d_l2, *_ = tangents
    found = _descend(*primals, positive)
    coef_D = found.coef
    on_D = (coef_D != 0).astype(coef_D.dtype)
    system = gram_DD * on_D * on_D[:, None] + jnp.diag(l2 * on_D + 1 - on_D)
    right_D = on_D * (d_cross - d_gram @ coef_D - d_l1 * jnp.sign(coef_D) - d_l2 * coef_D)  # eq. 5
    d_coef = jax.scipy.linalg.solve(system, right_D, assume_a="sym")
    no_change: Any = np.zeros(found.sweeps.shape, jax.dtypes.float0)  # the tangent type of integers
    return found, Descent(d_coef, jnp.zeros_like(found.gap), no_change)


@partial(jax.jit, static_argnames="positive")
def descend(
    gram_DD: Array,
    cross_D: Array,
    target: ArrayLike,
    l1: ArrayLike,
    l2: ArrayLike,
    start_D: Array,
    tol: ArrayLike = 1e-4,
    max_iter: ArrayLike = 1000,
    positive: bool = False,
) -> Descent:
    r"""Minimise eq. 2 from ``start_D``.

    It stops when gap <= tol * target (target is $\|y\|^2$) and either the gap is below 1e-6 of the objective or the
    last sweep moved no coefficient by more than tol times the largest. It makes no sweep if the gap at the start is
    below both bounds, and 1e-6 of the objective is above rounding. Differentiable by eq. 5; vmap over any array.
    """
    dtype = cross_D.dtype
    target, l1, l2, tol = (jnp.asarray(v, dtype) for v in (target, l1, l2, tol))
    return _descend(gram_DD, cross_D, target, l1, l2, start_D, tol, jnp.asarray(max_iter, jnp.int32), positive)


@partial(jax.jit, static_argnames="positive")
def descend_path(
    gram_DD: Array,
    cross_D: Array,
    target: ArrayLike,
    l1_A: Array,
    l2_A: Array,
    start_D: Array,
    tol: ArrayLike = 1e-4,
    max_iter: ArrayLike = 1000,
    positive: bool = False,
) -> Descent:
    """Minimise eq. 2 for each (l1, l2) in turn, each started from the solution before it."""

    def step(coef_D: jax.Array, penalties: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Descent]:
        found = descend(gram_DD, cross_D, target, *penalties, coef_D, tol, max_iter, positive)
        return found.coef, found

    return jax.lax.scan(step, jnp.asarray(start_D), (jnp.asarray(l1_A), jnp.asarray(l2_A)))[1]


def _moments_of_arrays(X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, fit_intercept: bool) -> Moments:
    X = as_floating(X)
    return moments(X, jnp.asarray(y, X.dtype)[:, None], sample_weight, fit_intercept)


@partial(jax.jit, static_argnames=("fit_intercept", "positive"))
def solve_elastic_net(
    X: ArrayLike,
    y: ArrayLike,
    alpha: ArrayLike = 1.0,
    l1_ratio: ArrayLike = 0.5,
    *,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    positive: bool = False,
    tol: ArrayLike = 1e-8,
    max_iter: ArrayLike = 10_000,
) -> LinearSolution:
    r"""Return the minimiser (coef [D], intercept) of eq. 1 for X [I, D] and y [I]; $\rho$ is ``l1_ratio``.

    ``positive`` allows no coefficient below zero; tol and max_iter (sweeps) are those of :func:`descend`.
    Differentiable in X, y, alpha, l1_ratio and sample_weight (eq. 5); vmap over any of them.
    """
    m = _moments_of_arrays(X, y, sample_weight, fit_intercept)
    l1, l2 = m.weight * alpha * l1_ratio, m.weight * alpha * (1 - l1_ratio)
    start_D = jnp.zeros_like(m.mean_x)
    coef_D = descend(m.gram, m.cross[:, 0], m.target[0], l1, l2, start_D, tol, max_iter, positive).coef
    return LinearSolution(coef_D, m.mean_y[0] - m.mean_x @ coef_D)


def solve_lasso(X: ArrayLike, y: ArrayLike, alpha: ArrayLike = 1.0, **options: ArrayLike | None) -> LinearSolution:
    r"""Return the minimiser of eq. 1 with $\rho = 1$; the options are those of :func:`solve_elastic_net`."""
    return solve_elastic_net(X, y, alpha, 1.0, **options)


@partial(jax.jit, static_argnames=("fit_intercept", "positive"))
def solve_elastic_net_path(
    X: ArrayLike,
    y: ArrayLike,
    alphas_A: ArrayLike,
    l1_ratio: ArrayLike = 0.5,
    *,
    fit_intercept: bool = True,
    sample_weight: ArrayLike | None = None,
    positive: bool = False,
    tol: ArrayLike = 1e-8,
    max_iter: ArrayLike = 10_000,
) -> LinearSolution:
    """Return (coef [A, D], intercept [A]) of :func:`solve_elastic_net` for every alpha.

    Each starts from the minimiser before it, so large alphas should come first. A fold is a vector of weights, zero for
    the samples that it leaves out: vmap over ``sample_weight`` solves all folds.
    """
    m = _moments_of_arrays(X, y, sample_weight, fit_intercept)
    n_alphas = m.weight * jnp.asarray(alphas_A, m.gram.dtype)
    start_D = jnp.zeros_like(m.mean_x)
    penalties = n_alphas * l1_ratio, n_alphas * (1 - l1_ratio)
    coef_AD = descend_path(m.gram, m.cross[:, 0], m.target[0], *penalties, start_D, tol, max_iter, positive).coef
    return LinearSolution(coef_AD, m.mean_y[0] - coef_AD @ m.mean_x)
