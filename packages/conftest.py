"""All tests run with array shapes checked against their names; each test has its own randomness.

A test session has 8 simulated devices, so that tests of meshes need no process of their own, and a compilation cache
that its workers and child processes share. No test runs if the compiler computes wrong numbers.
"""

import os

import numpy as np
import pytest

pytest.register_assert_rewrite("scratch_core.testing")  # so that a failing contract shows its values

try:
    from scratch_core import compiler
    from scratch_core.testing.compilation import compile_quickly
    from scratch_core.testing.shapes import check_shapes_on_import
except ImportError:  # a package without scratch-core, tested alone
    compiler = None
else:
    compile_quickly()
    check_shapes_on_import()


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the session with the reason if the compiler is faulty; once, and not in every worker of pytest-xdist."""
    if compiler is None or hasattr(session.config, "workerinput"):
        return
    if fault := compiler.product_fault(compiler.faulty_product_error()):
        pytest.exit(fault, returncode=1)


def pytest_configure(config: pytest.Config) -> None:
    """Set JAX up before the first test imports it."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    import jax

    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def _own_cache_folder(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Keep cached tokens out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.rootpath / ".pytest_cache" / "home"))


@pytest.fixture
def random() -> np.random.Generator:
    """A generator for one test: its numbers do not depend on the tests that ran before in the same process."""
    return np.random.default_rng(0)
