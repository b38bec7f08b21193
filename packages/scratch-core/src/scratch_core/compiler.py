"""Switches off a known fault of XLA's CPU compiler when ``scratch_core`` is imported.

jaxlib 0.10.2, the newest for Python 3.11, computes wrong numbers on a CPU where it fuses a matrix product with the
reduction after it through YNNPACK (https://github.com/jax-ml/jax/issues/39103). One flag in XLA_FLAGS keeps reductions
out of these fusions, and leaves the fast bfloat16 and int8 products. XLA reads XLA_FLAGS once, when JAX's backend
starts. Processes started from this one inherit the flag.

Nothing is set for other versions. 0.12.0 and 0.12.0.1 still compute one kind of program wrongly: 256 and more products
with an array that the compiler knows to be constant, followed by a sum. The Mixer of scratch-mamba2 hides such a
constant from the compiler. The same flag would avoid this fault too, but it makes training steps with batch norm
slower.
"""

import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

FAULTY_JAXLIBS = ("0.10.2",)
FAULTY_WITH_CONSTANTS = ("0.12.0", "0.12.0.1")
FLAG = "--xla_cpu_experimental_ynn_fusion_type="
SETTING = f"{FLAG}-reduce"  # all default kinds of fusion except that of reductions


def avoid_faulty_fusions() -> None:
    """Add SETTING to XLA_FLAGS if jaxlib is one of FAULTY_JAXLIBS and XLA_FLAGS does not yet hold the flag.

    If that has no effect, because JAX's backend has started or because XLA_FLAGS names a file of flags, a
    RuntimeWarning says what to set instead. Does not import JAX.
    """
    if jaxlib_version() not in FAULTY_JAXLIBS:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in _flag_text(flags):
        return
    with_flag = f"{flags} {SETTING}".strip()
    if _is_flag_file(flags):
        place = f"a line of {flags.strip()}, the file that XLA_FLAGS names"
        _warn("XLA_FLAGS names a file, to which scratch_core does not write", f"add this as {place}: {SETTING}")
    elif _backend_has_started():
        how = f'import scratch_core before the first computation, or set: export XLA_FLAGS="{with_flag}"'
        _warn("JAX's backend started before scratch_core was imported", how)
    else:
        os.environ["XLA_FLAGS"] = with_flag


def jaxlib_version() -> str | None:
    """Return the version of the installed jaxlib, None if none is installed. Does not import it."""
    try:
        return metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        return None


def faulty_product_error() -> float:
    """Return the largest error of the products that FAULTY_JAXLIBS get wrong, relative to the largest right value.

    The error is below 1e-5 if float32 products are right, and 0.9 or more (or NaN) with the fault. The probe takes
    about 0.5 s on JAX's default device.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(0)
    matrix = random.normal(size=(3, 3)).astype(np.float32)

    # "highest", because GPUs and TPUs round the factors of a float32 product by default.
    @jax.jit
    @jax.vmap
    def squared_norm(row):
        return jnp.sum(jnp.matmul(matrix, row, precision="highest") ** 2)

    errors = []
    # Only rows beyond the first 2^15 are wrong, and only for some batch sizes.
    for count in (32_769, 36_000, 40_000):
        rows = random.normal(size=(count, 3)).astype(np.float32)
        right = np.sum((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2, axis=1)
        errors.append(np.max(np.abs(np.asarray(squared_norm(rows)) - right)) / np.max(right))
    return float(np.max(errors))  # NaN stays NaN


def product_fault(error: float) -> str | None:
    """Return what is wrong and what to do, None if ``error`` (from ``faulty_product_error``) is only rounding."""
    if error < 1e-3:
        return None
    text = f"this compiler computes wrong numbers: a matrix product is off by {error:.1e} of its largest value"
    if jaxlib_version() in FAULTY_JAXLIBS:
        return f"{text}. This jaxlib has a known fault on a CPU: set {SETTING} in XLA_FLAGS before Python starts"
    known = f"known only of jaxlib {', '.join(FAULTY_JAXLIBS)}, and this is {jaxlib_version()}"
    return f"{text}. Such a fault is {known}: install another, and report this one to https://github.com/jax-ml/jax"


def _is_flag_file(flags: str) -> bool:
    """Return whether XLA reads the value of XLA_FLAGS as the name of a file: it does if no dash comes first."""
    return bool(flags.strip()) and not flags.lstrip().startswith("-")


def _flag_text(flags: str) -> str:
    if not _is_flag_file(flags):
        return flags
    try:
        return Path(flags).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _backend_has_started() -> bool:
    """Return whether JAX's backend runs in this process. Importing JAX does not start it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def _warn(what: str, how: str) -> None:
    text = f"jaxlib {jaxlib_version()} computes wrong numbers on a CPU, and {what}: {how}"
    warnings.warn(text, RuntimeWarning, stacklevel=4)  # the line that imports scratch_core
