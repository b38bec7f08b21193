"""Protects the lockfile: it pins everything and names no package index, so that it installs from any.

The committed form and the way back are described in ``shared/tools/lockfile.py``.
"""

import subprocess
import sys
import tomllib

import pytest


@pytest.fixture
def committed(git) -> bytes:
    """The bytes of uv.lock in git's index, which the next commit will hold."""
    return git("show", ":uv.lock")


def clean(root, lock: bytes) -> bytes:
    """Run the filter as git would."""
    tool = [sys.executable, root / "shared/tools/lockfile.py", "clean"]
    return subprocess.run(tool, input=lock, check=True, stdout=subprocess.PIPE).stdout


def test_the_committed_lockfile_holds_no_address(committed):
    assert b"://" not in committed
    assert b"[manifest]" not in committed


def test_cleaning_the_working_copy_gives_the_committed_bytes(root, committed):
    """Fails if a dependency changed and the lock was not committed, or was committed without the filter."""
    cleaned = clean(root, (root / "uv.lock").read_bytes())
    assert cleaned == committed, "uv.lock changed: set the filter up (README.md), then `uv lock` and `git add uv.lock`"


def test_cleaning_twice_changes_nothing(root, committed):
    assert clean(root, committed) == committed


def test_git_applies_the_filter(git):
    assert git("check-attr", "filter", "uv.lock").split()[-1] == b"index-free"


def test_cleaning_removes_addresses_and_keeps_pins(root):
    lock = b"""version = 1

[manifest]
members = [
    "scratch",
]

[[package]]
name = "some-library"
version = "1.2.3"
source = { registry = "https://index.invalid/packages" }
wheels = [
    { url = "https://files.invalid/a/b/some_library-1.2.3-py3-none-any.whl", hash = "sha256:0123", size = 7 },
]
"""
    assert (
        clean(root, lock)
        == b"""version = 1

[[package]]
name = "some-library"
version = "1.2.3"
source = { registry = "index" }
wheels = [
    { path = "some_library-1.2.3-py3-none-any.whl", hash = "sha256:0123", size = 7 },
]
"""
    )


def test_every_package_is_locked_with_hashes(root, packages):
    locked = tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))["package"]
    ours = {p["name"]: p for p in locked if "editable" in p["source"]}
    assert sorted(ours) == [p.name for p in packages], "run `uv lock`"
    for package in packages:
        assert ours[package.name]["version"] == package.project["version"], "run `uv lock`"
    for package in locked:
        for file in [*package.get("wheels", []), *filter(None, [package.get("sdist")])]:
            assert file["hash"].startswith("sha256:"), package["name"]


def test_no_other_framework_is_locked(root):
    locked = {p["name"] for p in tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))["package"]}
    assert not locked & {"torch", "torchvision", "transformers", "timm", "tensorflow", "keras"}


def test_uv_restores_the_working_copy_from_the_committed_form(root, packages, uv, run, tmp_path):
    """What happens on a fresh clone: uv resolves again, keeps every pin, and fills in its own index's addresses."""
    lock = (root / "uv.lock").read_bytes()
    if b"://" not in lock:
        pytest.skip("the working copy holds no addresses yet: `uv lock` writes them")
    for folder in [root, *(package.folder for package in packages)]:
        copy = tmp_path / folder.relative_to(root) / "pyproject.toml"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((folder / "pyproject.toml").read_bytes())
    (tmp_path / "uv.lock").write_bytes(clean(root, lock))
    run([*uv, "lock", "--quiet"], cwd=tmp_path)
    assert (tmp_path / "uv.lock").read_bytes() == lock
