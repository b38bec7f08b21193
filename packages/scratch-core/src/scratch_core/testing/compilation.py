"""How tests compile: in half the time, for programs that run once on small arrays."""

import os

from scratch_core.compiler import jaxlib_version

LEVEL = "--xla_backend_optimization_level"


def quick_flags() -> str:
    """Return flags for XLA that leave out LLVM's optimisations and compile a program as one piece.

    jaxlib 0.10.2 has two code generators for fusions. The newer one sets up a pipeline of passes for each fusion, which
    takes longer than all the rest; its flag does not exist in later versions.
    """
    flags = f"{LEVEL}=0 --xla_cpu_parallel_codegen_split_count=1"
    return f"{flags} --xla_cpu_use_fusion_emitters=false" if jaxlib_version() == "0.10.2" else flags


def compile_quickly() -> None:
    """Add `quick_flags` to XLA_FLAGS unless a level of optimisation is given there; before JAX's backend starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {quick_flags()}".strip()
