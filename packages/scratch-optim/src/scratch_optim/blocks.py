"""Parameters as stacks of equal blocks, so that one batched computation serves all of them.

An array of more than two axes is read as a matrix: neighbouring axes are merged so that its two sides are as equal as
possible. A kernel [D, N, H] with D = N H becomes a square. Each side is cut into the fewest parts of at most
``block_size``, all of the same length; the last part is padded with zeros. Blocks of the same shape are stacked, also
those of different parameters.

Shapes: A blocks; a block's own axes are not named, because their number varies.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Cut:
    """How one array becomes blocks: its shape, its merged shape, and each merged axis's number and length of parts."""

    shape: tuple[int, ...]
    merged: tuple[int, ...]
    parts: tuple[int, ...]
    block: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], block_size: int, *, merge: bool) -> "Cut":
        """Return the cut of an array; a scalar is read as a vector of one."""
        merged = (merged_shape(shape) if merge else shape) or (1,)
        parts = tuple(-(-size // block_size) for size in merged)
        block = tuple(-(-size // count) for size, count in zip(merged, parts, strict=True))
        return cls(shape, merged, parts, block)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.parts)

    def blocks(self, x: jax.Array) -> jax.Array:
        """Return the blocks of an array of ``shape``, [A, *block]."""
        x = x.reshape(self.merged)
        padding = [(0, n * b - size) for size, n, b in zip(self.merged, self.parts, self.block, strict=True)]
        x = jnp.pad(x, padding)
        k = len(self.block)
        x = x.reshape([size for pair in zip(self.parts, self.block, strict=True) for size in pair])
        return x.transpose(*range(0, 2 * k, 2), *range(1, 2 * k, 2)).reshape(self.count, *self.block)

    def array(self, blocks: jax.Array) -> jax.Array:
        """Return the array of ``shape`` that these blocks [A, *block] were cut from."""
        k = len(self.block)
        x = blocks.reshape(*self.parts, *self.block)
        x = x.transpose([axis for i in range(k) for axis in (i, k + i)])
        x = x.reshape([n * b for n, b in zip(self.parts, self.block, strict=True)])
        return x[tuple(slice(size) for size in self.merged)].reshape(self.shape)


def merged_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor as the matrix with the most nearly equal sides; axes of length 1 are dropped."""
    shape = tuple(size for size in shape if size != 1)
    if len(shape) <= 2:
        return shape
    sides = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(sides, key=max)


class Stacks:
    """The cuts of all leaves of a tree, and the stack of each block shape.

    Each stack is padded with blocks of zeros to a multiple of ``multiple``.
    """

    def __init__(self, leaves: list[Any], block_size: int, *, merge: bool, multiple: int = 1):
        self.cuts = [Cut.of(tuple(x.shape), block_size, merge=merge) for x in leaves]
        counts: dict[tuple[int, ...], int] = {}
        for cut in self.cuts:
            counts[cut.block] = counts.get(cut.block, 0) + cut.count
        self.counts = {block: -(-count // multiple) * multiple for block, count in counts.items()}

    def stack(self, leaves: list[jax.Array]) -> dict[tuple[int, ...], jax.Array]:
        """Return for each block shape its blocks [A, *block], in the order of the leaves."""
        found: dict[tuple[int, ...], list[jax.Array]] = {}
        for cut, x in zip(self.cuts, leaves, strict=True):
            found.setdefault(cut.block, []).append(cut.blocks(x))
        stacks = {block: jnp.concatenate(parts) for block, parts in found.items()}
        return {
            block: jnp.pad(stack, [(0, self.counts[block] - len(stack))] + [(0, 0)] * len(block))
            for block, stack in stacks.items()
        }

    def unstack(self, stacks: dict[tuple[int, ...], jax.Array]) -> list[jax.Array]:
        """Return the leaves from their stacks: the inverse of :meth:`stack`."""
        taken = dict.fromkeys(stacks, 0)
        leaves = []
        for cut in self.cuts:
            start = taken[cut.block]
            leaves.append(cut.array(stacks[cut.block][start : start + cut.count]))
            taken[cut.block] += cut.count
        return leaves
