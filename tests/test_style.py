"""Protects the style: one formatter, one linter and one type checker run over the whole tree, as tests."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["ty", "check", "--python", sys.prefix],
    ],
    ids=["ruff-format", "ruff-check", "ty-check"],
)
def test_style(root, command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)
