"""Compiler settings for tests: programs that run once on small arrays compile in half the time."""

import os

from scratch_core.compiler import jaxlib_version

LEVEL = "--xla_backend_optimization_level"


def quick_flags() -> str:
    """Return XLA flags that turn off LLVM's optimisations and compile a program as one piece.

    jaxlib 0.10.2 has two code generators for fusions. The newer one sets up a pipeline of passes for each fusion, which
    takes longer than the rest of the compilation. Later versions do not have its flag.
    """
    flags = f"{LEVEL}=0 --xla_cpu_parallel_codegen_split_count=1"
    return f"{flags} --xla_cpu_use_fusion_emitters=false" if jaxlib_version() == "0.10.2" else flags


def compile_quickly() -> None:
    """Add `quick_flags` to XLA_FLAGS unless it sets an optimisation level. Call this before JAX's backend starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {quick_flags()}".strip()
