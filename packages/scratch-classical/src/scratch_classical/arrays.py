r"""What every estimator uses: precision, padded shapes, validation, and passes over the rows of a design matrix.

**Precision.** Most estimators compute in the dtype of their input; RidgeCV and support vector machines compute in
float64. float64 needs JAX's x64 mode, which is on only inside :func:`precision`, so importing this package changes
nothing for other code.

**Padded shapes.** XLA compiles once per shape. :func:`bucket` rounds sizes up (at most sixteen steps per octave), and
the added rows have weight zero, so nearby sizes share one compiled program.

**Rows without a copy.** XLA wants 64-byte alignment, numpy gives 16, and copying 80 MB takes as long as a ridge
fit. :class:`Rows` therefore uses the flat buffer in place from an aligned address on, and cuts blocks of rows out of
it at a small offset. The few rows before and after are copied to ``tail``, which is padded. A sum over samples is then

$$ \sum_i f(x_i) = \sum_{b} f(X_b) + f(X_\text{tail}) \tag{1} $$

which is one scan over blocks that fit the cache. On an accelerator, and for a sharded array, all rows are in ``tail``.

Shapes: I samples, R rows of a block, D features.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import _check_sample_weight, validate_data


class SparseMatrix(Protocol):
    """What this package uses of scipy's sparse arrays and matrices of every format."""

    shape: tuple[int, int]
    dtype: np.dtype

    def tocsr(self) -> sparse.csr_array: ...

    def toarray(self) -> np.ndarray: ...

    def __matmul__(self, other: np.ndarray) -> np.ndarray: ...


Array: TypeAlias = np.ndarray | jax.Array
Matrix: TypeAlias = Array | SparseMatrix  # an X that was validated
MatrixLike: TypeAlias = ArrayLike | SparseMatrix  # an X as users pass it; numpy's ArrayLike includes data frames
CrossValidator: TypeAlias = int | BaseCrossValidator | Iterable | None  # the ``cv`` that scikit-learn's check_cv takes
Tree = TypeVar("Tree")  # an array, or a pytree of arrays

ALIGNMENT = 64  # bytes, what XLA asks of a buffer that it may use in place
COPY_BELOW = 2**22  # bytes; smaller matrices are copied and padded, so that they share compiled programs


def precision(dtype: DTypeLike) -> AbstractContextManager:
    """Return a context in which JAX computes in ``dtype``: x64 on for float64, off for float32."""
    return jax.enable_x64(np.dtype(dtype) == np.float64)


def use_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keep compiled programs in ``folder``, so that later processes need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def bucket(size: int, smallest: int = 8) -> int:
    """Round ``size`` up: powers of two up to 1024, then sixteen steps per octave."""
    size = max(size, smallest)
    octave = 1 << (size - 1).bit_length()
    step = octave if octave <= 1024 else octave // 32
    return -(-size // step) * step


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["flat", "start", "tail"],
    meta_fields=["num_blocks", "block_rows"],
)
@dataclass(frozen=True)
class Rows:
    """A design matrix as ``num_blocks`` blocks of a buffer that is used in place, and a dense, padded tail.

    ``flat`` is the buffer (None without blocks) and ``start`` the index in it at which the first block begins.
    """

    flat: jax.Array | None
    start: jax.Array | np.int32
    tail: jax.Array
    num_blocks: int = field(default=0)
    block_rows: int = field(default=0)

    @property
    def num_main(self) -> int:
        """The number of rows in the blocks."""
        return self.num_blocks * self.block_rows

    def block(self, index: jax.Array) -> jax.Array:
        """Return block ``index`` as a dense [R, D] array."""
        if self.flat is None:
            raise ValueError("these rows have no blocks: all of them are in the tail")
        D = self.tail.shape[1]
        begin = self.start + index * (self.block_rows * D)
        return jax.lax.dynamic_slice(self.flat, (begin,), (self.block_rows * D,)).reshape(self.block_rows, D)

    def sum(self, function: Callable[..., Tree], *per_row: jax.Array) -> Tree:
        """Sum ``function(X_block, *rows_of_each)`` over all blocks and the tail (eq. 1)."""
        total = function(self.tail, *(v[self.num_main :] for v in per_row))
        if not self.num_blocks:
            return total

        def step(carry: Tree, index: jax.Array) -> tuple[Tree, None]:
            rows = (jax.lax.dynamic_slice_in_dim(v, index * self.block_rows, self.block_rows) for v in per_row)
            return jax.tree.map(jnp.add, carry, function(self.block(index), *rows)), None

        return jax.lax.scan(step, total, jnp.arange(self.num_blocks, dtype=jnp.int32))[0]

    def each(self, function: Callable[..., Tree], *per_row: jax.Array) -> Tree:
        """Return ``function(X_block, *rows_of_each)`` for every row, in the order of :meth:`Layout.arrange`."""
        last = function(self.tail, *(v[self.num_main :] for v in per_row))
        if not self.num_blocks:
            return last

        def one(index: jax.Array) -> Tree:
            rows = (jax.lax.dynamic_slice_in_dim(v, index * self.block_rows, self.block_rows) for v in per_row)
            return function(self.block(index), *rows)

        blocks = jax.lax.map(one, jnp.arange(self.num_blocks, dtype=jnp.int32))
        return jax.tree.map(lambda b, t: jnp.concatenate([b.reshape(-1, *b.shape[2:]), t]), blocks, last)


