"""A stack of blocks, run as a loop or as one scanned block, with or without rematerialisation.

In a loop, XLA compiles every block, so the compile time grows with the number of blocks. :class:`ScannedBlocks` holds
the same weights with the arrays of all blocks stacked on a new first axis. `jax.lax.scan` runs along this axis and
compiles one block, and an optimizer updates one array instead of one for each block. Saved files do not differ:
`to_hf` and `save` unstack.

Rematerialisation (Chen et al. 2016, https://arxiv.org/abs/1604.06174) keeps only the input of each block for the
backward pass, and computes the rest of the block again there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from scratch_core.errors import ConfigError
from scratch_core.parallel import constrain

Call = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``call(block, x, cache) -> (x, cache)``."""


class ScannedBlocks(nnx.Module):
    """Blocks of P alternating kinds, stacked by kind: block i is number i // P of ``kinds[i % P]``.

    The modules in ``kinds`` only hold stacked arrays [repeats, ...]. Indexing and iteration give single blocks.
    Raises ConfigError if the blocks are not of one kind and no pattern of kinds repeats.
    """

    def __init__(self, blocks: Sequence[nnx.Module]):
        parts = [_split(block) for block in blocks]
        period = _period(blocks, parts)
        self.repeats = len(parts) // period
        self.kinds = nnx.List(
            [
                _merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(a for _, a in parts[kind::period])))
                for kind, (graphdef, _) in enumerate(parts[:period])
            ]
        )

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self.repeats * len(self.kinds)

    def __getitem__(self, index: int) -> Any:
        """Return one block, a copy with arrays of its own."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        turn, kind = divmod(index, len(self.kinds))
        graphdef, arrays = _split(self.kinds[kind])
        return _merge(graphdef, jax.tree.map(lambda leaf: leaf[turn], arrays))

    def __iter__(self) -> Iterator[Any]:
        """Return the blocks in order."""
        return (self[index] for index in range(len(self)))


def scan_layers(model: Any) -> None:
    """Make every stack of a model scanned, in place: its own ``layers``, or those of each module that has some.

    Raises ConfigError, and changes nothing, if there is no stack, or if one cannot be scanned; see
    :class:`ScannedBlocks`.
    """
    stacks = _stacks(model)
    if not stacks:
        raise ConfigError(f"a {type(model).__name__} has no stack of layers to scan: run it as it is")
    scanned = [
        stack.layers if isinstance(stack.layers, ScannedBlocks) else ScannedBlocks(stack.layers) for stack in stacks
    ]
    for stack, layers in zip(stacks, scanned, strict=True):
        stack.layers = layers


def unscan_layers(model: Any) -> None:
    """Make every scanned stack of a model a list of blocks again, in place."""
    for stack in _stacks(model):
        if isinstance(stack.layers, ScannedBlocks):
            stack.layers = nnx.List(list(stack.layers))


def _stacks(model: Any) -> list[Any]:
    """Return the modules that have ``layers``, without those inside of other layers."""
    return [module for path, module in nnx.iter_modules(model) if hasattr(module, "layers") and "layers" not in path]


def run_blocks(
    blocks: Any, call: Call, x: Any, caches: Iterable[Any], *, remat: bool = False, mesh: Mesh | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """Return x after all blocks, and each block's cache after it.

    ``call(block, x, cache)`` runs one block. ``blocks`` is a list or :class:`ScannedBlocks`. The latter is scanned if
    all caches are None; the caches after it are None too. With caches it runs as a loop, because a scan would copy them
    for every token. After each block, the batch of x [B, ...] is split over ``mesh``, see
    :func:`scratch_core.parallel.constrain`. Raises ConfigError if a scanned or rematerialised block makes a new
    variable.
    """
    caches = list(caches)

    def constrained(block: Any, x: Any, cache: Any) -> tuple[Any, Any]:
        x, cache = call(block, x, cache)
        return constrain(x, mesh), cache

    if isinstance(blocks, ScannedBlocks) and all(cache is None for cache in caches):
        return _scan(blocks, constrained, x, remat), tuple(caches)
    after = []
    for block, cache in zip(blocks, caches, strict=True):
        if remat:
            graphdef, arrays = _split(block)
            x, cache, changed = jax.checkpoint(_pure(graphdef, constrained))(arrays, x, cache)
            _update(block, arrays, changed)
        else:
            x, cache = constrained(block, x, cache)
        after.append(cache)
    return x, tuple(after)


def _scan(blocks: ScannedBlocks, call: Call, x: Any, remat: bool) -> Any:
    graphdefs, stacks = zip(*map(_split, blocks.kinds), strict=True)
    runs = [_pure(graphdef, call) for graphdef in graphdefs]
    if remat:
        runs = [jax.checkpoint(run, prevent_cse=False) for run in runs]

    def body(x: Any, group: Any) -> tuple[Any, list[Any]]:
        changes = []
        for run, arrays in zip(runs, group, strict=True):
            x, _, changed = run(arrays, x, None)
            changes.append(changed)
        return x, changes

    x, changes = jax.lax.scan(body, x, stacks)
    for kind, arrays, changed in zip(blocks.kinds, stacks, changes, strict=True):
        _update(kind, arrays, changed)
    return x


def _split(block: nnx.Module) -> tuple[Any, Any]:
    graphdef, state = nnx.split(block)
    return graphdef, nnx.to_pure_dict(state)


def _merge(graphdef: Any, arrays: Any) -> Any:
    return nnx.merge(graphdef, nnx.State(arrays))


def _pure(graphdef: Any, call: Call) -> Callable[[Any, Any, Any], tuple[Any, Any, dict[int, jax.Array]]]:
    """Return ``call`` as a function of a block's arrays that also returns the changed arrays by their number."""

    def run(arrays: Any, x: Any, cache: Any) -> tuple[Any, Any, dict[int, jax.Array]]:
        block = _merge(graphdef, arrays)
        x, cache = call(block, x, cache)
        after, new = _split(block)
        if after != graphdef:
            raise ConfigError(
                f"a {type(block).__name__} makes new variables or attributes when it runs, which a scanned or "
                "rematerialised block would lose: run the layers as a plain loop"
            )
        leaves = zip(jax.tree.leaves(arrays), jax.tree.leaves(new), strict=True)
        return x, cache, {number: leaf for number, (old, leaf) in enumerate(leaves) if leaf is not old}

    return run


