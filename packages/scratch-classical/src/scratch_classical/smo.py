r"""Sequential minimal optimisation: the dual of support vector machines, two variables at a time.

Classification and regression are one problem in $\beta$ (for classification $\beta_i = y_i \alpha_i$,
$y_i = \pm 1$, $\varepsilon = 0$; for regression $\beta_i = \alpha_i - \alpha_i^*$), with K the kernel matrix:

$$ \max_\beta \; y^\top \beta - \varepsilon \|\beta\|_1 - \tfrac12 \beta^\top K \beta, \qquad
   \sum_i \beta_i = 0, \quad l_i \le \beta_i \le u_i \tag{1} $$

$l_i, u_i$ are $0$ and $C_i$ in the order of the sign of $y_i$ for classification and $\mp C_i$ for regression;
$C_i = C \omega_i$. The decision function is $\sum_i \beta_i k(x_i, x) + b$, over the support vectors
$\beta_i \ne 0$. The kernels are

$$ x^\top z, \quad (\gamma x^\top z + c)^p, \quad e^{-\gamma \|x - z\|^2}, \quad
   \tanh(\gamma x^\top z + c) \tag{2} $$

Increasing or decreasing $\beta_i$ changes eq. 1 at the rates ($\operatorname{sign}(0) = +1$ upwards, $-1$ downwards)

$$ F^{\uparrow}_i = y_i - (K\beta)_i - \varepsilon \operatorname{sign} \beta_i, \qquad
   F^{\downarrow}_i \text{ likewise} \tag{3} $$

and $\beta$ is optimal to the tolerance when $\max_{\beta_i < u_i} F^{\uparrow}_i - \min_{\beta_j > l_j}
F^{\downarrow}_j \le$ tol. One step moves a pair, $\beta_i \mathrel{+}= t$, $\beta_j \mathrel{-}= t$: i the
largest $F^{\uparrow}$ and j the largest gain (Fan, Chen and Lin 2005, second-order working set selection)

$$ j = \arg\max_j \frac{(F^{\uparrow}_i - F^{\downarrow}_j)^2}{\eta_{ij}}, \quad
   \eta_{ij} = K_{ii} + K_{jj} - 2 K_{ij}, \quad t = \frac{F^{\uparrow}_i - F^{\downarrow}_j}{\eta_{ij}}
   \text{, clipped} \tag{4} $$

**Two levels.** Above a few hundred samples the steps run on a working set of the worst violators, half of it kept
from the set before, whose square of K fits the processor's cache; then $K\beta$ is brought up to date with one
product. The rows of K that are new to the set are taken from a stored K, or computed on the spot when there is none.
K is kept in float32, as in LIBSVM, which makes this the same problem to the last digit; everything else is float64.

Shapes: I and J samples, D features, W samples of a working set.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

WORKING_SET = 256
BLOCK = 64  # rows of K computed at a time


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


@partial(jax.jit, static_argnames=("kind", "degree"))
def stored_kernel(X_ID: Any, gamma: Any, coef0: Any, *, kind: str, degree: int) -> jax.Array:
    """Return k(x_i, x_j) in float32, a block of rows at a time: nothing of its size exists beside it."""
    I, D = X_ID.shape
    block = BLOCK if I % BLOCK == 0 else I

    def some(X_BD: Any) -> jax.Array:
        return kernel_matrix(X_BD, X_ID, gamma, coef0, kind=kind, degree=degree).astype(jnp.float32)

    return jax.lax.map(some, X_ID.reshape(I // block, block, D)).reshape(I, I)


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
        moves = highest - down_W.min() > jnp.where(count < patience, fine, tol)
        beta_W = jnp.where(moves, beta_W.at[i].set(new_i).at[j].set(new_j), beta_W)
        product_W = jnp.where(moves, product_W, state[1])
        return beta_W, product_W, moves, count + 1

    begin = beta_W, product_W, jnp.ones((), bool), jnp.zeros((), jnp.int32)
    beta_W, product_W, _, count = jax.lax.while_loop(lambda s: s[2] & (s[3] < limit), step, begin)
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
    r"""Return (beta [I], b, violation, steps): eq. 1 with two levels.

    ``source`` is K [I, I] if ``stored``, else X [I, D], from which the rows of K that a working set needs are
    computed when they join it: memory W I instead of I^2. Without ``precise`` $K\beta$ is brought up to date in
    float32, which is faster and good for tolerances above 1e-5.
    """
    I = y_I.shape[0]
    W, dtype = min(WORKING_SET, I), y_I.dtype
    half = W // 2
    limit = jnp.where(limit < 0, jnp.iinfo(jnp.int32).max, limit)

    def rows(picked: Any) -> jax.Array:
        if stored:
            return source[picked]
        return kernel_matrix(source[picked], source, gamma, coef0, kind=kind, degree=degree).astype(jnp.float32)

    def gap_of(beta_I: Any, product_I: Any) -> jax.Array:
        up, down = _violation(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        return up.max() - down.min()

    def outer(state: Any) -> Any:
        beta_I, product_I, kept_W, rows_WI, gap, count = state
        up, down = _violation(y_I, product_I, beta_I, lower_I, upper_I, epsilon)
        up, down = up.astype(jnp.float32), down.astype(jnp.float32)
        # The newest half of the last set stays: pairs that were nearly settled would otherwise come back in turn.
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
            inner_tol, inner_tol, 0, jnp.minimum(limit - count, 20 * W),
        )  # fmt: skip
        change_W = new_W - old_W
        summed = dtype if precise else rows_WI.dtype
        product_I = product_I + (change_W.astype(summed) @ rows_WI.astype(summed)).astype(dtype)
        beta_I = beta_I.at[index_W].set(new_W)
        return beta_I, product_I, index_W, rows_WI, gap_of(beta_I, product_I), count + steps

    def going(state: Any) -> jax.Array:
        return (state[4] > tol) & (state[5] < limit)

    start, first_W = jnp.zeros_like(y_I), jnp.arange(W, dtype=jnp.int32)
    begin = start, start, first_W, rows(first_W), gap_of(start, start), jnp.zeros((), jnp.int32)
    beta, product, *_, count = jax.lax.while_loop(going, outer, begin)
    return beta, *_bias(y_I, product, beta, lower_I, upper_I, epsilon), count