def as_rows(X: jax.Array) -> Rows:
    """Wrap a dense array: no blocks, every row in the tail."""
    return Rows(None, np.int32(0), X)


@dataclass(frozen=True)
class Layout:
    """Where the samples of an array are in :class:`Rows`: those in blocks first, then the tail, then padding.

    ``head`` is the number of samples before the first block; they are the first rows of the tail.
    """

    rows: Rows
    num_samples: int
    num_features: int
    head: int = 0

    @property
    def num_padded(self) -> int:
        """The number of rows, padding included."""
        return self.rows.num_main + self.rows.tail.shape[0]

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Reorder per-sample values to match the rows, and pad with zeros (for weights: a weight of zero)."""
        main, head = self.rows.num_main, self.head
        out = np.zeros((self.num_padded, *values.shape[1:]), values.dtype)
        out[:main] = values[head : head + main]
        out[main : main + head] = values[:head]
        out[main + head : self.num_samples] = values[head + main :]
        return out

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Undo :meth:`arrange`."""
        main, head = self.rows.num_main, self.head
        return np.concatenate([values[main : main + head], values[:main], values[main + head : self.num_samples]])


def is_on_device(X: object) -> bool:
    """Return whether X is a JAX array that must stay where it is: sharded, or on an accelerator."""
    return isinstance(X, jax.Array) and (len(X.devices()) > 1 or next(iter(X.devices())).platform != "cpu")


