r"""What the families share: precision, padded shapes, and passes over the rows of a design matrix.

**Precision.** An estimator computes in the dtype of its input. float64 needs JAX's x64 mode, which is on only
inside :func:`precision`, so that importing this package changes nothing for anyone else.

**Padded shapes.** XLA compiles once per shape. :func:`bucket` rounds sizes up (sixteen steps per octave at most),
and the rows added carry weight zero, so that nearby sizes share one compile.

**Rows without a copy.** XLA wants 64-byte alignment, numpy gives 16, and copying 80 MB costs as much as a ridge
fit. :class:`Rows` therefore aliases the flat buffer from an aligned address on, and cuts blocks of rows out of it
at a small offset; the few rows before and after lie in ``tail``, padded. A sum over samples is then

$$ \sum_i f(x_i) = \sum_{b} f(X_b) + f(X_\text{tail}) \tag{1} $$

one scan over blocks that fit the cache. On an accelerator, and for a sharded array, everything is in ``tail``.

Shapes: I samples, R rows of a block, D features.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

ALIGNMENT = 64  # bytes, what XLA asks of a buffer that it may use in place
COPY_BELOW = 2**22  # bytes; smaller matrices are copied and padded, so that they share compiles


def precision(dtype: Any) -> AbstractContextManager:
    """Return a context in which JAX computes in ``dtype``: x64 on for float64, off for float32."""
    return jax.enable_x64(np.dtype(dtype) == np.float64)


def use_compilation_cache(folder: str) -> None:
    """Keep compiled programs in ``folder``, so that the next process need not compile them again."""
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
    """A design matrix as ``num_blocks`` blocks cut out of an aliased buffer, and a dense, padded tail."""

    flat: Any
    start: Any
    tail: Any
    num_blocks: int = field(default=0)
    block_rows: int = field(default=0)

    @property
    def num_main(self) -> int:
        return self.num_blocks * self.block_rows

    def block(self, index: Any) -> jax.Array:
        """Return block ``index`` as a dense [R, D] array."""
        D = self.tail.shape[1]
        begin = self.start + index * (self.block_rows * D)
        return jax.lax.dynamic_slice(self.flat, (begin,), (self.block_rows * D,)).reshape(self.block_rows, D)

    def sum(self, function: Callable[..., Any], *per_row: Any) -> Any:
        """Sum ``function(X_block, *rows_of_each)`` over all blocks and the tail (eq. 1)."""
        total = function(self.tail, *(v[self.num_main :] for v in per_row))
        if not self.num_blocks:
            return total

        def step(carry: Any, index: Any) -> tuple[Any, None]:
            rows = (jax.lax.dynamic_slice_in_dim(v, index * self.block_rows, self.block_rows) for v in per_row)
            return jax.tree.map(jnp.add, carry, function(self.block(index), *rows)), None

        return jax.lax.scan(step, total, jnp.arange(self.num_blocks, dtype=jnp.int32))[0]

    def each(self, function: Callable[..., Any], *per_row: Any) -> Any:
        """Return ``function(X_block, *rows_of_each)`` for every row, in the order of :func:`arrange`."""
        last = function(self.tail, *(v[self.num_main :] for v in per_row))
        if not self.num_blocks:
            return last

        def one(index: Any) -> Any:
            rows = (jax.lax.dynamic_slice_in_dim(v, index * self.block_rows, self.block_rows) for v in per_row)
            return function(self.block(index), *rows)

        blocks = jax.lax.map(one, jnp.arange(self.num_blocks, dtype=jnp.int32))
        return jax.tree.map(lambda b, t: jnp.concatenate([b.reshape(-1, *b.shape[2:]), t]), blocks, last)


def as_rows(X: Any) -> Rows:
    """Wrap a dense array: no blocks, everything in the tail."""
    return Rows(None, 0, X)


@dataclass(frozen=True)
class Layout:
    """How samples of a numpy array lie in a :class:`Rows`: aliased rows first, then the tail, then padding."""

    rows: Rows
    num_samples: int
    num_features: int
    head: int = 0

    @property
    def num_padded(self) -> int:
        return self.rows.num_main + self.rows.tail.shape[0]

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Reorder per-sample values as the rows lie, padded with zeros (also a weight of zero)."""
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


