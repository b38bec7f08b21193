r"""Checkpoints of a run: Orbax writes them in the background, keeps the newest few, and every read is checked.

Orbax writes a step atomically (a kill during a save leaves the earlier steps intact), but it does not notice a flipped
bit when it loads. So each step's metadata holds a digest of every array, computed before the array is written, and a
digest of the metadata itself. `restore` compares the digests, names the damaged array, and goes back to the newest
intact step.

The digest of an array with elements $x_i$ read as unsigned integers is

$$ d = \sum_i \mathrm{mix}(x_i \oplus \mathrm{mix}(i)) \bmod 2^{32} \tag{1} $$

where mix is the 32-bit finaliser of MurmurHash3 (Appleby 2011), a bijection: a change of one element always changes
$d$. A sum does not depend on the order, so the digest is the same on any mesh.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scratch_core.errors import CheckpointError
from scratch_core.folders import why_not_written


class Restored(NamedTuple):
    """The result of `Checkpoints.restore`: the step, its state, and a line for each newer step that was damaged."""

    step: int
    state: Any
    damaged: list[str]


class Checkpoints:
    """The checkpoints of one run, in ``folder``. Keeps the newest ``keep`` and the ``keep_best`` with the lowest score.

    A state is any pytree of jax arrays, sharded or not; typed PRNG keys are stored as their data. Only one process at a
    time may write to the folder; the run's `FolderLock` ensures it. Raises CheckpointError if ``folder`` is unusable.
    """

    def __init__(self, folder: str | Path, keep: int = 3, keep_best: int = 0):
        from orbax.checkpoint import v1 as ocp  # takes 2 s to import, so only when it is needed

        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is a file, but must be the folder of the checkpoints: move it away")
        options: dict[str, Any] = {
            "preservation_policy": _Preserve(keep, keep_best),
            "save_decision_policy": _Always(),
            "cleanup_tmp_directories": True,
        }
        self._set_aside: list[str] = []
        _quieten()
        try:
            try:
                self._orbax: Any = ocp.training.Checkpointer(str(self.folder), **options)
            except ValueError:  # one step is damaged, and then Orbax opens none
                self._set_aside_damaged(ocp)
                self._orbax = ocp.training.Checkpointer(str(self.folder), **options)
        except Exception as error:  # from the file system or from Orbax
            raise CheckpointError(
                f"{self.folder} cannot be opened: {why_not_written(error, self.folder, 0)}"
            ) from error
        self._saving: tuple[int, int, Any] | None = None  # step, bytes, Orbax's answer

    def steps(self) -> list[int]:
        """Return the saved steps, oldest first."""
        return sorted(found.step for found in self._orbax.checkpoints)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Start to write ``state``. Returns when its values are copied, so that ``state`` may then be donated.

        ``score`` is for ``keep_best``, such as a held-out loss: lower is better. Waits for an unfinished save first,
        because Orbax would silently drop the second one. Replaces a damaged step of the same number. Raises
        CheckpointError if the previous save failed.
        """
        self.wait()
        arrays = jax.tree.map(_to_array, state)
        about = {name: _describe(x) | {"digest": int(d)} for name, x, d in _digests(arrays)}
        size = sum(x.nbytes for x in jax.tree.leaves(arrays))
        try:
            response = self._orbax.save_checkpointables_async(
                step,
                {"state": arrays},
                metrics=None if score is None or not math.isfinite(score) else {"score": float(score)},
                custom_metadata={"arrays": about, "sha256": _sha256(about)},
                overwrite=step in self.steps(),
            )
        except Exception as error:
            raise self._not_saved(step, size, error) from error
        self._saving = (step, size, response)

    def wait(self) -> None:
        """Wait until the current save is on disk. Raises CheckpointError if it failed."""
        if self._saving is None:
            return
        (step, size, response), self._saving = self._saving, None
        try:
            saved = response is not None and response.result()
        except Exception as error:
            raise self._not_saved(step, size, error) from error
        if not saved:
            raise CheckpointError(f"{self.folder}: step {step} was not saved, and Orbax gave no reason")

    def _not_saved(self, step: int, size: int, error: Exception) -> CheckpointError:
        """Remove the partial files of a step, and return the error that says why its save failed."""
        for partial in self.folder.glob(f"{step}.*tmp*"):
            shutil.rmtree(partial, ignore_errors=True)
        return CheckpointError(
            f"{self.folder}: step {step} could not be saved: {why_not_written(error, self.folder, size)}"
        )

    def restore(self, like: Any, *, best: bool = False) -> Restored | None:
        """Return the newest intact step in the structure, dtypes and shardings of ``like``; None if there is no step.

        With ``best``, return the intact step of lowest score instead, the earliest if scores are equal. Steps without a
        score come last, the newest first. Raises CheckpointError if all steps are damaged or of another structure.
        """
        self.wait()
        unusable = list(self._set_aside)
        order = _by_score if best else _by_age
        for step in [found.step for found in sorted(self._orbax.checkpoints, key=order)]:
            try:
                return Restored(step, self._read(step, like), unusable)
            except _Unusable as error:
                unusable.append(f"{self.folder}: step {step} {error}")
        if aside := sorted(path.name for path in self.folder.glob("damaged-*")):
            unusable.append(f"{self.folder} holds what is left of damaged steps, {', '.join(aside)}")
        if unusable:
            damaged = any("damaged" in line for line in unusable)
            raise CheckpointError(("no step is intact: " if damaged else "") + "; ".join(unusable))
        return None

    def close(self) -> None:
        """Wait for the current save and end Orbax's threads. Raises CheckpointError if that save failed."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # Orbax raises the failure of the save once more
                self._orbax.close()

    def _set_aside_damaged(self, ocp: Any) -> None:
        for path in self.folder.glob("[0-9]*"):
            if path.name.isdigit():
                try:
                    ocp.checkpointables_metadata(path)
                except OSError:  # the step itself may be intact
                    raise
                except Exception as error:
                    aside = path.rename(path.with_name(f"damaged-{path.name}"))
                    self._set_aside.append(
                        f"{self.folder}: step {path.name} is damaged: its metadata cannot be read "
                        f"({_reason(error)}); it is now in {aside.name}"
                    )

    def _read(self, step: int, like: Any) -> Any:
        arrays = jax.tree.map(lambda x: _abstract(x), like)
        try:
            stored = self._orbax.checkpointables_metadata(step).custom_metadata
            about, sha256 = stored["arrays"], stored.get("sha256")
            expected = {name: about[name]["digest"] for name in about}
            found = {name: {k: about[name][k] for k in ("shape", "dtype")} for name in about}
        except Exception as error:
            raise _Unusable(f"is damaged: its metadata cannot be read ({_reason(error)})") from error
        if set(stored) != {"arrays"} and sha256 != _sha256(about):  # "arrays" alone: written before there was a sha256
            raise _Unusable("is damaged: the digest of its metadata differs")
        wanted = {name: _describe(x) for name, x in _named(arrays)}
        if wanted != found:
            differing = [n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)]
            name = differing[0]
            raise _Unusable(
                f"is of another model or optimizer: {len(differing)} arrays differ, first {name}: "
                f"wanted {wanted.get(name)}, found {found.get(name)}"
            )
        try:
            arrays = self._orbax.load_checkpointables(step, {"state": arrays})["state"]
        except Exception as error:
            raise _Unusable(f"is damaged: it cannot be read ({_reason(error)})") from error
        if wrong := [name for name, _, digest in _digests(arrays) if int(digest) != expected[name]]:
            raise _Unusable(f"is damaged: the digest of {', '.join(wrong)} differs")
        return jax.tree.map(_to_key, arrays, like)


class _Unusable(Exception):
    """A step that cannot be restored, with the reason."""


class _Preserve:
    """Orbax's preservation policy: keeps the newest ``newest`` steps and the ``best`` steps of lowest score."""

    def __init__(self, newest: int, best: int):
        self._newest, self._best = newest, best

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        newest = sorted(found.step for found in checkpoints)[-self._newest :]
        scored = sorted((found for found in checkpoints if _score(found) < math.inf), key=_by_score)
        kept = {*newest, *(found.step for found in scored[: self._best])}
        return [found.step in kept for found in checkpoints]