def lay_out(X: Array, block_rows: int | None = None, whole: bool = False) -> Layout:
    """Return the rows of X: in place where that is possible and worth it, else (or if ``whole``) as a padded copy.

    Call it inside :func:`precision`. Outside, JAX would round float64 to float32.
    """
    I, D = X.shape
    if isinstance(X, jax.Array) and is_on_device(X):
        return Layout(as_rows(X), I, D)
    X = np.asarray(X)
    head = -(-ALIGNMENT // (X.itemsize * D))
    if block_rows is None:
        block_rows = 256  # such a block stays in the second-level cache
    step = max(block_rows, (1 << (I.bit_length() - 1)) // 32 // block_rows * block_rows)
    main = (I - 2 * head) // step * step
    usable = X.flags.c_contiguous and X.flags.aligned and jax.default_backend() == "cpu"
    if whole or main <= 0 or X.nbytes < COPY_BELOW or not usable:
        tail = np.zeros((bucket(I, 64), bucket(D)), X.dtype)
        tail[:I, :D] = X
        return Layout(as_rows(jax.device_put(tail)), I, D)
    offset = (X.ctypes.data + head * D * X.itemsize) % ALIGNMENT // X.itemsize
    begin = head * D - offset
    flat = X.reshape(-1)[begin : begin + main * D + ALIGNMENT // X.itemsize]
    tail = np.zeros((step + 2 * head, D), X.dtype)
    tail[:head] = X[:head]
    tail[head : I - main] = X[head + main :]
    rows = Rows(jax.device_put(flat), np.int32(offset), jax.device_put(tail), main // block_rows, block_rows)
    return Layout(rows, I, D, head)


def as_floating(X: jax.typing.ArrayLike) -> jax.Array:
    """Return X as a JAX array: floating dtypes stay, others become JAX's default float."""
    X = jnp.asarray(X)
    return X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(jnp.result_type(float))


def pad(array: np.ndarray, *sizes: int) -> np.ndarray:
    """Pad with zeros at the end of each axis up to ``sizes``."""
    if array.shape == sizes:
        return array
    out = np.zeros(sizes, array.dtype)
    out[tuple(slice(n) for n in array.shape)] = array
    return out


def dense(X: Matrix) -> Array:
    """Return X, copied to a dense array if it is sparse.

    Raises MemoryError if that copy would need more than half of this machine's memory.
    """
    if isinstance(X, (np.ndarray, jax.Array)):
        return X
    needed = X.shape[0] * X.shape[1] * X.dtype.itemsize
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory / 2:
            raise MemoryError(
                f"X is sparse, {X.shape[0]} x {X.shape[1]}, and would be copied to a dense array of "
                f"{needed / 2**30:.1f} GiB; this machine has {memory / 2**30:.1f} GiB. Fit fewer samples, or fewer "
                "features (sklearn.decomposition.TruncatedSVD takes sparse input)."
            )
    return X.toarray()


_ACCEPTED = {"accept_sparse": True, "dtype": (np.float64, np.float32)}


def validated_samples(
    estimator: BaseEstimator, X: MatrixLike, y: ArrayLike | None, **options: bool
) -> tuple[Matrix, np.ndarray]:
    """Validate the samples of a fit as scikit-learn does; return X in float32 or float64, and y.

    A JAX array on several devices or an accelerator stays there. ``options`` are those of scikit-learn's check_X_y.
    """
    if not (isinstance(X, jax.Array) and is_on_device(X)):
        return validate_data(estimator, X, y, **_ACCEPTED, **options)
    X = _validated_on_device(estimator, X, reset=True)
    y = check_array(np.asarray(y), ensure_2d=False, dtype=None, input_name="y")
    check_consistent_length(X, y)
    return X, y


def validated_queries(estimator: BaseEstimator, X: MatrixLike) -> Matrix:
    """Validate new samples for a fitted estimator, as :func:`validated_samples` does."""
    if isinstance(X, jax.Array) and is_on_device(X):
        return _validated_on_device(estimator, X, reset=False)
    return validate_data(estimator, X, reset=False, **_ACCEPTED)


def _validated_on_device(estimator: BaseEstimator, X: jax.Array, reset: bool) -> jax.Array:
    if X.ndim != 2:
        raise ValueError(f"Expected 2D array, got {X.ndim}D array instead. Reshape X to [samples, features].")
    if X.dtype not in (jnp.float32, jnp.float64):
        X = X.astype(jnp.float32)
    validate_data(estimator, X, skip_check_array=True, reset=reset)
    return X


def validated_weight(sample_weight: ArrayLike | None, X: Matrix, copy: bool = False) -> np.ndarray | None:
    """Return ``sample_weight`` [I] in the dtype of X, or None if it is None. Raises ValueError if one is negative."""
    if sample_weight is None:
        return None
    like = np.empty((X.shape[0], 1), X.dtype)
    return _check_sample_weight(sample_weight, like, dtype=X.dtype, copy=copy, ensure_non_negative=True)


def require_finite(X: Matrix, estimator_name: str) -> None:
    """Raise scikit-learn's error if X holds NaN or infinity."""
    X = X if sparse.issparse(X) else np.asarray(X)
    check_array(X, accept_sparse=True, estimator=estimator_name, input_name="X")


def refuse_non_finite(X: Matrix, estimator_name: str) -> NoReturn:
    """Raise ValueError because a sum over X, or a coefficient, is not finite."""
    require_finite(X, estimator_name)
    raise ValueError(
        f"The iterations of {estimator_name} resulted in non-finite parameter values: X and y are finite, but their "
        f"squares and products leave the range of {X.dtype}. Scale the features and y, for example with StandardScaler."
    )
