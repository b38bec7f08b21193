"""What training must know about a batch: how much it holds, where it goes, how it is split."""

from typing import Any, ClassVar

import jax

from scratch_core.errors import ConfigError
from scratch_core.parallel import shard_batch


class BatchHandling:
    """The handling of a batch that is a tree of arrays with one row per example; a task overrides what differs."""

    unit: ClassVar[str] = "examples"
    """What :meth:`count` counts, for the throughput that a run shows."""

    def count(self, batch: Any) -> int:
        """Return how many units a batch holds: the rows of its first array."""
        return len(jax.tree.leaves(batch)[0])

    def flops_per_unit(self, model: Any) -> float | None:
        """Return the floating-point operations of a training step for each unit; None: not known."""
        return None

    def place(self, batch: Any, mesh: jax.sharding.Mesh) -> Any:
        """Return the batch on the devices of a mesh, split over its data axes. Raises ConfigError if it cannot be.

        With several processes, ``batch`` is this one's part; see :func:`scratch_core.parallel.process_part`.
        """
        return shard_batch(batch, mesh)

    def part(self, batch: Any, index: int, count: int) -> Any:
        """Return part ``index`` of ``count`` equal parts of a whole batch, for `place` where several processes give it.

        Raises ConfigError if ``count`` does not divide the batch.
        """

        def rows(x: Any) -> Any:
            if len(x) % count:
                raise ConfigError(f"{count} processes must divide the batch of {len(x)}: change the batch size")
            return x[index * len(x) // count : (index + 1) * len(x) // count]

        return batch if count == 1 else jax.tree.map(rows, batch)

    def split(self, batch: Any, parts: int) -> Any:
        """Return the batch as micro-batches: the same tree, each array with a new first axis of length ``parts``.

        Runs inside jit. Raises ConfigError if ``parts`` does not divide the batch.
        """

        def rows(x: jax.Array) -> jax.Array:
            if x.shape[0] % parts:
                raise ConfigError(f"accumulate={parts} must divide the batch size {x.shape[0]}")
            # Micro-batch i takes the rows i, i + parts, ...: rows that are spread over devices stay spread.
            return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(rows, batch)
