"""The cost of a compiled program, read from its text: products, collectives, and activations.

The text is XLA's HLO after all passes, ``jax.stages.Compiled.as_text()``. For several devices, it is the program that
each of them runs, with the shapes of one device. XLA's own cost analysis counts the body of a loop once; this module
multiplies it by the trip count, which the compiler records where it knows it, as for `jax.lax.scan`.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

Leaf = tuple[str, int]
"""An array of a computation: the name of the instruction that makes it, and its index among that one's results."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = type opcode(operands), attributes``; ``scope`` is JAX's name stack, "" where XLA left none."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @cached_property
    def scope(self) -> str:
        """The name stack, such as "jit(step)/transpose(jvp())/dot_general"."""
        return _first(r'op_name="([^"]*)"', self.attributes)

    @property
    def bytes(self) -> int:
        """The size of its results."""
        return sum(_bytes(shape) for shape in self.shapes)

    def called(self) -> list[str]:
        """Return the computations that a fusion or a call runs, or the branches of a conditional."""
        names = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%([\w.-]+)", self.attributes)
        branches = _first(r"branch_computations=\{([^}]*)\}", self.attributes)
        return [*names, *re.findall(r"%([\w.-]+)", branches)]

    @property
    def body(self) -> str:
        """The body of a loop."""
        return _first(r"body=%([\w.-]+)", self.attributes)

    @property
    def trips(self) -> int | None:
        """The trip count of a loop, None if the compiler does not know it."""
        found = _first(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found) if found else None


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost for one device of running a computation once.

    ``flops`` counts the multiplications and additions of matrix products and convolutions. ``collectives`` maps each
    kind to how often it runs and to its bytes: those of its input or its output, whichever is larger. ``unknown``
    counts the loops of unknown trip count, whose bodies count once.
    """

    flops: int = 0
    collectives: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    unknown: int = 0

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """Return this cost plus ``times`` times the other."""
        kinds = {}
        for kind in COLLECTIVES:
            (count, size), (more, larger) = (cost.collectives.get(kind, (0, 0)) for cost in (self, other))
            if count + more:
                kinds[kind] = count + times * more, size + times * larger
        return Cost(self.flops + times * other.flops, kinds, self.unknown + other.unknown)


class Program:
    """A compiled program, parsed from its text."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, instructions = "", []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                instructions = self.computations[found["name"]] = []
                self.entry = found["name"] if found["entry"] else self.entry
            elif (instruction := _instruction(line)) is not None:
                instructions.append(instruction)
        self._costs: dict[str, Cost] = {}

    def cost(self, computation: str | None = None) -> Cost:
        """Return the cost of one run of a computation (None: the program). A conditional costs its dearest branch."""
        name = self.entry if computation is None else computation
        if name not in self._costs:
            shapes = {each.name: each for each in self.computations[name]}
            self._costs[name] = _sum(self._cost(each, shapes) for each in self.computations[name])
        return self._costs[name]

    def _cost(self, instruction: Instruction, made: Mapping[str, Instruction]) -> Cost:
        opcode = instruction.opcode
        if opcode in COLLECTIVES:
            size = max(instruction.bytes, sum(made[name].bytes for name in instruction.operands))
            return Cost(0, {opcode: (1, size)})
        if opcode in ("dot", "convolution"):
            (_, one), (_, two) = (made[name].shapes[0] for name in instruction.operands)
            return Cost(_dot_flops(instruction, one) if opcode == "dot" else _convolution_flops(instruction, one, two))
        if opcode == "while":
            trips = instruction.trips
            return Cost(0, {}, int(trips is None)).plus(self.cost(instruction.body), 1 if trips is None else trips)
        if opcode == "conditional":
            branches = [self.cost(name) for name in instruction.called()]
            return max(branches, key=lambda cost: (cost.flops, sum(size for _, size in cost.collectives.values())))
        if opcode in ("fusion", "call", "custom-call"):
            return _sum(self.cost(name) for name in instruction.called())
        return Cost()

    def kept(self) -> int:
        """Return the bytes that the forward pass computes and the backward pass reads: the activations.

        Each array counts once, with the shape and dtype that the program gives it. Gathered and rounded copies of
        parameters count; the parameters themselves and the batch do not. Values that a rematerialised block
        recomputes belong to the backward pass. With micro-batches, the result is for one micro-batch.
        """
        fused = {name for each in self._all() if each.opcode == "fusion" for name in each.called()}
        return max(self._kept(name) for name in self.computations if name not in fused)

    def _kept(self, computation: str) -> int:
        instructions = self.computations[computation]
        leaves: dict[str, list[Leaf]] = {}
        passes: dict[str, str] = {}
        size: dict[Leaf, int] = {}
        kept: set[Leaf] = set()
        for each in instructions:
            read = [leaf for name in each.operands for leaf in leaves.get(name, ())]
            named = _pass(each.scope) if each.scope else max((passes[leaf[0]] for leaf in read), default="")
            own = [(each.name, number) for number in range(len(each.shapes))]
            size |= {leaf: _bytes(shape) for leaf, shape in zip(own, each.shapes, strict=True)}
            passes[each.name] = named
            if each.opcode == "get-tuple-element":
                leaves[each.name] = [leaves[each.operands[0]][int(_first(r"index=(\d+)", each.attributes))]]
            elif each.opcode in ("tuple", "bitcast", "optimization-barrier"):
                leaves[each.name] = read
            else:
                unchanged = self._unchanged(each.body) if each.opcode == "while" else set()
                leaves[each.name] = [read[number] if number in unchanged else leaf for number, leaf in enumerate(own)]
                if named == _BACKWARD:
                    kept |= {leaf for leaf in read if passes[leaf[0]] == _FORWARD}
        return sum(size[leaf] for leaf in kept)

    def _all(self) -> Iterator[Instruction]:
        return itertools.chain.from_iterable(self.computations.values())

    def _unchanged(self, body: str) -> set[int]:
        """Return the indices of the arrays that the body of a loop returns unchanged."""
        made = {each.name: each for each in self.computations[body]}
        (root,) = [each for each in made.values() if each.is_root]
        places = set()
        for number, name in enumerate(root.operands):
            source = made[name]
            index = _first(r"index=(\d+)", source.attributes)
            given = source.opcode == "get-tuple-element" and made[source.operands[0]].opcode == "parameter"
            if given and int(index) == number:
                places.add(number)
        return places


