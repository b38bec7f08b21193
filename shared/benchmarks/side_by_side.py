"""Code that the benchmarks share: a reference in another interpreter, turns in one run, and the machine's own rates.

The reference's interpreter runs the benchmark's own file with ``--serve FOLDER``, which answers through :func:`serve`.
Both sides load the same weights and take turns, so that a busy machine slows both. The best time of each side counts;
the first turn, which compiles and warms up, does not. Both sides keep the memory that they free
(`scratch_core.train.keep_memory`). Otherwise a time includes how fast the system hands out memory, which on one virtual
machine took from one to seven seconds of the same training step.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0xffffffffffff:glibc.malloc.arena_max=1"
"""The settings of `keep_memory`, for the other process."""

Task = tuple[str, int]
"""The name of a task and its size: ("prefill", 256)."""


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return the parser of the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", metavar="PYTHON", help="an interpreter that has the reference libraries")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns that each side takes")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, serve_reference: Callable[[str], object]) -> argparse.Namespace:
    """Return the options of our side. In the reference's process, serve the tasks instead, and exit."""
    options = parser.parse_args()
    if options.serve:
        serve_reference(options.serve)
        sys.exit()
    if not options.reference_python:
        parser.error("name the interpreter to compare with: --reference-python PYTHON")
    return options


def serve(hello: Mapping[str, Any], tasks: Mapping[str, Callable[[int], float | None]]) -> None:
    """Run the reference's side: print ``hello``, then run a task for each line of standard input and print its seconds.

    If a task returns seconds, these are printed; otherwise the seconds of the whole call.
    """
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        name, size = json.loads(line)
        start = time.perf_counter()
        seconds = tasks[name](size)
        print(json.dumps(time.perf_counter() - start if seconds is None else seconds), flush=True)


class Reference:
    """The reference's process, which ends with the ``with`` block; ``hello`` is its first line."""

    def __init__(self, python: str, script: str, folder: str):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [python, script, "--serve", folder],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY},
        )
        self.hello = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def __call__(self, task: Task) -> float:
        """Run one task there and return its seconds."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the reference's process ended; its error message is above")
        return json.loads(line)


def take_turns(
    tasks: Mapping[str, Task], ours: Callable[[Task], float], reference: Callable[[Task], float], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return {name: (our best seconds, the reference's)}."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            seconds[name].append((ours(task), reference(task)))
    return {name: (min(o for o, _ in turns[1:]), min(r for _, r in turns[1:])) for name, turns in seconds.items()}


def machine() -> tuple[float, float]:
    """Return GB/s of a matrix-vector product and GFLOP/s of a matrix product here, float32, best of several."""
    import jax
    import jax.numpy as jnp

    matrix, vector, square = jnp.ones((10_000, 10_000)), jnp.ones(10_000), jnp.ones((3072, 3072))
    multiply = jax.jit(jnp.matmul)

    def best(*operands: Any) -> float:
        return min(timed(lambda: multiply(*operands).block_until_ready()) for _ in range(6))

    return matrix.nbytes / best(matrix, vector) / 1e9, 2 * 3072**3 / best(square, square) / 1e9


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def print_setting(hello: Mapping[str, Any], difference: float) -> None:
    """Print the versions, the cores and the largest difference."""
    import flax
    import jax

    print(f"jax {jax.__version__}, flax {flax.__version__}; {hello['versions']}; {os.cpu_count()} cores, float32")
    print(f"logits of both sides differ by at most {difference:.1e}\n", flush=True)


def print_table(best: Mapping[str, tuple[float, float]], notes: Mapping[str, str]) -> None:
    """Print both times of every task, their ratio, and a note."""
    print(f"{'':28}{'ours':>10}{'theirs':>10}{'ratio':>8}")
    for name, (ours, theirs) in best.items():
        print(f"{name:28}{ours:9.3f}s{theirs:9.3f}s{theirs / ours:7.2f}x   {notes.get(name, '')}".rstrip())
