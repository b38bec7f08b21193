"""`scratch doctor`: checks whether this machine computes correctly, and how fast.

`probes.py` measures, and a function here judges each figure, so that each judgement can be tested on the figures of
other machines.
"""

import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.text import Text

from scratch_core.cli import probes
from scratch_core.compiler import (
    FAULTY_JAXLIBS,
    FAULTY_WITH_CONSTANTS,
    SETTING,
    faulty_product_error,
    jaxlib_version,
    product_fault,
)

STYLES = {"ok": "green", "slow": "yellow", "wrong": "bold red", "skipped": "dim"}
LOOP_LENGTHS = (1 << 11, 1 << 20)  # floats: 8 KB and 4 MB
NO_CACHE = (
    "jaxlib 0.10.1 and earlier have this fault on CPUs with AVX-512 (https://github.com/jax-ml/jax/issues/38445). "
    "Install another jaxlib, or save the time of writing the cache: unset JAX_COMPILATION_CACHE_DIR"
)


@dataclass(frozen=True)
class Finding:
    """The result of one probe: its figure, its state (a key of STYLES) and, unless that is "ok", reason and remedy."""

    name: str
    figure: str
    state: str = "ok"
    advice: str = ""


def print_findings() -> int:
    """Print one line per probe. Return 0 if nothing is wrong (slow and skipped probes are not), 1 otherwise."""
    console = Console()
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "jaxlib", "flax", "scratch-core"):
        versions.append(f"{name} {metadata.version(name)}")
    console.print(", ".join(versions), highlight=False, soft_wrap=True)
    wrong = 0
    for finding in findings():
        wrong += finding.state == "wrong"
        line = Text(f"{finding.name:<10}").append(f"{finding.state:<8}", STYLES[finding.state]).append(finding.figure)
        if finding.advice:
            line.append(f": {finding.advice}" if finding.figure else finding.advice)
        console.print(line, soft_wrap=True)
    console.print("all is well" if not wrong else f"wrong: {wrong}; each such line says what to do", highlight=False)
    return int(wrong > 0)


def findings() -> Iterator[Finding]:
    """Run the probes one after the other. If JAX does not start, the probes that need it are skipped."""
    yield judge_cores(probes.visible_cores(), probes.cpu_quota())
    first, second, files = probes.two_processes()
    yield judge_cache(first, second, files)
    for name, probe in (
        ("products", lambda: judge_products(faulty_product_error())),
        ("loop", lambda: judge_loop(*(probes.seconds_per_update(length) for length in LOOP_LENGTHS))),
        ("rates", lambda: judge_rates(*probes.matmul_rates(), probes.backend())),
        ("memory", lambda: Finding("memory", f"{probes.memory_bandwidth() / 1e9:.1f} GB/s read and written")),
    ):
        yield Finding(name, "", "skipped", "JAX does not start") if "failed" in first else _guarded(name, probe)


def _guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    """Return the probe's finding. If the probe raises an error, the finding names the error."""
    try:
        return probe()
    except Exception as error:
        return Finding(name, f"ends with {type(error).__name__}", "wrong", str(error).strip().partition("\n")[0])


def judge_cores(cores: int, quota: float | None) -> Finding:
    """Judge whether there are more cores than the quota: then all threads are stopped for a part of every period."""
    seen = f"{cores} of {os.cpu_count()} may be used"
    if quota is None:
        return Finding("cores", f"{seen}, no quota")
    figure = f"{seen}, a quota of {quota:g}"
    if cores <= math.ceil(quota):
        return Finding("cores", figure)
    fits = math.ceil(quota)
    advice = (
        "XLA starts a thread for every core that it sees, and the quota stops them all. Every version does so in "
        f"containers. Give Python as many cores as the quota: taskset -c 0-{fits - 1} COMMAND, or: export NPROC={fits}"
    )
    return Finding("cores", figure, "wrong", advice)


def judge_cache(first: dict[str, Any], second: dict[str, Any], files: tuple[int, int]) -> Finding:
    """Judge the cache: it works if the first process filled it, and the second read from it and added no file."""
    if "failed" in first:
        advice = f"a new process cannot compute with JAX: {first['failed']}"
        return Finding("cache", "", "wrong", advice)
    if "failed" in second:
        return Finding(
            "cache", "", "wrong", f"a process that finds a filled cache fails: {second['failed']}. {NO_CACHE}"
        )
    figure = f"a process compiled in {first['seconds']:.2f} s, a second process in {second['seconds']:.2f} s"
    if second["hits"] and files[0] and files[1] == files[0]:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return Finding("cache", figure)
        return Finding("cache", f"{figure} (to use it: export JAX_COMPILATION_CACHE_DIR=FOLDER)")
    if not files[0] and (switch := os.environ.get("JAX_ENABLE_COMPILATION_CACHE")):
        return Finding("cache", "", "skipped", f"JAX_ENABLE_COMPILATION_CACHE={switch} switches the cache off")
    if not files[0]:
        return Finding("cache", figure, "wrong", f"the first process wrote nothing to its cache. {NO_CACHE}")
    return Finding(
        "cache", figure, "wrong", f"the second process did not find in the cache what the first wrote. {NO_CACHE}"
    )


def judge_products(error: float) -> Finding:
    """Judge whether the compiler computes wrong numbers, by the largest error of some products."""
    figure = f"off by {error:.0e} of the largest value"
    if fault := product_fault(error):
        return Finding("products", figure, "wrong", fault)
    if jaxlib_version() in FAULTY_WITH_CONSTANTS and SETTING not in os.environ.get("XLA_FLAGS", ""):
        figure += (
            f" (but jaxlib {jaxlib_version()} is known to compute 256 and more products with a constant, followed by a "
            f"sum, wrongly: if your code has them, set {SETTING} in XLA_FLAGS; it makes reductions slower)"
        )
    if jaxlib_version() in FAULTY_JAXLIBS and SETTING in os.environ.get("XLA_FLAGS", ""):
        figure += f" (jaxlib {jaxlib_version()} with its faulty fusions off: {SETTING})"
    return Finding("products", figure)


def judge_loop(small: float, large: float) -> Finding:
    """Judge the times of an update of a small and of a large array, which are equal if arrays are updated in place."""
    sizes = [f"{4 * length / 1000:,.0f} KB" for length in LOOP_LENGTHS]
    figure = f"{small * 1e6:.2g} us per update of {sizes[0]}, {large * 1e6:.2g} us of {sizes[1]}"
    if large < 5e-6 or large < 20 * small:
        return Finding("loop", figure)
    advice = (
        "a small update in a loop rewrites the whole array. jaxlib 0.11.1 has this fault on a CPU "
        '(https://github.com/jax-ml/jax/issues/40101). Install another: uv pip install "jax!=0.11.0,!=0.11.1"'
    )
    return Finding("loop", figure, "wrong", advice)


def judge_rates(float32: float, wide: float, narrow: float, device: str) -> Finding:
    """Judge whether products in bfloat16 are faster than in float32, which is the usual reason to choose it."""
    figure = (
        f"float32 {float32 / 1e9:,.0f} GFLOP/s, bfloat16 {wide / 1e9:,.0f} with a float32 result, "
        f"{narrow / 1e9:,.0f} with a bfloat16 result"
    )
    if max(wide, narrow) > 1.2 * float32:
        if narrow < 0.7 * wide:
            figure += " (so ask for preferred_element_type=float32)"
        return Finding("rates", figure)
    advice = "bfloat16 saves memory here, but no time: compute in float32"
    if device == "cpu":
        advice += ". This is so on CPUs without bfloat16 instructions"
    return Finding("rates", figure, "slow", advice)
