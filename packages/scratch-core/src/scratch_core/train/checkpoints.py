r"""Checkpoints of a run: written by Orbax in the background, the newest few kept, every array checked when read.

Orbax writes a step atomically (a kill during a save leaves the steps before it intact), but it does not notice a
flipped bit when it loads. So each step's metadata holds a digest of every array, computed from the values before they
are written. `restore` compares the digests, names the damaged array, and goes back to the newest intact step.

The digest of an array with elements $x_i$ read as unsigned integers is

$$ d = \sum_i \mathrm{mix}(x_i \oplus \mathrm{mix}(i)) \bmod 2^{32} \tag{1} $$

where mix is the 32-bit finaliser of MurmurHash3 (Appleby 2011), a bijection: a change of one element always changes
$d$. A sum does not depend on the order, so the digest is the same on any mesh.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scratch_core.errors import CheckpointError


class Restored(NamedTuple):
    """What `Checkpoints.restore` found: the step, its state, and a line for each newer step that was damaged."""

    step: int
    state: Any
    damaged: list[str]


class Checkpoints:
    """The checkpoints of one run, in ``folder``; the newest ``keep`` are kept.

    A state is any pytree of jax arrays, sharded or not; typed PRNG keys are stored as their data.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        from orbax.checkpoint import v1 as ocp  # 2 s of import: only when there is something to save or restore

        self.folder = Path(folder).absolute()
        self._orbax: Any = ocp.training.Checkpointer(
            str(self.folder),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # ty: ignore[invalid-argument-type]
            save_decision_policy=_Always(),
            cleanup_tmp_directories=True,
        )
        self._saving: tuple[int, Any] | None = None

    def steps(self) -> list[int]:
        """Return the steps that are there, oldest first."""
        return sorted(found.step for found in self._orbax.checkpoints)

    def save(self, step: int, state: Any) -> None:
        """Start to write ``state``; returns as soon as its values are copied, so that it may be donated.

        A save still under way is waited for first: Orbax would drop the second one silently. A damaged step of the
        same number is replaced. Raises CheckpointError if the save before this one failed.
        """
        self.wait()
        arrays = jax.tree.map(_to_array, state)
        about = {"arrays": {name: _describe(x) | {"digest": int(d)} for name, x, d in _digests(arrays)}}
        response = self._orbax.save_checkpointables_async(
            step, {"state": arrays}, custom_metadata=about, overwrite=step in self.steps()
        )
        self._saving = (step, response)

    def wait(self) -> None:
        """Return when the save under way is on disk. Raises CheckpointError if it is not."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        try:
            saved = response is not None and response.result()
        except Exception as error:  # of the file system or of Orbax
            raise CheckpointError(f"{self.folder}: step {step} could not be saved: {error}") from error
        if not saved:
            raise CheckpointError(f"{self.folder}: step {step} was not saved, and Orbax gave no reason")

    def restore(self, like: Any) -> Restored | None:
        """Return the newest intact step in the structure, dtypes and shardings of ``like``; None if there is no step.

        Raises CheckpointError if every step is damaged, or if the newest readable one is of another structure.
        """
        self.wait()
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return Restored(step, self._read(step, like), damaged)
            except _Damaged as error:
                damaged.append(f"{self.folder}: step {step} is damaged: {error}")
        if damaged:
            raise CheckpointError("no step is intact: " + "; ".join(damaged))
        return None

    def close(self) -> None:
        """Wait for the save under way and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _read(self, step: int, like: Any) -> Any:
        arrays = jax.tree.map(lambda x: _abstract(x), like)
        try:
            about = self._orbax.checkpointables_metadata(step).custom_metadata["arrays"]
            expected = {name: about[name]["digest"] for name in about}
            found = {name: {k: about[name][k] for k in ("shape", "dtype")} for name in about}
        except Exception as error:
            raise _Damaged(f"its metadata cannot be read ({_reason(error)})") from error
        wanted = {name: _describe(x) for name, x in _named(arrays)}
        if wanted != found:
            differing = [n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)]
            name = differing[0]
            raise CheckpointError(
                f"{self.folder}: step {step} is of another model or optimizer: {len(differing)} arrays differ, first "
                f"{name}: wanted {wanted.get(name)}, found {found.get(name)}"
            )
        try:
            arrays = self._orbax.load_checkpointables(step, {"state": arrays})["state"]
        except Exception as error:
            raise _Damaged(f"it cannot be read ({_reason(error)})") from error
        if wrong := [name for name, _, digest in _digests(arrays) if int(digest) != expected[name]]:
            raise _Damaged(f"the digest of {', '.join(wrong)} differs")
        return jax.tree.map(_to_key, arrays, like)


class _Damaged(Exception):
    """A step that cannot be used, with the reason."""


class _Always:
    """Orbax's policy of when to save: whenever it is asked to."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def digest(x: jax.Array) -> jax.Array:
    """Return the uint32 digest [] of ``x`` (any shape; bool, integer or float dtype), eq. 1."""
    return _digest(x)


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # 8 bytes: one more axis, of length 2
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):  # of the whole array, wherever its pieces live
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return _mix(bits ^ _mix(index)).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _digests(arrays: Any) -> list[tuple[str, jax.Array, np.ndarray]]:
    # One after another: independent collectives in flight at once can block each other on simulated devices.
    return [(name, x, jax.device_get(_digest(x))) for name, x in _named(arrays)]


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _describe(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _to_array(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if _is_key(x) else x


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    raw = _to_array(x)
    return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=raw.sharding)


def _to_key(raw: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(raw, impl=jax.random.key_impl(like)) if _is_key(like) else raw


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong; Orbax hides it in the cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