def _update(block: nnx.Module, arrays: Any, changed: dict[int, jax.Array]) -> None:
    if changed:
        leaves, structure = jax.tree.flatten(arrays)
        new = [changed.get(number, leaf) for number, leaf in enumerate(leaves)]
        nnx.update(block, nnx.State(jax.tree.unflatten(structure, new)))


def _period(blocks: Sequence[nnx.Module], parts: list[tuple[Any, Any]]) -> int:
    """Return the length of the repeating pattern of kinds of blocks. Raises ConfigError if no pattern repeats."""
    kinds = [(graphdef, jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arrays)) for graphdef, arrays in parts]
    for period in range(1, len(kinds) // 2 + 1):
        if len(kinds) % period == 0 and all(kind == kinds[k % period] for k, kind in enumerate(kinds)):
            return period
    if len(kinds) == 1:
        return 1
    number = next((k for k, kind in enumerate(kinds) if kind != kinds[0]), len(kinds) - 1)
    raise ConfigError(
        f"the {len(kinds)} layers cannot be scanned: they are not all of one kind, and no pattern of kinds repeats "
        f"(layers 0 and {number} differ in {_difference(blocks[0], blocks[number])}): run them as a loop"
    )


def _difference(one: nnx.Module, two: nnx.Module) -> str:
    """Return the first attribute in which two blocks differ, with both values."""
    for (path, a), (_, b) in zip(nnx.iter_modules(one), nnx.iter_modules(two), strict=False):
        for name, value in vars(a).items():
            other = vars(b).get(name)
            if isinstance(value, int | float | str | tuple | None) and value != other:
                return f"{'.'.join(map(str, (*path, name)))}: {value!r} and {other!r}"
    return "their structure or the shapes of their arrays"
