"""`scratch doctor`: small probes of whether this machine computes right, and how fast.

A probe measures, and a function of its own judges the figures, so that each judgement can be tested on figures of
machines that are not here. JAX is imported by the probes that need it: the cache's probe starts processes of its own,
which must have the device to themselves.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from scratch_core.compiler import (
    FAULTY_JAXLIBS,
    FAULTY_WITH_CONSTANTS,
    SETTING,
    faulty_product_error,
    jaxlib_version,
    product_fault,
)

STYLES = {"ok": "green", "slow": "yellow", "wrong": "bold red", "skipped": "dim"}
CHILD_SECONDS = 120
LOOP_LENGTHS = (1 << 11, 1 << 20)  # floats: 8 KB and 4 MB
UPDATES = 1000
NO_CACHE = (
    "Known of jaxlib 0.10.1 and before on CPUs with AVX-512 (https://github.com/jax-ml/jax/issues/38445). "
    "Install another jaxlib, or save the time of writing it: unset JAX_COMPILATION_CACHE_DIR"
)


@dataclass(frozen=True)
class Finding:
    """What one probe found: the figure, a key of STYLES, and where it is not "ok" the reason and what to do."""

    name: str
    figure: str
    state: str = "ok"
    advice: str = ""


def print_findings() -> int:
    """Print one line per probe; return 0 if nothing is wrong, 1 otherwise. Slow or skipped is not wrong."""
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
    """Run the probes one after the other. Where JAX does not even start, those that need it are skipped."""
    yield judge_cores(visible_cores(), cpu_quota())
    first, second, files = two_processes()
    yield judge_cache(first, second, files)
    for name, probe in (
        ("products", lambda: judge_products(faulty_product_error())),
        ("loop", lambda: judge_loop(*(seconds_per_update(length) for length in LOOP_LENGTHS))),
        ("rates", lambda: judge_rates(*matmul_rates(), _platform())),
        ("memory", lambda: Finding("memory", f"{memory_bandwidth() / 1e9:.1f} GB/s read and written")),
    ):
        yield Finding(name, "", "skipped", "JAX does not start") if "failed" in first else _guarded(name, probe)


def _guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    """Return the probe's finding; one that ends in an error is a finding too."""
    try:
        return probe()
    except Exception as error:
        return Finding(name, f"ends with {type(error).__name__}", "wrong", str(error).strip().partition("\n")[0])


# Cores.


