r"""Second moments of a regression problem: ridge, lasso and their cross-validation need nothing else of the data.

Around any shift $(s, t)$, with weights $\omega_i$ and $n = \sum_i \omega_i$,

$$ G = \sum_i \omega_i (x_i - s)(x_i - s)^\top, \quad B = \sum_i \omega_i (x_i - s)(y_i - t)^\top, \quad
   u = \sum_i \omega_i (x_i - s), \quad v = \sum_i \omega_i (y_i - t) \tag{1} $$

are sums over samples, so those of a training fold are the total minus those of the fold held out. Centring is then
algebra,

$$ G_c = G - u u^\top / n, \qquad B_c = B - u v^\top / n, \qquad \bar x = s + u / n \tag{2} $$

which loses no digits when the shift is a typical row. It is exact for a constant column, which becomes zero.

Shapes: I samples, D features, K outputs.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import sparse

from .arrays import Array, Layout, Rows, SparseMatrix, as_rows, bucket, is_on_device, pad


class Samples(NamedTuple):
    """A regression problem laid out for :func:`sums`: X, y [I, K], weights [I], and the shift s [D] and t [K] of eq. 1.

    Samples that are only padding have weight zero.
    """

    rows: Rows
    y_IK: jax.Array
    weight_I: jax.Array
    shift_x: jax.Array
    shift_y: jax.Array


class Sums(NamedTuple):
    """Eq. 1: gram G [D, D], cross B [D, K], target [K] (squares of y - t), x = u [D], y = v [K], weight = n.

    Those of folds are numpy arrays. Two that were taken around the same shift may be added and subtracted.
    """

    gram: Array
    cross: Array
    target: Array
    x: Array
    y: Array
    weight: Array


class Moments(NamedTuple):
    """Eq. 2: centred gram [D, D], cross [D, K], target [K] = sum of squares of y; the means and the total weight."""

    gram: jax.Array
    cross: jax.Array
    target: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    weight: jax.Array


def gram_of(columns: list[jax.Array]) -> tuple[jax.Array, ...]:
    r"""Return the block rows, from the diagonal to the left, of $Z^\top Z$ for Z given as groups of columns."""
    # The barriers make each group, and its transpose, an array of its own. Without them a product of slices copies the
    # slices for every use, and in a loop XLA may multiply naively when the left side is not laid out by rows.
    columns = [jax.lax.optimization_barrier(c) for c in columns]
    transposed = [jax.lax.optimization_barrier(c.T) for c in columns]
    return tuple(left @ right for i, left in enumerate(transposed) for right in columns[: i + 1])


def assembled(blocks: tuple[jax.Array, ...]) -> jax.Array:
    """Return the symmetric matrix whose lower block triangle is :func:`gram_of`."""
    parts = math.isqrt(2 * len(blocks))
    rows = [blocks[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(parts)]
    return jnp.block([[rows[i][j] if j <= i else rows[j][i].T for j in range(parts)] for i in range(parts)])


def sums(samples: Samples) -> Sums:
    r"""Return eq. 1 in one pass over the rows, as the Gram matrix of $Z = \sqrt\omega\,[X - s, y - t, 1]$.

    Only half of a symmetric product is computed, in groups of columns whose width suits vector registers. An array
    that is one block is multiplied whole, and by the weights themselves, because a root has no derivative at zero.
    """
    rows, y_IK, weight_I, shift_x, shift_y = samples
    D = shift_x.shape[0]
    width = 48 * -(-D // 288)  # at most seven groups; 48 is the tile that XLA multiplies fastest
    edges = [*range(0, D, width), D]

    def augmented(X_RD: jax.Array, y_RK: jax.Array) -> tuple[jax.Array, jax.Array]:
        return X_RD - shift_x, jnp.concatenate([y_RK - shift_y, jnp.ones_like(y_RK[:, :1])], axis=1)

    def part(X_RD: jax.Array, y_RK: jax.Array, weight_R: jax.Array) -> tuple[jax.Array, ...]:
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


def centered(s: Sums, shift_x: jax.Array, shift_y: jax.Array, fit_intercept: bool = True) -> Moments:
    """Return eq. 2; without an intercept the shift must be zero, and nothing is subtracted."""
    gram, cross, target, x, y, weight = map(jnp.asarray, s)
    if not fit_intercept:
        return Moments(gram, cross, target, jnp.zeros_like(x), jnp.zeros_like(y), weight)
    mean_x, mean_y = x / weight, y / weight
    return Moments(
        gram - jnp.outer(x, mean_x),
        cross - jnp.outer(x, mean_y),
        target - y * mean_y,
        shift_x + mean_x,
        shift_y + mean_y,
        weight,
    )


def moments(
    X: jax.Array, y_IK: jax.Array, sample_weight: ArrayLike | None = None, fit_intercept: bool = True
) -> Moments:
    """Return the centred moments of plain arrays. The pure solvers use this form, which is differentiable."""
    weight_I = jnp.ones(X.shape[0], X.dtype) if sample_weight is None else jnp.asarray(sample_weight, X.dtype)
    shift_x, shift_y = jnp.zeros(X.shape[1], X.dtype), jnp.zeros(y_IK.shape[1], X.dtype)
    if fit_intercept:
        shift_x, shift_y = (weight_I @ X) / weight_I.sum(), (weight_I @ y_IK) / weight_I.sum()
    s = sums(Samples(as_rows(X), y_IK, weight_I, shift_x, shift_y))
    return centered(s, shift_x, shift_y, fit_intercept)


@partial(jax.jit, static_argnames="fit_intercept")
def moments_of(samples: Samples, fit_intercept: bool = True) -> Moments:
    """Return the centred moments of ``samples`` in one pass over the rows."""
    return centered(sums(samples), samples.shift_x, samples.shift_y, fit_intercept)


class CenteredRows(NamedTuple):
    """Centred rows Z [I, D] and targets V [I, K], multiplied by the roots of the weights; the means, and the roots."""

    Z_ID: jax.Array
    V_IK: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    root_I: jax.Array


def centered_rows(samples: Samples, fit_intercept: bool) -> CenteredRows:
    """Return the rows that stand for a problem with few samples, which must all be in the tail."""
    rows, y_IK, weight_I, shift_x, _ = samples
    mean_x, mean_y = jnp.zeros_like(shift_x), jnp.zeros(y_IK.shape[1], y_IK.dtype)
    if fit_intercept:
        mean_x = shift_x + weight_I @ (rows.tail - shift_x) / weight_I.sum()
        mean_y = weight_I @ y_IK / weight_I.sum()
    root_I = jnp.sqrt(weight_I)
    return CenteredRows(
        (rows.tail - mean_x) * root_I[:, None], (y_IK - mean_y) * root_I[:, None], mean_x, mean_y, root_I
    )


def sparse_moments(X: SparseMatrix, y: np.ndarray, sample_weight: np.ndarray | None, fit_intercept: bool) -> Moments:
    """Return the centred moments of a scipy sparse X, with the features padded to their :func:`bucket`.

    No array as large as a dense X is made. The products are sparse and in float64, taken around zero, the most common
    value. A column without implicit zeros is taken around a typical value of its own instead, so that its mean may be
    large. A column whose variance is no larger than rounding counts as constant.
    """
    dtype, num_features = X.dtype, X.shape[1]
    y_IK = np.asarray(y, np.float64).reshape(len(y), -1)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    shift_y = typical_target(y_IK, fit_intercept)
    packed = X.tocsr().astype(np.float64)
    shift_x = np.zeros(num_features)
    if fit_intercept and (np.bincount(packed.indices, minlength=num_features) >= len(y)).any():
        packed.sum_duplicates()
        full = np.bincount(packed.indices, minlength=num_features) == len(y)
        some = packed[:: max(1, len(y) // 9)][:9].toarray()
        shift_x = np.where(full, typical_row(some, fit_intercept), 0)
        packed.data -= shift_x[packed.indices]
    weighted = sparse.diags_array(weight) @ packed
    V_IK = y_IK - shift_y
    W_IK = V_IK * weight[:, None]
    gram, cross, total_x = (weighted.T @ packed).toarray(), packed.T @ W_IK, weighted.T @ np.ones(len(y))
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
    parts = (
        pad(gram, padded, padded), pad(cross, padded, cross.shape[1]), target, pad(mean_x, padded), shift_y + mean_y,
        total,
    )  # fmt: skip
    return Moments(*(jnp.asarray(part, dtype) for part in parts))


def typical_row(X: Array, fit_intercept: bool) -> Array:
    """Return the median of nine rows of X as the shift [D]. Its entries occur in X, so constant columns become zero."""
    if not fit_intercept:
        return np.zeros(X.shape[1], X.dtype)
    picked = X[:: max(1, X.shape[0] // 9)][:9]
    picked = picked[: len(picked) - 1 + len(picked) % 2]  # an odd number of rows: the median is one of the values
    if is_on_device(X):
        return jnp.median(jnp.asarray(picked), axis=0).astype(X.dtype)
    with np.errstate(invalid="ignore"):
        return np.sort(picked, axis=0)[len(picked) // 2]


def typical_target(y_IK: np.ndarray, fit_intercept: bool) -> np.ndarray:
    """Return the median of about a hundred targets as their shift [K]."""
    if not fit_intercept:
        return np.zeros(y_IK.shape[1], y_IK.dtype)
    return np.median(y_IK[:: max(1, len(y_IK) // 99)], axis=0).astype(y_IK.dtype)


def arranged(layout: Layout, X: Array, y: np.ndarray, sample_weight: np.ndarray | None, fit_intercept: bool) -> Samples:
    """Return the samples with targets and weights in the order of ``layout``, which holds the rows of X."""
    y_IK = np.asarray(y, X.dtype).reshape(len(y), -1)
    weight = np.ones(len(y), X.dtype) if sample_weight is None else np.asarray(sample_weight, X.dtype)
    shift_x, shift_y = typical_row(X, fit_intercept), typical_target(y_IK, fit_intercept)
    if isinstance(shift_x, np.ndarray):
        shift_x = pad(shift_x, layout.rows.tail.shape[1])
    return Samples(layout.rows, *map(jnp.asarray, (layout.arrange(y_IK), layout.arrange(weight), shift_x, shift_y)))
