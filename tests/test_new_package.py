"""Protects ``shared/tools/new_package.py``: a new package is complete and passes its tests; nothing else changes."""

import shutil
import subprocess
import sys


def call(root, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, root / "shared/tools/new_package.py", *arguments], capture_output=True, text=True
    )


def test_a_new_package_passes_its_tests(root, tmp_path, uv, run):
    done = call(root, "aardvark", "--packages", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| [scratch-aardvark](packages/scratch-aardvark) |" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["scratch-aardvark"]
    folder = tmp_path / "scratch-aardvark"
    assert (folder / "src/scratch_aardvark/py.typed").is_file()
    assert "emplate" not in "".join(p.read_text() for p in folder.rglob("*") if p.is_file())

    ruff = [sys.executable, "-m", "ruff"]
    run([*ruff, "check", "--config", root / "pyproject.toml", folder], cwd=tmp_path)
    run([*ruff, "format", "--check", "--config", root / "pyproject.toml", folder], cwd=tmp_path)
    # Installed with its entry point, so that the registry finds it, into a folder and not into this environment.
    installed = tmp_path / "installed"
    run([*uv, "pip", "install", "--quiet", "--no-deps", "--target", installed, folder], cwd=tmp_path)
    # This conftest.py checks the shapes of arrays against their names.
    shutil.copy(root / "packages/conftest.py", tmp_path)
    # Without the two longest tests, which take as long as all others together; every real model runs them.
    chosen = ["-k", "not meshes and not overfits"]
    options = ["-q", "-p", "no:cacheprovider", "-c", root / "pyproject.toml", "--rootdir", tmp_path]
    printed = run([sys.executable, "-m", "pytest", *options, *chosen, folder], cwd=tmp_path, PYTHONPATH=str(installed))
    assert " passed" in printed


def test_a_wrong_name_is_refused(root, tmp_path):
    (tmp_path / "scratch-taken").mkdir()
    for name in ("Big", "two-words", "taken", "core", "../up"):
        done = call(root, name, "--packages", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["scratch-taken"]
