r"""Exact search for the nearest neighbours by blocks, without an array of all differences.

$$ d_p(q, x) = \Big(\sum_j w_j |q_j - x_j|^p\Big)^{1/p}, \quad d_\infty = \max_j |q_j - x_j|, \quad
   d_{\cos} = 1 - \frac{q^\top x}{\|q\| \|x\|} = \tfrac12 \Big\| \tfrac{q}{\|q\|} -
   \tfrac{x}{\|x\|} \Big\|^2 \tag{1} $$

**Euclidean search** in three steps. With $h(q, x) = \tfrac12\|x\|^2 - q^\top x = \tfrac12 (d^2 - \|q\|^2)$:

1. *Screen.* $h$ in float32, one matrix product per block of points, reduced at once to its minimum over groups of
   points. The k nearest points lie in the k groups with the smallest minima, so a few groups more are kept.
2. *Refine.* Exact distances, from differences, to the points of those groups; the k smallest are the answer.
3. *Certify.* A point in a group left out has an $h$ of at least the largest kept minimum, minus the rounding error of
   the product, $\varepsilon = (D + 4) (u (\|q\| + \|x\|)^2 + m)$, with u the unit roundoff and m the smallest normal
   number. A query for which

$$ \tfrac12 (d_k^2 - \|q\|^2) < \max_{\text{kept}} h - \varepsilon \tag{2} $$

   does not hold (ties at the edge, data without spread) is searched again by differences alone.

The other metrics are always searched by differences; cosine is euclidean on normalised rows.

Shapes: I samples, Q queries of a block, D features, N padded samples, C samples of a block, M groups kept.
"""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from .arrays import ALIGNMENT, Array, bucket, is_on_device, pad, precision

CHUNK = 4096  # points per step of a scan
SCREEN_CHUNK = 1024  # points per matrix product of the screen
SCREEN_ABOVE = 2048  # samples from which on the screen pays
EXTRA_GROUPS = 3  # groups kept beyond k, so that eq. 2 holds with room


class Nearest(NamedTuple):
    """The nearest points of every query in order, the lower index first among equals.

    ``distances`` [Q, count] are $d^p$ of eq. 1, without the root. Both are numpy arrays in the results of
    :class:`Index`.
    """

    distances: Array
    indices: Array


Carried: TypeAlias = tuple[jax.Array, ...]  # what a loop or a map takes


def _smallest(distance_QC: jax.Array, index_QC: jax.Array, count: int) -> Nearest:
    """Return the ``count`` smallest distances of each row with their indices."""
    if count > 16:
        ordered = jax.lax.sort((distance_QC, index_QC), dimension=1, num_keys=2)
        return Nearest(ordered[0][:, :count], ordered[1][:, :count])
    last = jnp.iinfo(index_QC.dtype).max
    distances, indices = [], []
    # On a CPU XLA's top_k is slow for float64, and argmin is not vectorised. Taking the minimum k times is faster.
    for _ in range(count):
        low_Q1 = distance_QC.min(1, keepdims=True)
        found_Q1 = jnp.where(distance_QC == low_Q1, index_QC, last).min(1, keepdims=True)
        distance_QC = jnp.where(index_QC == found_Q1, jnp.inf, distance_QC)
        index_QC = jnp.where(index_QC == found_Q1, last, index_QC)
        distances.append(low_Q1)
        indices.append(found_Q1)
    return Nearest(jnp.concatenate(distances, 1), jnp.concatenate(indices, 1))


def _power(difference: jax.Array, p: float) -> jax.Array:
    """Return $|x|^p$, by multiplication where that is possible; for p = inf return $|x|$."""
    absolute = jnp.abs(difference)
    return absolute if p in (1, np.inf) else difference * difference if p == 2 else absolute**p


