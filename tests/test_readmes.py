"""Protects the READMEs: the code that they show runs.

A fenced block runs if its info string says so: ```` ```python run ```` or ```` ```console run ````. All Python blocks
of a README run in order as one script, in an empty folder; then, in the same folder, the lines of its console blocks
that start with ``$ ``, with this environment's commands on the path.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]


@pytest.mark.parametrize("readme", READMES, ids=[p.parent.name if p.parent != ROOT else "root" for p in READMES])
def test_runnable_blocks_run(readme, blocks, run, tmp_path):
    text = readme.read_text(encoding="utf-8")
    python, console = blocks(text, "python"), blocks(text, "console")
    if not python and not console:
        pytest.skip("no block is marked to run")
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MPLBACKEND": "agg",
        "JAX_PLATFORMS": "cpu",
    }
    if python:
        # Blank lines between the blocks, so that a traceback has the README's line numbers.
        lines = [""] * text.count("\n")
        for first, block in python:
            code = block.splitlines()
            lines[first - 1 : first - 1 + len(code)] = code
        script = tmp_path / "README.py"
        script.write_text("\n".join(lines), encoding="utf-8")
        run([sys.executable, "-P", script], cwd=folder, **environment)
    for _, block in console:
        for line in block.splitlines():
            if line.startswith("$ "):
                run(["bash", "-c", line.removeprefix("$ ")], cwd=folder, **environment)


def test_only_marked_blocks_are_runnable(blocks):
    text = (
        "```python\na\n```\n\n```python run\nb\n\nc\n```\n```console title=x run\n$ d\n```\n````python run\n```\n````\n"
    )
    assert blocks(text, "python") == [(6, "b\n\nc\n"), (14, "```\n")]
    assert blocks(text, "console") == [(11, "$ d\n")]
    assert blocks("```python runs\na\n```\n", "python") == []
