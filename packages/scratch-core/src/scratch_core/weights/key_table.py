"""Key tables: the name and the layout that a checkpoint has for each of our parameters."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from flax import nnx

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """``ours = theirs.reshape(split).transpose(order)`` and its inverse.

    ``split`` gives, for each axis of theirs, the sizes it is split into, or None to leave it whole.
    ``order`` permutes the axes after the split. None for either: leave the axes as they are.
    """

    split: tuple[tuple[int, ...] | None, ...] | None = None
    order: tuple[int, ...] | None = None

    def _groups(self, rank: int) -> list[tuple[int, ...] | None]:
        return list(self.split or (None,) * rank)

    def _order(self, rank: int) -> tuple[int, ...]:
        return self.order or tuple(range(rank))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of theirs for a shape of ours."""
        order = self._order(len(shape))
        sizes = iter([shape[order.index(axis)] for axis in range(len(shape))])
        return tuple(math.prod([next(sizes) for _ in group or (0,)]) for group in self._groups(len(shape)))

    def to_theirs(self, ours: Any) -> Any:
        """Return ours (numpy or jax) in their layout."""
        order = self._order(ours.ndim)
        axes = tuple(order.index(axis) for axis in range(ours.ndim))
        return ours.transpose(axes).reshape(self.their_shape(ours.shape))

    def read(self, theirs: Any, index: Index) -> np.ndarray:
        """Return ``ours[index]``. Only that part of ``theirs``, an array or a safetensors slice, is read."""
        order = self._order(len(index))
        parts = [index[order.index(axis)] for axis in range(len(index))]  # of theirs, after the split
        outer, inner, sizes = [], [], []
        for group in self._groups(len(index)):
            part, *rest = [parts.pop(0) for _ in group or (0,)]
            width = math.prod((group or (1,))[1:])
            outer.append(slice(part.start * width, part.stop * width))
            inner += [slice(None), *rest]
            sizes += [part.stop - part.start, *(group or (1,))[1:]]
        block = np.asarray(theirs[tuple(outer)]) if outer else np.asarray(theirs)
        return block.reshape(sizes)[tuple(inner)].transpose(order)


same = Transform()
transpose = Transform(order=(1, 0))
"""A linear layer: theirs [out, in], ours [in, out]."""
conv = Transform(order=(2, 3, 1, 0))
"""A convolution: theirs [out, in, rows, columns], ours [rows, columns, in, out]."""
conv1d = Transform(order=(2, 1, 0))
"""A one-dimensional convolution: theirs [out, in, taps], ours [taps, in, out]."""


def split_out(N: int, H: int) -> Transform:
    """A projection to heads: theirs [N * H, D], ours [D, N, H]."""
    return Transform(((N, H), None), (2, 0, 1))


def split_in(N: int, H: int) -> Transform:
    """A projection from heads: theirs [D, N * H], ours [N, H, D]."""
    return Transform((None, (N, H)), (1, 2, 0))


def split_bias(N: int, H: int) -> Transform:
    """A bias of heads: theirs [N * H], ours [N, H]."""
    return Transform(((N, H),))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a key table; a letter in braces, such as ``{i}``, stands for the same number in both names.

    A letter in theirs alone counts along the first axis of ours: ``experts.{e}.w1.weight | experts.gate.kernel``
    stacks E matrices of theirs into one array [E, ...] of ours, each laid out by ``transform``.
    ``dtype`` is the dtype in the file of a tensor that does not have the checkpoint's dtype, such as a counter.
    """

    theirs: str
    ours: str
    transform: Transform = same
    dtype: str | None = None

    @property
    def stacked(self) -> str | None:
        """The letter that only theirs has, None if each of their keys is one parameter of ours."""
        extra = set(_LETTER.findall(self.theirs)) - set(_LETTER.findall(self.ours))
        return min(extra, default=None)

    def numbers(self, path: str) -> dict[str, str] | None:
        """Return the number of each letter if ``path`` belongs to this row, else None."""
        found = _path_pattern(self.ours).fullmatch(path)
        return None if found is None else found.groupdict()

    def keys(self, numbers: Mapping[str, str], shape: tuple[int, ...]) -> list[str]:
        """Return their keys for our parameter of this shape: one, or one for each index of its first axis."""
        if self.stacked is None:
            return [self.theirs.format(**numbers)]
        return [self.theirs.format(**numbers, **{self.stacked: n}) for n in range(shape[0])]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of each of their tensors for a shape of ours."""
        return self.transform.their_shape(shape if self.stacked is None else shape[1:])

    def read(self, theirs: Sequence[Any], index: Index) -> np.ndarray:
        """Return ``ours[index]`` from arrays or safetensors slices, in the order of :meth:`keys`."""
        if self.stacked is None:
            return self.transform.read(theirs[0], index)
        return np.stack([self.transform.read(each, index[1:]) for each in theirs[index[0]]])

    def to_theirs(self, ours: Any) -> list[Any]:
        """Return their tensors, in the order of :meth:`keys`."""
        return [self.transform.to_theirs(each) for each in ([ours] if self.stacked is None else ours)]


_LETTER = re.compile(r"\{([a-z])\}")


@cache
def _path_pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>[0-9]+)", re.escape(ours)))


@dataclasses.dataclass(frozen=True)
class Copy:
    """A key that some files hold although it is tied to ``of``: loading checks that both are equal, saving omits it."""

    theirs: str
    of: str


def find_rule(rules: Iterable[Rule], path: str, shape: tuple[int, ...]) -> tuple[Rule, list[str]] | None:
    """Return the row of one of our paths, and their keys for it; None if the table has no row."""
    for rule in rules:
        if (numbers := rule.numbers(path)) is not None:
            return rule, rule.keys(numbers, shape)
    return None


def flatten(state: Any) -> dict[str, Any]:
    """Return {dotted path: array} of an nnx state or of nested mappings and sequences."""
    if isinstance(state, nnx.State):
        state = nnx.to_pure_dict(state)
    flat: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, Mapping | list | tuple):
            for name, child in value.items() if isinstance(value, Mapping) else enumerate(value):
                visit(f"{path}.{name}" if path else str(name), child)
        elif value is not None:
            flat[path] = value[...] if isinstance(value, nnx.Variable) else value

    visit("", state)
    return flat


def unstack(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted path: array} with the arrays of scanned blocks (layers/blocks.py) cut into those of each block."""
    kinds: dict[str, int] = {}
    for path in flat:
        if found := _SCANNED.fullmatch(path):
            kinds[found["stack"]] = max(kinds.get(found["stack"], 0), int(found["kind"]) + 1)
    result: dict[str, Any] = {}
    for path, value in flat.items():
        found = _SCANNED.fullmatch(path)
        if found is None:
            result[path] = value
            continue
        for turn in range(value.shape[0]):
            number = turn * kinds[found["stack"]] + int(found["kind"])
            result[f"{found['stack']}.{number}.{found['rest']}"] = value[turn]
    return result


_SCANNED = re.compile(r"(?P<stack>.*)\.kinds\.(?P<kind>[0-9]+)\.(?P<rest>.*)")


def is_learned(path: Any, value: Any) -> bool:
    """Return whether an nnx variable belongs in a checkpoint: a parameter or a running statistic."""
    return isinstance(value, nnx.Param | nnx.BatchStat) or getattr(value, "type", None) in (nnx.Param, nnx.BatchStat)
