"""The nearest neighbours when the user gives the distances: ``metric="precomputed"``.

A row of a sparse matrix (a neighbours graph) holds the distances to some samples; the others are no neighbours.

Shapes: I samples, Q queries, K neighbours.
"""

from typing import TypeAlias

import jax
import numpy as np
from scipy import sparse

from .arrays import Array, Matrix, MatrixLike

Distances: TypeAlias = Array | sparse.csr_array  # the distances of every query, validated


def refuse_formats_without_zeros(X: MatrixLike) -> None:
    """Raise TypeError for sparse formats that may drop a stored zero, the distance between equal samples."""
    name = getattr(X, "format", None) if sparse.issparse(X) else None
    if name in ("dok", "bsr"):
        raise TypeError(
            f"Sparse matrix in {name.upper()} format is not supported due to its handling of explicit zeros: call "
            "X.tocsr() first"
        )


def checked(distances_QI: Matrix) -> Distances:
    """Return validated distances, sparse ones as CSR. Raises ValueError if one is negative."""
    if isinstance(distances_QI, (np.ndarray, jax.Array)):
        found, values = distances_QI, np.asarray(distances_QI)
    else:
        found = distances_QI.tocsr()
        values = found.data
    if values.size and values.min() < 0:
        raise ValueError(
            "Negative values in data passed to precomputed distance matrix. Distances must not be negative; if these "
            "are similarities, pass for example their maximum minus each."
        )
    return found


def nearest_of(distances_QI: Distances, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (distances [Q, count], indices [Q, count]) in order, the lower index first among equals.

    Raises ValueError if a sparse row holds fewer than ``count`` distances.
    """
    if isinstance(distances_QI, (np.ndarray, jax.Array)):
        dense_QI = np.asarray(distances_QI)
        indices = np.argsort(dense_QI, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(dense_QI, indices, axis=1), indices
    graph = distances_QI.sorted_indices()
    lengths = np.diff(graph.indptr)
    if lengths.min() < count:
        raise ValueError(
            f"{count} neighbors are required for some samples, but the smallest number of neighbors in the precomputed "
            f"graph is {lengths.min()}. Ask for fewer, or compute the graph with more."
        )
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((graph.data, rows))  # stable: by row, then by distance, then by index
    picked_QK = order[graph.indptr[:-1, None] + np.arange(count)]
    return graph.data[picked_QK], graph.indices[picked_QK].astype(np.int64)
