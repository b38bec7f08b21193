"""The probes of `scratch doctor`: each measures one property of this machine. `doctor.py` judges the figures.

The probe of the compilation cache starts processes that need the device for themselves. Other probes therefore import
JAX only when they run.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHILD_SECONDS = 120
UPDATES = 1000


def visible_cores() -> int:
    """Return the number of cores that this process may run on. XLA starts as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the control groups (v1 or v2) of Linux grant this process; None without a limit.

    It is the smallest limit of the process's group and of the groups above it. ``root`` holds the folders proc and sys.
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
        # In a container, the path may be that on the host, but only the root is mounted. "/" is therefore always tried.
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


def two_processes() -> tuple[dict[str, Any], dict[str, Any], tuple[int, int]]:
    """Compile the same function in two processes, one after the other, with one new compilation cache.

    Returns the report of each (see ``compile_once``; {"failed": reason} if it fails) and the number of files in the
    cache after each.
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
    program = "from scratch_core.cli import probes; probes.compile_once()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {CHILD_SECONDS} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing"]
        return {"failed": f"it ended with {done.returncode} and printed: {lines[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def compile_once() -> None:
    """Compile a function with the operations of a training step, and print cache hits and seconds as JSON."""
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


def seconds_per_update(length: int) -> float:
    """Return the time of one step of a loop that changes one number of an array with ``length`` numbers."""
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


def matmul_rates() -> tuple[float, float, float]:
    """Return the FLOP/s of a square product: float32, bfloat16 with a float32 result, bfloat16 throughout."""
    import jax
    import jax.numpy as jnp

    size = 1024 if backend() == "cpu" else 8192
    rates = []
    for dtype, result in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x, result=result: jnp.matmul(x, x, preferred_element_type=result))
        rates.append(2 * size**3 / _best_seconds(lambda product=product, x=x: product(x)))
    return rates[0], rates[1], rates[2]


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
    """Return the shortest time of a call, of all calls in about a third of a second and of at least three."""
    call().block_until_ready()
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.3:
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def backend() -> str:
    """Return the name of JAX's default backend, such as "cpu"."""
    import jax

    return jax.default_backend()
