r"""Sequential minimal optimisation: the dual of support vector machines, two variables at a time.

Classification and regression are one problem in $\beta$ (for classification $\beta_i = y_i \alpha_i$,
$y_i = \pm 1$, $\varepsilon = 0$; for regression $\beta_i = \alpha_i - \alpha_i^*$), with K the kernel matrix:

$$ \max_\beta \; y^\top \beta - \varepsilon \|\beta\|_1 - \tfrac12 \beta^\top K \beta, \qquad
   \sum_i \beta_i = 0, \quad l_i \le \beta_i \le u_i \tag{1} $$

For classification $[l_i, u_i]$ is $[0, C_i]$ where $y_i = 1$ and $[-C_i, 0]$ where $y_i = -1$; for regression it is
$[-C_i, C_i]$; $C_i = C \omega_i$. The decision function is $\sum_i \beta_i k(x_i, x) + b$, over the support vectors
$\beta_i \ne 0$. The kernels are

$$ x^\top z, \quad (\gamma x^\top z + c)^p, \quad e^{-\gamma \|x - z\|^2}, \quad
   \tanh(\gamma x^\top z + c) \tag{2} $$

When $\beta_i$ increases or decreases, eq. 1 changes at the rates ($\operatorname{sign}(0)$ is $+1$ upwards and $-1$
downwards)

$$ F^{\uparrow}_i = y_i - (K\beta)_i - \varepsilon \operatorname{sign} \beta_i, \qquad
   F^{\downarrow}_i \text{ likewise} \tag{3} $$

and $\beta$ is optimal to the tolerance when $\max_{\beta_i < u_i} F^{\uparrow}_i - \min_{\beta_j > l_j}
F^{\downarrow}_j \le$ tol. One step moves a pair, $\beta_i \mathrel{+}= t$, $\beta_j \mathrel{-}= t$: i the
largest $F^{\uparrow}$ and j the largest gain (Fan, Chen and Lin 2005, second-order working set selection)

$$ j = \arg\max_j \frac{(F^{\uparrow}_i - F^{\downarrow}_j)^2}{\eta_{ij}}, \quad
   \eta_{ij} = K_{ii} + K_{jj} - 2 K_{ij}, \quad t = \frac{F^{\uparrow}_i - F^{\downarrow}_j}{\eta_{ij}}
   \text{, clipped} \tag{4} $$

**Two levels.** Above a few hundred samples the steps run on a working set of the worst violators, half of which is kept
from the set before. The block of K between its samples fits the processor's cache. Then one product brings $K\beta$ up
to date. The rows of K that are new to the set are taken from a stored K, or computed when there is none. K is kept in
float32, as in LIBSVM, so that both solve the same problem to the last digit. $\beta$ and $K\beta$ are float64.

Shapes: I and J samples, D features, W samples of a working set.
"""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import Array

WORKING_SET = 256
BLOCK = 64  # rows of K computed at a time

State: TypeAlias = tuple[jax.Array, ...]  # what a loop carries


class DualSolution(NamedTuple):
    """The maximiser beta [I] of eq. 1, the bias b, the violation of optimality (eq. 3), and the number of steps."""

    beta: jax.Array
    bias: jax.Array
    violation: jax.Array
    steps: jax.Array


@partial(jax.jit, static_argnames=("kernel", "degree"))
def kernel_matrix(
    X_ID: Array, Z_JD: Array, gamma: ArrayLike = 1.0, coef0: ArrayLike = 0.0, *, kernel: str = "rbf", degree: int = 3
) -> jax.Array:
    """Return k(x_i, z_j) of eq. 2 [I, J]; ``kernel`` is linear, poly, rbf or sigmoid, ``coef0`` is c, ``degree`` p."""
    X_ID, Z_JD, gamma = jnp.asarray(X_ID), jnp.asarray(Z_JD), jnp.asarray(gamma)
    product = jnp.matmul(X_ID, Z_JD.T, precision="highest")
    if kernel == "linear":
        return product
    if kernel == "poly":
        return (gamma * product + coef0) ** degree
    if kernel == "sigmoid":
        return jnp.tanh(gamma * product + coef0)
    square = (X_ID**2).sum(1)[:, None] + (Z_JD**2).sum(1) - 2 * product
    return jnp.exp(-gamma * jnp.maximum(square, 0))