def is_on_device(X: Any) -> bool:
    """Tell whether X is a JAX array that must stay where it is: sharded, or on an accelerator."""
    return isinstance(X, jax.Array) and (len(X.devices()) > 1 or next(iter(X.devices())).platform != "cpu")


def lay_out(X: Any, block_rows: int | None = None, whole: bool = False) -> Layout:
    """Return the rows of X: aliased where that is possible and worth it, else (or if ``whole``) a padded copy.

    Call it inside :func:`precision`: outside, float64 would be cut to float32.
    """
    I, D = X.shape
    if is_on_device(X):
        return Layout(as_rows(X), I, D)
    head = -(-ALIGNMENT // (X.itemsize * D))
    if block_rows is None:
        block_rows = 256  # such a block stays in the second-level cache
    step = max(block_rows, (1 << (I.bit_length() - 1)) // 32 // block_rows * block_rows)
    main = (I - 2 * head) // step * step
    usable = X.flags.c_contiguous and X.flags.aligned and jax.default_backend() == "cpu"
    if whole or main <= 0 or X.nbytes < COPY_BELOW or not usable:
        tail = np.zeros((bucket(I, 64), bucket(D)), X.dtype)
        tail[:I, :D] = X
        return Layout(Rows(None, np.int32(0), tail), I, D)
    offset = (X.ctypes.data + head * D * X.itemsize) % ALIGNMENT // X.itemsize
    begin = head * D - offset
    flat = X.reshape(-1)[begin : begin + main * D + ALIGNMENT // X.itemsize]
    tail = np.zeros((step + 2 * head, D), X.dtype)
    tail[:head] = X[:head]
    tail[head : I - main] = X[head + main :]
    return Layout(Rows(jax.device_put(flat), np.int32(offset), tail, main // block_rows, block_rows), I, D, head)


def pad(array: np.ndarray, *sizes: int) -> np.ndarray:
    """Pad with zeros at the end of each axis up to ``sizes``."""
    if array.shape == sizes:
        return array
    out = np.zeros(sizes, array.dtype)
    out[tuple(slice(n) for n in array.shape)] = array
    return out


def dense(X: Any) -> Any:
    """Return X, copied if it is sparse, unless the copy would fill most of this machine's memory."""
    if not sparse.issparse(X):
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


def validated(
    estimator: Any, X: Any, y: Any = None, *, reset: bool = True, keep_sparse: bool = False, **options: Any
) -> Any:
    """Validate as scikit-learn does, and return X (float32 or float64) and, when y is given, y.

    Sparse input is made dense unless ``keep_sparse``. A JAX array on several devices or an accelerator stays there.
    """
    ready = (lambda X: X) if keep_sparse else dense
    with_y = options.pop("need_y", False) or y is not None
    if is_on_device(X):
        if X.ndim != 2:
            raise ValueError(f"Expected 2D array, got {X.ndim}D array instead.")
        if X.dtype not in (jnp.float32, jnp.float64):
            X = X.astype(jnp.float32)
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        if not with_y:
            return X
        y = check_array(np.asarray(y), ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(X, y)
        return X, y
    options = {"accept_sparse": True, "dtype": (np.float64, np.float32), **options}
    if not with_y:
        X = validate_data(estimator, X, reset=reset, **options)
        return ready(X)
    X, y = validate_data(estimator, X, y, reset=reset, **options)
    return ready(X), y


def refuse_non_finite(estimator: Any, X: Any) -> None:
    """Raise scikit-learn's error if X holds NaN or infinity; called when a sum over X came out non-finite."""
    X = X if sparse.issparse(X) else np.asarray(X)
    check_array(X, accept_sparse=True, estimator=estimator, input_name="X")
