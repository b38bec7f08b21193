"""Selective copying, on a small task; shared/benchmarks/mamba2_selection.py describes it and trains for longer."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "shared/benchmarks/mamba2_selection.py"


def test_selective_copying_needs_selection():
    spec = importlib.util.spec_from_file_location("mamba2_selection", SCRIPT)
    selection = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(selection)
    task = selection.Task(marked=3, length=36, batch=16)
    selective, invariant = (selection.train(task, which, steps=360) for which in (True, False))
    assert selective > 0.9
    assert invariant < 0.5