def visible_cores() -> int:
    """Return how many cores this process may run on. XLA starts as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores' worth of time that the control groups (v1 or v2) of Linux grant; None without a limit.

    The smallest limit of the process's group and of those that hold it counts. ``root`` is where proc and sys are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one tree for all controllers
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / name for name in {controllers, "cpu"}]
        else:
            continue
        # In a container the path may be the host's, of which only the mounted root is seen: "/" is always tried.
        place = Path(path.lstrip("/"))
        quotas += [_quota_of(mount / group) for mount in mounts for group in (place, *place.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def judge_cores(cores: int, quota: float | None) -> Finding:
    """More threads than the quota pays for are stopped together for a part of every period."""
    seen = f"{cores} of {os.cpu_count()} may be used"
    if quota is None:
        return Finding("cores", f"{seen}, no quota")
    figure = f"{seen}, a quota of {quota:g}"
    if cores <= math.ceil(quota):
        return Finding("cores", figure)
    fits = math.ceil(quota)
    advice = (
        "XLA starts a thread for every core that it sees, and the quota stops them all. Known of every version, in "
        f"containers. Give Python as many cores as the quota: taskset -c 0-{fits - 1} COMMAND, or: export NPROC={fits}"
    )
    return Finding("cores", figure, "wrong", advice)


# The compilation cache.


def two_processes() -> tuple[dict[str, Any], dict[str, Any], tuple[int, int]]:
    """Compile the same function in two processes, one after the other, with one new compilation cache.

    Returns what each reports (see ``compile_once``; {"failed": why} if it cannot) and the number of files in the cache
    after each.
    """
    reports, files = [], []
    with tempfile.TemporaryDirectory(prefix="scratch-doctor-") as folder:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "JAX_TRACEBACK_FILTERING": "off",  # so that the last line of a traceback is the error
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a GPU may be in use
        }
        for _ in range(2):
            reports.append(_run_child(environment))
            files.append(sum(path.name.endswith("-cache") for path in Path(folder).rglob("*")))
            if "failed" in reports[-1]:
                break
    return reports[0], reports[-1], (files[0], files[-1])


def _run_child(environment: dict[str, str]) -> dict[str, Any]:
    program = "from scratch_core.cli import doctor; doctor.compile_once()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {CHILD_SECONDS} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return {"failed": f"it ended with {done.returncode} and said: {said[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def compile_once() -> None:
    """Compile one function, made of a training step's operations, and print the cache's events and seconds as JSON."""
    import jax
    import jax.numpy as jnp

    hits: list[str] = []
    seconds: list[float] = []

    def on_event(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    def loss(weights, x):
        def layer(x, weight):
            return jax.nn.gelu(jax.nn.softmax(x @ weight) @ weight), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)

    shapes = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.float32)
    lowered = jax.jit(jax.value_and_grad(loss)).lower(*shapes)
    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    lowered.compile()
    print(json.dumps({"hits": len(hits), "seconds": sum(seconds), "platform": jax.default_backend()}))


def judge_cache(first: dict[str, Any], second: dict[str, Any], files: tuple[int, int]) -> Finding:
    """The cache works if the first process filled it and the second took the function from it and added none."""
    if "failed" in first:
        advice = f"a new process cannot compute with JAX: {first['failed']}"
        return Finding("cache", "", "wrong", advice)
    if "failed" in second:
        return Finding(
            "cache", "", "wrong", f"a process that finds a filled cache fails: {second['failed']}. {NO_CACHE}"
        )
    figure = f"a process compiled in {first['seconds']:.2f} s, a second one in {second['seconds']:.2f} s"
    if second["hits"] and files[0] and files[1] == files[0]:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return Finding("cache", figure)
        return Finding("cache", f"{figure} (to use it: export JAX_COMPILATION_CACHE_DIR=FOLDER)")
    if not files[0] and (switch := os.environ.get("JAX_ENABLE_COMPILATION_CACHE")):
        return Finding("cache", "", "skipped", f"JAX_ENABLE_COMPILATION_CACHE={switch} switches it off")
    if not files[0]:
        return Finding("cache", figure, "wrong", f"the first process wrote nothing to its cache. {NO_CACHE}")
    return Finding("cache", figure, "wrong", f"the second did not find in the cache what the first wrote. {NO_CACHE}")


# What XLA makes of three programs.


def judge_products(error: float) -> Finding:
    """A compiler that computes wrong numbers silently is the worst that can be found."""
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


def seconds_per_update(length: int) -> float:
    """Return the time of one step of a loop that changes one number of an array of ``length``."""
    import jax
    import jax.numpy as jnp

    def update(step, x):
        return x.at[step].set(x[step - 1] * 0.5 + 1.0)

    loop = jax.jit(lambda x: jax.lax.fori_loop(1, UPDATES + 1, update, x), donate_argnums=0)
    x = loop(jnp.zeros(length)).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        x = loop(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best / UPDATES


def judge_loop(small: float, large: float) -> Finding:
    """In place, an update costs the same whatever the length of the array."""
    sizes = [f"{4 * length / 1000:,.0f} KB" for length in LOOP_LENGTHS]
    figure = f"{small * 1e6:.2g} us per update of {sizes[0]}, {large * 1e6:.2g} us of {sizes[1]}"
    if large < 5e-6 or large < 20 * small:
        return Finding("loop", figure)
    advice = (
        "a small update in a loop rewrites the whole array. Known of jaxlib 0.11.1 on a CPU "
        '(https://github.com/jax-ml/jax/issues/40101). Install another: uv pip install "jax!=0.11.0,!=0.11.1"'
    )
    return Finding("loop", figure, "wrong", advice)


def matmul_rates() -> tuple[float, float, float]:
    """Return the FLOP/s of a square product: float32, bfloat16 with a float32 result, bfloat16 throughout."""
    import jax
    import jax.numpy as jnp

    size = 1024 if _platform() == "cpu" else 8192
    rates = []
    for dtype, result in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x, result=result: jnp.matmul(x, x, preferred_element_type=result))
        rates.append(2 * size**3 / _best_seconds(lambda product=product, x=x: product(x)))
    return rates[0], rates[1], rates[2]


def judge_rates(float32: float, wide: float, narrow: float, device: str) -> Finding:
    """bfloat16 is chosen for its speed; where it is not faster, people should know."""
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
        advice += ". So it is on CPUs without bfloat16 instructions"
    return Finding("rates", figure, "slow", advice)


def memory_bandwidth() -> float:
    """Return the bytes read and written per second by adding 1 to 268 MB in place."""
    import jax
    import jax.numpy as jnp

    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros(1 << 26)

    def step():
        nonlocal x
        x = add(x)
        return x

    return 2 * x.nbytes / _best_seconds(step)


def _best_seconds(call: Callable[[], Any]) -> float:
    """Return the shortest time of a call over about a third of a second, and of three calls at least."""
    call().block_until_ready()
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.3:
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def _platform() -> str:
    import jax

    return jax.default_backend()
