r"""Second moments of a regression problem: all that ridge, lasso and their cross-validation need of the data.

Around any shift $(s, t)$, with weights $\omega_i$ and $n = \sum_i \omega_i$,

$$ G = \sum_i \omega_i (x_i - s)(x_i - s)^\top, \quad B = \sum_i \omega_i (x_i - s)(y_i - t)^\top, \quad
   u = \sum_i \omega_i (x_i - s), \quad v = \sum_i \omega_i (y_i - t) \tag{1} $$

are sums over samples, so a training fold is the total minus the fold held out. Centring is then algebra,

$$ G_c = G - u u^\top / n, \qquad B_c = B - u v^\top / n, \qquad \bar x = s + u / n \tag{2} $$

which loses no digits when the shift is a typical row. It is exact for a constant column: that column is zero.

Shapes: I samples, D features, K outputs.
"""

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from .arrays import Layout, Rows, as_rows, bucket, is_on_device, pad


class Sums(NamedTuple):
    """Eq. 1, with the shift it is taken around. Two of the same shift may be added and subtracted."""

    gram: Any
    cross: Any
    target: Any
    x: Any
    y: Any
    weight: Any


class Moments(NamedTuple):
    """Eq. 2: centred gram [D, D], cross [D, K], target [K] = sum of squares of y; the means and the total weight."""

    gram: Any
    cross: Any
    target: Any
    mean_x: Any
    mean_y: Any
    weight: Any


def gram_of(columns: list[jax.Array]) -> tuple[jax.Array, ...]:
    r"""Return the block rows, from the diagonal to the left, of $Z^\top Z$ for Z given as groups of columns."""
    # The barriers make each group, and its transpose, an array of its own: a product of slices would copy them for
    # every use, and in a loop XLA may multiply naively when the left side is not laid out by rows.
    columns = [jax.lax.optimization_barrier(c) for c in columns]
    transposed = [jax.lax.optimization_barrier(c.T) for c in columns]
    return tuple(left @ right for i, left in enumerate(transposed) for right in columns[: i + 1])


