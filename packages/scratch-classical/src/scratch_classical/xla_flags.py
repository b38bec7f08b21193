"""Keep jaxlib 0.10.2 from computing wrong numbers on a CPU. ``__init__`` imports this module before any other.

The YNN fusions of that version compute some products wrongly and report no error, for example the sums of squares
``jax.vmap(lambda row: jnp.sum((A @ row) ** 2))(X)`` with a constant matrix A (jax issue 39103). They can be switched
off only in the environment and only before JAX's backend starts. Other versions are left alone.
"""

import os
import sys
import warnings
from importlib.metadata import version

FAULTY_JAXLIB = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type="  # followed by nothing: no fusions


def switch_off_faulty_fusions() -> None:
    """Add the flag to XLA_FLAGS, or warn with the line to set if JAX's backend has started without it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") != FAULTY_JAXLIB or FLAG in flags:
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    wanted = f"{flags} {FLAG}".strip()
    if bridge is None or not bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = wanted
        return
    warnings.warn(
        f"jaxlib {FAULTY_JAXLIB} computes wrong numbers on a CPU unless its YNN fusions are off, and JAX's backend "
        "started before scratch_classical was imported. Import scratch_classical before JAX computes anything, or set "
        f'this before Python starts: export XLA_FLAGS="{wanted}"',
        stacklevel=4,  # the line that imports scratch_classical
    )


switch_off_faulty_fusions()