@partial(jax.jit, static_argnames=("count", "p"))
def search_by_differences(
    queries_QD: Array,
    points_ID: Array,
    count: int,
    p: float = 2.0,
    weight_D: Array | None = None,
    valid: int | jax.Array | None = None,
) -> Nearest:
    """Return (distances^p, indices) [Q, count] of the nearest of points[:valid] under the metric p of eq. 1, in order.

    p = inf is the Chebyshev metric, for which the distance itself is returned. weight_D are the $w_j$ of eq. 1. The
    points are taken in blocks and the features one at a time.
    """
    queries_QD, points_ID = jnp.asarray(queries_QD), jnp.asarray(points_ID)
    Q, D = queries_QD.shape
    I = points_ID.shape[0]
    valid = I if valid is None else valid
    C = min(max(CHUNK, count), I)
    blocks = -(-I // C)
    points_DN = jnp.pad(points_ID, ((0, blocks * C - I), (0, 0))).T

    def distances(begin: jax.Array) -> jax.Array:
        def add(d: jax.Array, total_QC: jax.Array) -> jax.Array:
            x_1C = jax.lax.dynamic_slice(points_DN, (d, begin), (1, C))
            term_QC = _power(jax.lax.dynamic_slice_in_dim(queries_QD, d, 1, axis=1) - x_1C, p)
            if weight_D is not None:
                term_QC = term_QC * weight_D[d]
            return jnp.maximum(total_QC, term_QC) if p == np.inf else total_QC + term_QC

        return jax.lax.fori_loop(jnp.int32(0), jnp.int32(D), add, jnp.zeros((Q, C), queries_QD.dtype))

    def step(best: Nearest, block: jax.Array) -> tuple[Nearest, None]:
        index_C = block * C + jnp.arange(C, dtype=jnp.int32)
        distance_QC = jnp.where(index_C < valid, distances(block * C), jnp.inf)
        index_QC = jnp.broadcast_to(index_C, (Q, C))
        both = (jnp.concatenate([a, b], 1) for a, b in zip(best, (distance_QC, index_QC)))
        return _smallest(*both, count), None

    # Each placeholder needs an index of its own, because _smallest removes what it found by its index.
    empty = jnp.broadcast_to(blocks * C + jnp.arange(count, dtype=jnp.int32), (Q, count))
    begin = Nearest(jnp.full((Q, count), jnp.inf, queries_QD.dtype), empty)
    return jax.lax.scan(step, begin, jnp.arange(blocks, dtype=jnp.int32))[0]


@partial(jax.jit, static_argnames=("group", "keep", "chunk"))
def _screen(
    queries_QD: jax.Array, points_ND: jax.Array, half_N: jax.Array, group: int, keep: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Return (the ``keep`` groups with the smallest minima of h [Q, M], the largest of those minima [Q])."""
    Q, N = queries_QD.shape[0], points_ND.shape[0]

    def minima(points_CD: jax.Array, half_C: jax.Array) -> jax.Array:
        product = jnp.matmul(queries_QD, points_CD.T, precision="highest")
        return (half_C - product).reshape(Q, -1, group).min(-1)

    if chunk >= N:
        low = minima(points_ND, half_N)
    else:
        chunked = points_ND.reshape(N // chunk, chunk, -1), half_N.reshape(N // chunk, chunk)
        low = jax.lax.map(lambda c: minima(*c), chunked).transpose(1, 0, 2).reshape(Q, -1)
    negative_QM, group_QM = jax.lax.top_k(-low, keep)
    return group_QM, -negative_QM.min(-1)  # a slice here would hide the top_k from XLA's fast version


@partial(jax.jit, static_argnames=("group", "count"))
def _refine(
    queries_QD: jax.Array, points_ID: jax.Array, valid: jax.Array, group_QM: jax.Array, group: int, count: int
) -> Nearest:
    """Return the ``count`` nearest points of the kept groups, by squared distances from differences."""
    I = points_ID.shape[0]

    def some(part: Carried) -> Nearest:
        q_SD, group_SM = part
        index_SC = (group_SM[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)).reshape(q_SD.shape[0], -1)
        difference = points_ID[jnp.minimum(index_SC, I - 1)] - q_SD[:, None]
        distance_SC = jnp.where(index_SC < valid, (difference * difference).sum(-1), jnp.inf)
        return _smallest(distance_SC, index_SC, count)

    Q, S = queries_QD.shape[0], 32  # few queries at a time: their candidates stay in the cache
    parts = queries_QD.reshape(Q // S, S, -1), group_QM.reshape(Q // S, S, -1)
    distances, indices = jax.lax.map(some, parts)
    return Nearest(distances.reshape(Q, -1), indices.reshape(Q, -1))


def _aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return a zeroed array that XLA can use in place."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)


class Index:
    """Points prepared for :meth:`search`. For many points and the euclidean metric, it holds a centred float32 copy."""

    def __init__(self, points: Array, p: float = 2.0, weight: np.ndarray | None = None) -> None:
        self.points, self.p, self.weight = points, p, weight
        self.on_device = is_on_device(points)
        I, D = points.shape
        self.screened = p == 2 and weight is None and I > SCREEN_ABOVE
        if not self.screened:
            if not self.on_device:
                self.points = pad(np.asarray(points), bucket(I, 64), bucket(D))
            return
        mean = points.mean(0)
        self.mean = mean
        if self.on_device:
            self.centered = (points - mean).astype(jnp.float32)
            self.half = 0.5 * (self.centered**2).sum(1)
            self.longest = float(jnp.sqrt(2 * self.half.max()))
            return
        points = np.asarray(points)
        chunk = SCREEN_CHUNK
        N = -(-I // chunk) * chunk
        self.centered = _aligned((N, D), np.float32)
        np.subtract(points, mean, out=self.centered[:I], casting="same_kind")
        self.half = np.full(N, np.float32(np.finfo(np.float32).max), np.float32)
        self.half[:I] = 0.5 * np.einsum("id,id->i", self.centered[:I], self.centered[:I])
        self.longest = float(np.sqrt(2 * self.half[:I].max()))
        if not points.flags.c_contiguous or points.ctypes.data % ALIGNMENT:
            self.points = _aligned(points.shape, points.dtype)
            self.points[:] = points

    def search(self, queries: np.ndarray, count: int, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (distances, indices) [Q, count] of the nearest of the first ``num_points`` points, in order.

        Raises ValueError if such a distance overflows.
        """
        dtype = np.dtype(self.points.dtype)
        if count > num_points:
            raise ValueError(f"count={count} must not exceed the number of points, {num_points}: ask for fewer")
        with precision(dtype):
            search = self._search_screened if self.screened else self._search_differences
            distances, indices = search(queries.astype(dtype), count, num_points)
        distances, indices = np.asarray(distances), np.asarray(indices, np.int64)
        if self.p not in (1, np.inf):
            distances = np.sqrt(distances) if self.p == 2 else distances ** (1 / self.p)
        if not np.isfinite(distances).all():
            raise ValueError(
                f"distances to the nearest samples leave the range of {dtype}: scale the features, for example with "
                "StandardScaler"
            )
        return distances, indices

    def _search_differences(self, queries: np.ndarray, count: int, num_points: int) -> Nearest:
        D = self.points.shape[1]
        rows = 256 if len(queries) > 64 else 64
        weight = None if self.weight is None else pad(np.asarray(self.weight, queries.dtype), D)
        distances, indices = [], []
        # Counts are rounded up, so that nearby ones share a compiled program.
        kept = min(count if count <= 8 else bucket(count), self.points.shape[0])
        for begin in range(0, len(queries), rows):
            block = queries[begin : begin + rows]
            found = search_by_differences(
                pad(block, rows, D), self.points, kept, float(self.p), weight, np.int32(num_points)
            )
            distances.append(np.asarray(found.distances)[: len(block), :count])
            indices.append(np.asarray(found.indices)[: len(block), :count])
        return Nearest(np.concatenate(distances), np.concatenate(indices))

    def _search_screened(self, queries: np.ndarray, count: int, num_points: int) -> Nearest:
        D, N = self.points.shape[1], self.centered.shape[0]
        group = 1 if self.on_device else 32 if count <= 32 else 8
        keep = min(count + (16 if self.on_device else EXTRA_GROUPS), N // group)
        if keep * group > N // 2:
            return self._search_differences(queries, count, num_points)
        rows = 512 if len(queries) > 128 else 128
        put = (lambda v: v) if self.on_device else jax.device_put
        centered, half, points = put(self.centered), put(self.half), put(self.points)
        mean = np.asarray(self.mean)
        pending = []
        for begin in range(0, len(queries), rows):
            block = pad(queries[begin : begin + rows], rows, D)
            shifted = (block - mean).astype(np.float32)
            chunk = N if self.on_device else SCREEN_CHUNK
            groups, bound = _screen(shifted, centered, half, group=group, keep=keep, chunk=chunk)
            squared, index = _refine(block, points, np.int32(num_points), groups, group=group, count=count)
            pending.append((squared, index, bound, np.linalg.norm(shifted.astype(np.float64), axis=1)))
        squared, index, bound, norm = (
            np.concatenate([np.asarray(v) for v in vs])[: len(queries)] for vs in zip(*pending)
        )
        float32 = np.finfo(np.float32)
        error = (D + 4) * (float32.eps * (norm + self.longest) ** 2 + float32.tiny)
        uncertain = np.flatnonzero(~(0.5 * (squared[:, -1] - norm**2) < bound - error))  # eq. 2
        if len(uncertain):
            squared, index = np.array(squared), np.array(index)
            squared[uncertain], index[uncertain] = self._search_differences(queries[uncertain], count, num_points)
        return Nearest(squared, index)