def assembled(blocks: tuple[jax.Array, ...]) -> jax.Array:
    """Return the symmetric matrix whose lower block triangle is :func:`gram_of`."""
    parts = math.isqrt(2 * len(blocks))
    rows = [blocks[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(parts)]
    return jnp.block([[rows[i][j] if j <= i else rows[j][i].T for j in range(parts)] for i in range(parts)])


def sums(rows: Rows, y_IK: Any, weight_I: Any, shift_x: Any, shift_y: Any) -> Sums:
    r"""Return eq. 1 in one pass over the rows, as the Gram matrix of $Z = \sqrt\omega\,[X - s, y - t, 1]$.

    Half of a symmetric product is multiplied, in groups of columns whose width suits vector registers. An array that
    is one block is multiplied whole, and by the weights themselves, whose root has no derivative at zero.
    """
    D = shift_x.shape[0]
    width = 48 * -(-D // 288)  # at most seven groups; 48 is the tile that XLA multiplies fastest
    edges = [*range(0, D, width), D]

    def augmented(X_RD: Any, y_RK: Any) -> tuple[Any, Any]:
        return X_RD - shift_x, jnp.concatenate([y_RK - shift_y, jnp.ones_like(y_RK[:, :1])], axis=1)

    def part(X_RD: Any, y_RK: Any, weight_R: Any) -> tuple[jax.Array, ...]:
        Z_RD, V_RL = augmented(X_RD, y_RK)
        columns = [Z_RD[:, low:high] for low, high in itertools.pairwise(edges)]
        columns[-1] = jnp.concatenate([columns[-1], V_RL], axis=1)
        return gram_of([c * jnp.sqrt(weight_R)[:, None] for c in columns])

    if rows.num_blocks:
        full = assembled(rows.sum(part, y_IK, weight_I))
        gram, with_x_LD, with_y_LL = full[:D, :D], full[D:, :D], full[D:, D:]
    else:
        Z_ID, V_IL = augmented(rows.tail, y_IK)
        W_IL = V_IL * weight_I[:, None]
        gram, with_x_LD, with_y_LL = Z_ID.T @ (Z_ID * weight_I[:, None]), W_IL.T @ Z_ID, W_IL.T @ V_IL
    return Sums(
        gram,
        with_x_LD[:-1].T,
        jnp.diagonal(with_y_LL)[:-1],
        with_x_LD[-1],
        with_y_LL[-1, :-1],
        with_y_LL[-1, -1],
    )


def centered(s: Sums, shift_x: Any, shift_y: Any, fit_intercept: bool = True) -> Moments:
    """Return eq. 2; without an intercept the shift must be zero and nothing is subtracted."""
    if not fit_intercept:
        return Moments(s.gram, s.cross, s.target, jnp.zeros_like(s.x), jnp.zeros_like(s.y), s.weight)
    x, y = s.x / s.weight, s.y / s.weight
    return Moments(
        s.gram - jnp.outer(s.x, x),
        s.cross - jnp.outer(s.x, y),
        s.target - s.y * y,
        shift_x + x,
        shift_y + y,
        s.weight,
    )


def moments(X: Any, y_IK: Any, sample_weight: Any = None, fit_intercept: bool = True) -> Moments:
    """Return the centred moments of arrays: the differentiable form, used by the pure solvers."""
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    shift_x, shift_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        shift_x, shift_y = (weight_I @ X) / weight_I.sum(), (weight_I @ y_IK) / weight_I.sum()
    return centered(sums(as_rows(X), y_IK, weight_I, shift_x, shift_y), shift_x, shift_y, fit_intercept)


@partial(jax.jit, static_argnames="fit_intercept")
def moments_of_rows(
    rows: Rows, y_IK: Any, weight_I: Any, shift_x: Any, shift_y: Any, fit_intercept: bool = True
) -> Moments:
    """Return the centred moments of what :func:`problem` prepared, in one pass over the rows."""
    return centered(sums(rows, y_IK, weight_I, shift_x, shift_y), shift_x, shift_y, fit_intercept)


def sparse_moments(X: Any, y: np.ndarray, sample_weight: Any, fit_intercept: bool) -> Moments:
    """Return the centred moments of a scipy sparse X, the features padded to their bucket.

    Nothing as large as a dense X is made: the products are sparse, in float64 and around zero, the typical value; a
    column without implicit zeros is summed around its typical value instead, so that its mean may be large. A column
    whose variance is within rounding of nothing counts as constant.
    """
    dtype, num_features = X.dtype, X.shape[1]
    y_IK = np.asarray(y, np.float64).reshape(len(y), -1)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    shift_y = typical_target(y_IK, fit_intercept)
    X = X.tocsr().astype(np.float64)
    shift_x = np.zeros(num_features)
    if fit_intercept and (np.bincount(X.indices, minlength=num_features) >= len(y)).any():
        X.sum_duplicates()
        full = np.bincount(X.indices, minlength=num_features) == len(y)
        some = X[:: max(1, len(y) // 9)][:9].toarray()
        shift_x = np.where(full, typical_row(some, fit_intercept), 0)
        X.data -= shift_x[X.indices]
    weighted = sparse.diags_array(weight) @ X
    V_IK = y_IK - shift_y
    W_IK = V_IK * weight[:, None]
    gram, cross, total_x = (weighted.T @ X).toarray(), X.T @ W_IK, weighted.T @ np.ones(len(y))
    square, total = np.diagonal(gram).copy(), weight.sum()
    mean_x, mean_y = np.zeros(num_features), np.zeros(y_IK.shape[1])
    if fit_intercept:
        mean_x, mean_y = total_x / total, W_IK.sum(0) / total
        gram -= np.outer(total_x, mean_x)
        cross = cross - np.outer(total_x, mean_y)
        constant = np.diagonal(gram) <= 1e-13 * square
        gram[constant], gram[:, constant], cross[constant] = 0, 0, 0
        mean_x = shift_x + mean_x
    target = (W_IK * V_IK).sum(0) - total * mean_y**2
    padded = bucket(num_features)
    gram, mean_x = pad(gram.astype(dtype), padded, padded), pad(mean_x.astype(dtype), padded)
    cross = pad(cross.astype(dtype), padded, cross.shape[1])
    return Moments(gram, cross, target.astype(dtype), mean_x, (shift_y + mean_y).astype(dtype), dtype.type(total))


def typical_row(X: Any, fit_intercept: bool) -> Any:
    """Return the median of nine rows of X, a good shift: its entries occur in X, so constant columns vanish."""
    if not fit_intercept:
        return np.zeros(X.shape[1], X.dtype)
    picked = X[:: max(1, X.shape[0] // 9)][:9]
    picked = picked[: len(picked) - 1 + len(picked) % 2]  # an odd number of rows: the median is one of the values
    if is_on_device(X):
        return jnp.median(picked, axis=0).astype(X.dtype)
    with np.errstate(invalid="ignore"):
        return np.sort(picked, axis=0)[len(picked) // 2]


def typical_target(y_IK: np.ndarray, fit_intercept: bool) -> np.ndarray:
    """Return the median of about a hundred targets, a good shift for them."""
    if not fit_intercept:
        return np.zeros(y_IK.shape[1], y_IK.dtype)
    return np.median(y_IK[:: max(1, len(y_IK) // 99)], axis=0).astype(y_IK.dtype)


def problem(layout: Layout, X: Any, y: np.ndarray, sample_weight: Any, fit_intercept: bool) -> tuple[Any, ...]:
    """Return (rows, y_IK, weight_I, shift_x, shift_y) padded alike, ready for :func:`sums`."""
    y_IK = np.asarray(y, X.dtype).reshape(len(y), -1)
    weight = np.ones(len(y), X.dtype) if sample_weight is None else np.asarray(sample_weight, X.dtype)
    shift_x, shift_y = typical_row(X, fit_intercept), typical_target(y_IK, fit_intercept)
    if not is_on_device(X):
        shift_x = pad(shift_x, layout.rows.tail.shape[1])
    return layout.rows, layout.arrange(y_IK), layout.arrange(weight), shift_x, shift_y
