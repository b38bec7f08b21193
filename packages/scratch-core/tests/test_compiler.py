"""The compiler's fault is switched off in time, and only where it exists.

The tests start new processes, because XLA reads its flags once.
"""

import os
import subprocess
import sys
from importlib import metadata

import pytest
from scratch_core import compiler

VERSION = metadata.version("jaxlib")
FAULTY = VERSION in compiler.FAULTY_JAXLIBS
only_faulty = pytest.mark.skipif(not FAULTY, reason=f"the fault is in jaxlib {', '.join(compiler.FAULTY_JAXLIBS)} only")

# Loads compiler.py without scratch_core's __init__, which would switch the fault off.
PROBE_ALONE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("alone", {compiler.__file__!r})
alone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)
print(alone.faulty_product_error())
"""


def python(code, flags=None):
    """Run ``code`` in a new process with XLA_FLAGS set to ``flags`` (None: not set); return its stdout and stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", **({} if flags is None else {"XLA_FLAGS": flags})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@only_faulty
def test_the_probe_finds_the_fault():
    """Without the flag the numbers are wrong. This shows that the tests below can fail."""
    out, _ = python(PROBE_ALONE)
    assert not float(out) < 0.1
    assert compiler.SETTING in compiler.product_fault(float(out))


def test_numbers_are_right_after_the_import():
    """They are right too if JAX is imported first, and in a child process. scratch_core does not import JAX."""
    code = """
import subprocess, sys
import scratch_core
assert "jax" not in sys.modules
from scratch_core.compiler import faulty_product_error
print(faulty_product_error())
"""
    child = f"import scratch_core, subprocess, sys\nsubprocess.run([sys.executable, '-c', {PROBE_ALONE!r}], check=True)"
    for program in (code, "import jax\nimport jax.numpy\n" + code.replace("assert", "#"), child):
        out, error = python(program)
        assert float(out) < 1e-5
        assert "Warning" not in error


def test_the_flag_is_set_for_the_faulty_version_only():
    code = "import os, scratch_core; print(os.environ.get('XLA_FLAGS'))"
    assert python(code)[0].strip() == (compiler.SETTING if FAULTY else "None")
    other = "--xla_force_host_platform_device_count=2"
    assert python(code, other)[0].strip() == (f"{other} {compiler.SETTING}" if FAULTY else other)


@pytest.mark.parametrize("value", ["", "LIBRARY_FUSION_TYPE_REDUCE"])
def test_a_flag_that_the_user_sets_is_left(value):
    given = f"--xla_force_host_platform_device_count=2 {compiler.FLAG}{value}"
    start = "import jax; jax.devices(); " if not value else ""
    out, error = python(f"{start}import os, scratch_core; print(os.environ['XLA_FLAGS'])", given)
    assert out.strip() == given
    assert "Warning" not in error


@only_faulty
def test_a_backend_that_started_first_is_warned_about():
    code = "import jax\njax.numpy.zeros(3)\nimport os, scratch_core\nprint(os.environ.get('XLA_FLAGS'))"
    out, error = python(code)
    assert out.strip() == "None"
    assert error.startswith(f"<string>:3: RuntimeWarning: jaxlib {VERSION} computes wrong numbers on a CPU")
    assert f'export XLA_FLAGS="{compiler.SETTING}"' in error
    _, error = python(code, "--xla_force_host_platform_device_count=2")
    assert f'export XLA_FLAGS="--xla_force_host_platform_device_count=2 {compiler.SETTING}"' in error


@only_faulty
def test_a_file_of_flags_is_read_and_not_spoilt(tmp_path):
    """XLA_FLAGS may name a file. If anything were added to the name, JAX would end the process: no such file."""
    file = tmp_path / "flags"
    file.write_text("--xla_force_host_platform_device_count=2\n")
    code = "import os, scratch_core\nprint(os.environ['XLA_FLAGS'], len(__import__('jax').devices()))"
    out, error = python(code, str(file))
    assert out.split() == [str(file), "2"]
    assert f"add this as a line of {file}, the file that XLA_FLAGS names: {compiler.SETTING}" in error
    file.write_text(file.read_text() + compiler.SETTING + "\n")
    out, error = python(code, str(file))
    assert out.split() == [str(file), "2"]
    assert "Warning" not in error


def test_another_version_or_none_changes_nothing(monkeypatch):
    for version in ("0.10.1", "0.12.0.1", "0.13.0", None):
        monkeypatch.setattr(compiler, "jaxlib_version", lambda version=version: version)
        monkeypatch.setenv("XLA_FLAGS", "")
        compiler.avoid_faulty_fusions()
        assert os.environ["XLA_FLAGS"] == ""


def test_an_error_beyond_rounding_is_a_fault(monkeypatch):
    assert compiler.product_fault(1e-6) is None
    assert "off by 9.0e-01" in compiler.product_fault(0.9)
    assert compiler.product_fault(float("nan"))
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.13.0")
    assert "this is 0.13.0" in compiler.product_fault(0.9)


def test_this_process_computes_right():
    assert compiler.product_fault(compiler.faulty_product_error()) is None
