"""After the import jaxlib computes right numbers, or a warning says how. Each case needs a new process."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from scratch_classical import xla_flags

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
JAXLIB = version("jaxlib")
SETTING = xla_flags.SETTING
faulty = pytest.mark.skipif(JAXLIB not in xla_flags.FAULTY_JAXLIBS, reason=f"jaxlib {JAXLIB} is not known to be faulty")

# The squared lengths of A x for 32,769 rows x, compared with numpy in float64: print the largest difference.
PRODUCT = """
import jax, jax.numpy as jnp, numpy as np
random = np.random.default_rng(0)
A, X = random.standard_normal((3, 3)).astype(np.float32), random.standard_normal((32769, 3)).astype(np.float32)
found = jax.jit(jax.vmap(lambda row: jnp.sum((A @ row) ** 2)))(X)
print(np.abs(found - ((X.astype(float) @ A.T.astype(float)) ** 2).sum(1)).max())
"""
PRINTED = """
import os, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {statement}
print([str(w.message) for w in caught if "fusions" in str(w.message)])
print(os.environ.get("XLA_FLAGS", ""))
"""
IMPORT = PRINTED.format(statement="import scratch_classical")
IMPORT_FLAGS = PRINTED.format(statement=f"import runpy; runpy.run_path({xla_flags.__file__!r})")  # without sklearn
START_BACKEND = "import jax; jax.devices()\n"


def lines_of(program, **environment):
    """Run a program without our own XLA_FLAGS and compilation cache, and return what it prints."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    env = {**inherited, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_product_is_right_after_the_import():
    warned, flags, difference = lines_of(IMPORT + PRODUCT)
    assert (warned, flags) == ("[]", SETTING if JAXLIB in xla_flags.FAULTY_JAXLIBS else "")
    assert float(difference) < 1e-3


@pytest.mark.skipif(JAXLIB != "0.10.2", reason=f"jaxlib {JAXLIB} computes this product right without the flag")
def test_the_product_is_wrong_without_the_import():
    """Without this the test above would prove nothing."""
    assert float(lines_of(PRODUCT)[-1]) > 1


@faulty
def test_flags_of_the_user_stay():
    flags = "--xla_cpu_enable_fast_math=false"
    assert lines_of(IMPORT_FLAGS, XLA_FLAGS=flags) == ["[]", f"{flags} {SETTING}"]
    assert lines_of(START_BACKEND + IMPORT_FLAGS, XLA_FLAGS=FLAG) == ["[]", FLAG]


@faulty
def test_a_backend_that_has_started_gives_a_warning_with_the_line_to_set():
    warned, flags = lines_of(START_BACKEND + IMPORT)
    assert f'export XLA_FLAGS="{SETTING}"' in warned
    assert flags == ""


@pytest.mark.skipif(JAXLIB in xla_flags.FAULTY_JAXLIBS, reason=f"jaxlib {JAXLIB} needs the flag")
def test_other_versions_are_left_alone_when_the_backend_has_started():
    assert lines_of(START_BACKEND + IMPORT_FLAGS) == ["[]", ""]