# An instruction without a name stack takes the largest of its operands' passes (compared as strings), so that one that
# reads a backward value counts as backward.
_FORWARD, _BACKWARD = "1 forward", "2 backward"


def _pass(scope: str) -> str:
    """Return the pass that a name stack belongs to, "" for neither. JAX writes jvp(...) and transpose(jvp(...))."""
    return _BACKWARD if "transpose(" in scope else _FORWARD if "jvp(" in scope else ""


_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[\w.-]+) = (?P<rest>.*)$")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    rest = found["rest"]
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    start = rest.index("(", type_end)
    end = _closing(rest, start)
    shapes = tuple((dtype, _sizes(sizes)) for dtype, sizes in _SHAPE.findall(rest[:type_end]))
    operands = tuple(re.findall(r"%([\w.-]+)", rest[start:end]))
    return Instruction(
        found["name"], shapes, rest[type_end:start].strip(), operands, rest[end + 1 :], found["root"] is not None
    )


def _closing(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one at ``start``."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _bytes(shape: tuple[str, tuple[int, ...]]) -> int:
    dtype, sizes = shape
    bits = 8 if dtype == "pred" else int(_first(r"[a-z](\d+)", dtype) or 0)  # a token has none
    return -(-bits * math.prod(sizes) // 8)


def _sum(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total = total.plus(cost)
    return total


def _dot_flops(dot: Instruction, left: tuple[int, ...]) -> int:
    contracted = _sizes(_first(r"lhs_contracting_dims=\{([0-9,]*)\}", dot.attributes))
    return 2 * math.prod(dot.shapes[0][1]) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(convolution: Instruction, image: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Return 2 FLOPs for each product with a value of the image. Products with padding or dilation do not count."""
    letters = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if letters is None:
        return 0
    window = _first(r"window=\{([^}]*)\}", convolution.attributes)
    result = convolution.shapes[0][1]
    flops = 2 * kernel[letters[2].index("i")] * math.prod(result[letters[3].index(axis)] for axis in "bf")
    for number, size in enumerate(_numbers(window, "size")):
        places = result[letters[3].index(str(number))]
        flops *= _products(window, number, size, places, image[letters[1].index(str(number))])
    return flops


def _products(window: str, number: int, size: int, places: int, length: int) -> int:
    """Return how many pairs of an output position and a kernel position read a value of the image, along one axis."""

    def of(name: str) -> int:
        numbers = _numbers(window, name)
        return numbers[number] if numbers else 1

    stride, image_dilation, kernel_dilation = of("stride"), of("lhs_dilate"), of("rhs_dilate")
    pads = _first(r"\bpad=([\d_x-]+)", window)
    before = int(pads.split("x")[number].split("_")[0]) if pads else 0
    last = (length - 1) * image_dilation
    offsets = (place * stride + tap * kernel_dilation - before for place in range(places) for tap in range(size))
    return sum(0 <= offset <= last and offset % image_dilation == 0 for offset in offsets)


def _numbers(window: str, name: str) -> tuple[int, ...]:
    found = _first(rf"\b{name}=([\dx]+)", window)
    return tuple(int(number) for number in found.split("x")) if found else ()
