"""Protects a release: a tag releases the version that it names, and the package's metadata names the repository."""

import subprocess
import sys
import tomllib

import pytest


def release(root, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, root / "shared/tools/release.py", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def copies(packages, tmp_path):
    """A folder with only the pyproject.toml of every package."""
    for package in packages:
        (tmp_path / package.name).mkdir()
        text = (package.folder / "pyproject.toml").read_text(encoding="utf-8")
        (tmp_path / package.name / "pyproject.toml").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_tag_of_the_version_releases_the_package(root, package, copies):
    tag = f"{package.name}-v{package.project['version']}"
    done = release(root, tag, "--packages", copies, "--repository", "https://example.org/scratch/")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{package.name}\n", "")
    project = tomllib.loads((copies / package.name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = project.pop("urls")
    assert urls.pop("Repository") == "https://example.org/scratch"
    assert urls.pop("Issues") == "https://example.org/scratch/issues"
    assert urls.pop("Changelog") == f"https://example.org/scratch/blob/{tag}/packages/{package.name}/CHANGELOG.md"
    assert urls == package.project.get("urls", {})
    assert project == {key: value for key, value in package.project.items() if key != "urls"}


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("scratch-llama-v99.0.0", "is of version 99.0.0, but scratch-llama is at"),
        ("scratch-nothing-v0.1.0", "not a package; the packages are: scratch-bert, scratch-classical"),
        ("v0.1.0", "is not <distribution>-v<version>"),
        ("scratch-llama-v0.1", "is not <distribution>-v<version>"),
        ("scratch-../llama-v0.1.0", "is not <distribution>-v<version>"),
    ],
)
def test_another_tag_is_refused(root, copies, tag, reason):
    before = (copies / "scratch-llama/pyproject.toml").read_bytes()
    done = release(root, tag, "--packages", copies, "--repository", "https://example.org/scratch")
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert (copies / "scratch-llama/pyproject.toml").read_bytes() == before
