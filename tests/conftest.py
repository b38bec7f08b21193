"""What the root tests share: where the tree is, which packages it holds, and how to call uv and git.

A test that takes ``package`` runs once for every folder in ``packages/``; one that takes ``model_package`` once for
every package that registers a model.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from scratch_core import compiler
from scratch_core.testing.compilation import compile_quickly

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Package:
    """One folder of ``packages/``, as its pyproject.toml describes it."""

    folder: Path

    @cached_property
    def pyproject(self) -> dict:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def project(self) -> dict:
        return self.pyproject["project"]

    @property
    def name(self) -> str:
        return self.project["name"]

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def models(self) -> dict[str, str]:
        """Its entry points for models; empty unless it is a model package."""
        return self.project.get("entry-points", {}).get("scratch.models", {})

    @property
    def extras(self) -> list[str]:
        return [r for group in self.project.get("optional-dependencies", {}).values() for r in group]

    @property
    def dev(self) -> list[str]:
        return [r for r in self.pyproject.get("dependency-groups", {}).get("dev", []) if isinstance(r, str)]


PACKAGES = [Package(p.parent) for p in sorted(ROOT.glob("packages/*/pyproject.toml"))]


def pytest_configure(config: pytest.Config) -> None:
    """Let all workers, and the processes that they start, share a compilation cache."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    compile_quickly()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With ``--durations``, also print how long the tests of each package took."""
    if not config.getoption("durations"):
        return
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                parts = Path(report.nodeid.partition("::")[0]).parts
                seconds[parts[1] if parts[0] == "packages" else parts[0]] += report.duration
    terminalreporter.section("seconds of each package, over all workers")
    for name, total in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{total:8.1f}  {name}")


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the session with the reason if the compiler is faulty, as in packages/conftest.py."""
    if hasattr(session.config, "workerinput"):
        return
    if fault := compiler.product_fault(compiler.faulty_product_error()):
        pytest.exit(fault, returncode=1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``package`` and ``model_package`` their values, named by package."""
    for argument, chosen in (("package", PACKAGES), ("model_package", [p for p in PACKAGES if p.models])):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, chosen, ids=[p.name for p in chosen])


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the tree."""
    return ROOT


@pytest.fixture(scope="session")
def packages() -> list[Package]:
    """Every package, in the order of its name."""
    return PACKAGES


def run(command: list, cwd: Path, **environment: str) -> str:
    """Run a command outside of our virtual environment; return what it prints, or fail with it."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT")
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(map(str, command))}\nexited with {done.returncode} and printed:\n{done.stdout}", pytrace=False
        )
    return done.stdout


@pytest.fixture(scope="session", name="run")
def run_fixture():
    """The function above as a fixture, because root tests are not a Python package and cannot import it."""
    return run


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Return the runnable blocks of a language: the number of each one's first line, and its text."""
    fence = re.compile(
        rf"^(`{{3,}}){language}[ \t]+(?:[^\n`]*[ \t])?run\b[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL
    )
    return [(text.count("\n", 0, found.start(2)) + 1, found[2]) for found in fence.finditer(text)]


@pytest.fixture(scope="session", name="blocks")
def blocks_fixture():
    """The function above as a fixture."""
    return blocks


@pytest.fixture(scope="session")
def uv() -> list[str]:
    """The command that starts uv: the uv that started this process, else one on the path, else this Python's."""
    if path := os.environ.get("UV") or shutil.which("uv"):
        return [path]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    pytest.skip("uv is not installed")


@pytest.fixture(scope="session")
def git(root):
    """A function that runs git in the tree and returns the bytes it prints; skips where there is no checkout."""
    if not (root / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")

    def call(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=root, check=True, stdout=subprocess.PIPE).stdout

    return call


@pytest.fixture(scope="session")
def files(git, root) -> list[Path]:
    """Every file that is committed, or that ``git add .`` would add."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    return sorted({root / name for name in listed if name and (root / name).is_file()})


@pytest.fixture(scope="session")
def wheels(uv, root, tmp_path_factory, worker_id) -> dict[str, Path]:
    """A wheel of every package, by the package's name; the first of the session's workers builds them for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "wheels"
    with FileLock(folder.with_suffix(".lock")):
        if not list(folder.glob("*.whl")):
            run([*uv, "build", "--quiet", "--wheel", "--all-packages", "--out-dir", folder], cwd=root)
    return {re.split("-", p.name)[0].replace("_", "-"): p for p in folder.glob("*.whl")}
