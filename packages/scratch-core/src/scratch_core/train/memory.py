"""Memory: an estimate of what a run needs, before it starts, and a setting that lets steps reuse freed blocks."""

import ctypes
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.folders import size

# The parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, so that its size never shrinks; return whether that is possible.

    On a CPU, XLA allocates the temporary memory of each step again. glibc takes blocks of that size from the system and
    returns them right after, so every step of a large model begins with the system clearing gigabytes, page by page.
    Call this before the first computation, because JAX's threads keep the settings with which they started. Only
    glibc's allocator has these settings; elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def free_memory() -> int | None:
    """Return the bytes that the machine and this process's control group still have free; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int(Path("/sys/fs/cgroup", limit).read_text()) - int(Path("/sys/fs/cgroup", used).read_text()))
        except (OSError, ValueError):  # no group of that kind, or "max"
            continue
    return max(0, min(free)) if free else None


def check_memory(needed: dict[str, int], remedy: str) -> None:
    """Raise ConfigError if more memory is ``needed`` (what for, and how many bytes) than is free.

    Only the memory of a CPU is known before the run; with an accelerator nothing is checked.
    """
    total, free = sum(needed.values()), free_memory() if jax.default_backend() == "cpu" else None
    if free is not None and total > free:
        parts = ", ".join(f"{size(count)} for {what}" for what, count in needed.items() if count)
        raise ConfigError(f"training needs at least {size(total)} ({parts}), but {size(free)} are free: {remedy}")


def state_bytes(optimizer: optax.GradientTransformation, count: int) -> dict[str, int]:
    """Return the bytes of ``count`` float32 parameters in training, of their gradients and of the optimizer's state."""
    one = jax.ShapeDtypeStruct((64, 64), np.float32)
    state = _bytes(jax.eval_shape(optimizer.init, {"kernel": one})) / _bytes(one)
    # A state of more than two copies depends on the shapes of the parameters. Only two copies are counted.
    return {"parameters": 4 * count, "gradients": 4 * count, "the optimizer": int(4 * count * min(state, 2))}


def batch_bytes(model: nnx.Module, loss: Any, trainable: Any, example: Any, batch_size: int, parts: int) -> int:
    """Return the bytes that a batch of examples like ``example`` and the values kept for its gradients take at least.

    ``loss(model, batch)`` gives a sum and a weight; ``parts`` is the number of micro-batches. The derivative is traced
    for two and for three examples (batch statistics need two) to find the kept values, without computing. Half of their
    bytes are counted, because the compiler computes some of them again: it keeps 70 % for a Llama, 52 % for a Mamba-2.
    A batch that cannot be large is not traced.
    """
    batch = batch_size * sum(np.asarray(x).nbytes for x in jax.tree.leaves(example))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    elements = batch_size // parts * sum(np.size(x) for x in jax.tree.leaves(example))
    free = free_memory()
    if free is not None and (batch > free or 4 * elements * count < free):  # a layer keeps less than its parameters
        return batch
    model.train()
    graphdef, *states = nnx.split(model, trainable, ...)
    model.eval()
    parameters, rest = map(nnx.to_pure_dict, states)

    def derivative(parameters: Any, rest: Any, batch: Any) -> Any:
        total = lambda p: loss(nnx.merge(graphdef, nnx.State(p), nnx.State(rest)), batch)[0]  # noqa: E731
        return jax.vjp(total, parameters)[1]

    def kept(examples: int) -> int:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((examples, *np.shape(x)), np.asarray(x).dtype), example)
        return _bytes(jax.eval_shape(derivative, parameters, rest, shapes))

    return batch + (kept(3) - kept(2)) * (batch_size // parts) // 2


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