@partial(jax.jit, static_argnames=("kernel", "degree"))
def stored_kernel(X_ID: Array, gamma: ArrayLike, coef0: ArrayLike, *, kernel: str, degree: int) -> jax.Array:
    """Return k(x_i, x_j) [I, I] in float32, computed a block of rows at a time, without a second array of its size."""
    I, D = X_ID.shape
    block = BLOCK if I % BLOCK == 0 else I

    def some(X_BD: jax.Array) -> jax.Array:
        return kernel_matrix(X_BD, X_ID, gamma, coef0, kernel=kernel, degree=degree).astype(jnp.float32)

    return jax.lax.map(some, X_ID.reshape(I // block, block, D)).reshape(I, I)


def _rates(y: jax.Array, product: jax.Array, beta: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return eq. 3, upwards and downwards."""
    rest = y - product
    return rest - epsilon * jnp.where(beta >= 0, 1, -1), rest - epsilon * jnp.where(beta > 0, 1, -1)


def _possible_rates(
    y: jax.Array, product: jax.Array, beta: jax.Array, lower: jax.Array, upper: jax.Array, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return eq. 3 where a bound allows the move: else -inf upwards (at the upper bound) and +inf downwards."""
    up, down = _rates(y, product, beta, epsilon)
    return jnp.where(beta < upper, up, -jnp.inf), jnp.where(beta > lower, down, jnp.inf)


def _first(mask: jax.Array) -> jax.Array:
    """Return the index of the first True. XLA vectorises this and a maximum, but not argmax."""
    W = mask.shape[0]
    return jnp.minimum(jnp.where(mask, jnp.arange(W, dtype=jnp.int32), W).min(), W - 1)


def _steps(
    K_WW: jax.Array,
    y_W: jax.Array,
    beta_W: jax.Array,
    product_W: jax.Array,
    lower_W: jax.Array,
    upper_W: jax.Array,
    epsilon: jax.Array,
    tol: jax.Array,
    tight_tol: jax.Array,
    tight_steps: jax.Array | int,
    max_steps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (beta, K beta, steps) after steps of eq. 4 until the violation is at most ``tight_tol``.

    After ``tight_steps`` steps a violation of at most ``tol`` is enough. It never takes more than ``max_steps`` steps.
    """
    dtype = beta_W.dtype
    diagonal_W = jnp.diagonal(K_WW).astype(dtype)

    def step(state: State) -> State:
        beta_W, product_W, _, count = state
        up_W, down_W = _possible_rates(y_W, product_W, beta_W, lower_W, upper_W, epsilon)
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
        moves = highest - down_W.min() > jnp.where(count < tight_steps, tight_tol, tol)
        beta_W = jnp.where(moves, beta_W.at[i].set(new_i).at[j].set(new_j), beta_W)
        product_W = jnp.where(moves, product_W, state[1])
        return beta_W, product_W, moves, count + 1

    begin = beta_W, product_W, jnp.ones((), bool), jnp.zeros((), jnp.int32)
    beta_W, product_W, _, count = jax.lax.while_loop(lambda s: s[2] & (s[3] < max_steps), step, begin)
    return beta_W, product_W, count


def _bias(
    y: jax.Array, product: jax.Array, beta: jax.Array, lower: jax.Array, upper: jax.Array, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return (b, violation). b is the mean rate of the free variables, or without any the middle of its interval."""
    up, down = _possible_rates(y, product, beta, lower, upper, epsilon)
    highest, lowest = up.max(), down.min()
    free = (beta > lower) & (beta < upper) & ((epsilon == 0) | (beta != 0))
    mean = jnp.where(free, jnp.where(beta > 0, down, up), 0).sum() / jnp.maximum(free.sum(), 1)
    middle = 0.5 * (
        jnp.where(jnp.isfinite(highest), highest, lowest) + jnp.where(jnp.isfinite(lowest), lowest, highest)
    )
    return jnp.where(free.any(), mean, middle), highest - lowest


def _largest_if_negative(max_steps: ArrayLike) -> jax.Array:
    return jnp.where(jnp.less(max_steps, 0), jnp.iinfo(jnp.int32).max, max_steps)


@jax.jit
def solve_svm_flat(
    K_II: Array,
    y_I: Array,
    lower_I: Array,
    upper_I: Array,
    epsilon: ArrayLike = 0.0,
    tol: ArrayLike = 1e-3,
    tight_tol: ArrayLike = 1e-3,
    max_steps: ArrayLike = -1,
) -> DualSolution:
    """Maximise eq. 1 with one level of steps; vmap over any array.

    ``tol`` bounds the violation. In the first 100 I steps it aims at ``tight_tol`` instead, if that is smaller. A
    ``max_steps`` below zero sets no limit.
    """
    K_II, y_I, lower_I, upper_I = map(jnp.asarray, (K_II, y_I, lower_I, upper_I))
    epsilon, tol = jnp.asarray(epsilon), jnp.asarray(tol)
    I = K_II.shape[0]
    start = jnp.zeros_like(y_I)
    beta, product, steps = _steps(
        K_II, y_I, start, start, lower_I, upper_I, epsilon, tol, jnp.minimum(tol, tight_tol), 100 * I,
        _largest_if_negative(max_steps),
    )  # fmt: skip
    return DualSolution(beta, *_bias(y_I, product, beta, lower_I, upper_I, epsilon), steps)


@partial(jax.jit, static_argnames=("kernel", "degree", "stored", "precise"))
def solve_svm(
    source: Array,
    y_I: Array,
    lower_I: Array,
    upper_I: Array,
    epsilon: ArrayLike = 0.0,
    tol: ArrayLike = 1e-3,
    max_steps: ArrayLike = -1,
    gamma: ArrayLike = 1.0,
    coef0: ArrayLike = 0.0,
    *,
    kernel: str = "rbf",
    degree: int = 3,
    stored: bool = True,
    precise: bool = True,
) -> DualSolution:
    r"""Maximise eq. 1 with two levels of steps until the violation is at most ``tol``.

    ``source`` is K [I, I] if ``stored``, else X [I, D], from which the rows of K that a working set needs are
    computed when they join it: memory W I instead of I^2. Without ``precise``, $K\beta$ is brought up to date in
    float32, which is faster and good for tolerances above 1e-5. A ``max_steps`` below zero sets no limit. The kernel's
    parameters are those of :func:`kernel_matrix`.
    """
    source, y_I, lower_I, upper_I = map(jnp.asarray, (source, y_I, lower_I, upper_I))
    epsilon, tol = jnp.asarray(epsilon), jnp.asarray(tol)
    I = y_I.shape[0]
    W, dtype = min(WORKING_SET, I), y_I.dtype
    half = W // 2
    max_steps = _largest_if_negative(max_steps)

    def rows(picked: jax.Array) -> jax.Array:
        if stored:
            return source[picked]
        return kernel_matrix(source[picked], source, gamma, coef0, kernel=kernel, degree=degree).astype(jnp.float32)

    def gap_of(beta_I: jax.Array, product_I: jax.Array) -> jax.Array:
        up, down = _possible_rates(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        return up.max() - down.min()

    def outer(state: State) -> State:
        beta_I, product_I, kept_W, rows_WI, gap, count = state
        up, down = _possible_rates(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        up, down = up.astype(jnp.float32), down.astype(jnp.float32)
        # The newest half of the last set stays: otherwise pairs that are nearly settled would leave and come back.
        big = jnp.float32(jnp.finfo(jnp.float32).max)
        stays = jnp.zeros(I, bool).at[kept_W[:half]].set(True)
        up, down = jnp.maximum(up, -big), jnp.minimum(down, big)
        _, top = jax.lax.top_k(jnp.where(stays, -jnp.inf, up), half // 2)
        taken = stays.at[top].set(True)
        _, bottom = jax.lax.top_k(jnp.where(taken, -jnp.inf, -down), half - half // 2)
        found = jnp.concatenate([top, bottom])
        index_W = jnp.concatenate([found, kept_W[: W - half]])
        rows_WI = jnp.concatenate([rows(found), rows_WI[: W - half]])
        K_WW = rows_WI[:, index_W]
        inner_tol = jnp.maximum(0.1 * gap, 0.5 * tol)
        old_W = beta_I[index_W]
        new_W, _, steps = _steps(
            K_WW, y_I[index_W], old_W, product_I[index_W], lower_I[index_W], upper_I[index_W], epsilon,
            inner_tol, inner_tol, 0, jnp.minimum(max_steps - count, 20 * W),
        )  # fmt: skip
        change_W = new_W - old_W
        sum_dtype = dtype if precise else rows_WI.dtype
        product_I = product_I + (change_W.astype(sum_dtype) @ rows_WI.astype(sum_dtype)).astype(dtype)
        beta_I = beta_I.at[index_W].set(new_W)
        return beta_I, product_I, index_W, rows_WI, gap_of(beta_I, product_I), count + steps

    def unfinished(state: State) -> jax.Array:
        return (state[4] > tol) & (state[5] < max_steps)

    start, first_W = jnp.zeros_like(y_I), jnp.arange(W, dtype=jnp.int32)
    begin = start, start, first_W, rows(first_W), gap_of(start, start), jnp.zeros((), jnp.int32)
    beta, product, *_, steps = jax.lax.while_loop(unfinished, outer, begin)
    return DualSolution(beta, *_bias(y_I, product, beta, lower_I, upper_I, epsilon), steps)
