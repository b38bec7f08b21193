"""Keep jaxlib 0.10.2 from computing wrong numbers on a CPU. ``__init__`` imports this module before any other.

That version computes some products that are followed by a sum wrongly and reports no error, for example
``jax.vmap(lambda row: jnp.sum((A @ row) ** 2))(X)`` with a constant matrix A (jax issue 39103). The fault is in the
fusion of the product with the sum (YNNPACK), which can be switched off only in the environment and only before JAX's
backend starts.
"""

import os
import sys
import warnings
from importlib.metadata import version

FAULTY_JAXLIBS = ("0.10.2",)
FLAG = "--xla_cpu_experimental_ynn_fusion_type="
SETTING = f"{FLAG}-reduce"  # the default kinds of fusion without that of reductions


def switch_off_faulty_fusions() -> None:
    """Add SETTING to XLA_FLAGS, or warn with the line to set if JAX's backend has started without it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") not in FAULTY_JAXLIBS or FLAG in flags:
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    wanted = f"{flags} {SETTING}".strip()
    if bridge is None or not bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = wanted
        return
    warnings.warn(
        f"jaxlib {version('jaxlib')} computes wrong numbers on a CPU unless some fusions are off, and JAX's backend "
        "started before scratch_classical was imported. Import scratch_classical before JAX computes anything, or set "
        f'this before Python starts: export XLA_FLAGS="{wanted}"',
        stacklevel=4,  # the line that imports scratch_classical
    )


switch_off_faulty_fusions()
