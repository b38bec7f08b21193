"""Selective copying, on a small task; shared/benchmarks/mamba2_selection.py describes it and trains for longer."""

import os
import subprocess
import sys
from pathlib import Path

from scratch_core.testing.compilation import quick_flags

SCRIPTS = Path(__file__).parents[3] / "shared/benchmarks"
CODE = """
from mamba2_selection import Task, train
task = Task(marked=3, length=36, batch=16)
print(*(train(task, which, steps=360) for which in (True, False)))
"""


def test_selective_copying_needs_selection():
    """Run in a separate process and compiled with all optimisations, because nearly all of its time is training."""
    flags = os.environ.get("XLA_FLAGS", "").replace(quick_flags(), "")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    selective, invariant = map(float, done.stdout.split())
    assert selective > 0.9
    assert invariant < 0.5