def _score(checkpoint: Any) -> float:
    return (checkpoint.metrics or {}).get("score", math.inf)


def _by_age(checkpoint: Any) -> int:
    return -checkpoint.step


def _by_score(checkpoint: Any) -> tuple[float, int]:
    score = _score(checkpoint)
    return score, checkpoint.step if score < math.inf else -checkpoint.step


class _Always:
    """Orbax's save policy: saves whenever it is called."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


def _quieten() -> None:
    """Suppress Orbax's logged tracebacks of hundreds of lines; the failures are raised anyway."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if _not_of_orbax not in (log := logging.getLogger("asyncio")).filters:
        log.addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "tensorstore" not in record.getMessage()


def digest(x: jax.Array) -> jax.Array:
    """Return the uint32 digest [] of ``x`` (any shape; bool, integer or float dtype), eq. 1."""
    return _digest(x)


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # 8 bytes: one more axis, of length 2
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):  # indices of the whole array, however it is sharded
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return _mix(bits ^ _mix(index)).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _digests(arrays: Any) -> list[tuple[str, jax.Array, np.ndarray]]:
    # One after another, because concurrent independent collectives can deadlock on simulated devices.
    return [(name, x, jax.device_get(_digest(x))) for name, x in _named(arrays)]


def _sha256(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


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
    """Return the first line of the innermost cause, where Orbax hides the actual error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
