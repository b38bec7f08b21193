"""Sharded input gives the same result, and the search for neighbours needs little memory; each in a new process."""

import os
import subprocess
import sys

SHARDED = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
from jax.sharding import NamedSharding, PartitionSpec
from scratch_classical import KNeighborsClassifier, LogisticRegression, Ridge
from scratch_classical import solve_ridge, solve_logistic_regression
assert len(jax.devices()) == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
random = np.random.default_rng(0)
X = random.standard_normal((4096, 12)) + 2
y = X @ random.standard_normal(12) + random.standard_normal(4096)
labels = (y > y.mean()).astype(int)
sharded = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
assert len(sharded.devices()) == 8
for model, target in ((Ridge(), y), (LogisticRegression(tol=1e-9), labels)):
    alone, apart = type(model)(**model.get_params()).fit(X, target), model.fit(sharded, target)
    np.testing.assert_allclose(apart.coef_, alone.coef_, rtol=1e-6)
    np.testing.assert_allclose(apart.intercept_, alone.intercept_, rtol=1e-6)
np.testing.assert_allclose(solve_ridge(sharded, y)[0], solve_ridge(X, y)[0], rtol=1e-9)
np.testing.assert_allclose(
    solve_logistic_regression(sharded, labels)[0], solve_logistic_regression(X, labels)[0], rtol=1e-6
)
alone, apart = (KNeighborsClassifier().fit(data, labels) for data in (X, sharded))
queries = random.standard_normal((200, 12)) + 2
np.testing.assert_array_equal(apart.kneighbors(queries)[1], alone.kneighbors(queries)[1])
np.testing.assert_array_equal(apart.predict(queries), alone.predict(queries))
print("same")
"""

MEMORY = """
import resource, numpy as np, jax.numpy as jnp
from scratch_classical import KNeighborsClassifier
random = np.random.default_rng(0)
small = random.standard_normal((4096, 64))
KNeighborsClassifier().fit(small, np.arange(4096) % 3).kneighbors(small[:2000])  # the compiler's own memory
X, queries = random.standard_normal((50_000, 64)), random.standard_normal((2_000, 64))
labels = np.arange(50_000) % 3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
KNeighborsClassifier().fit(X, labels).kneighbors(queries)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def output_of(program):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_eight_devices_give_the_same_result():
    assert output_of(SHARDED) == "same"


def test_neighbours_stay_within_200_megabytes():
    assert float(output_of(MEMORY)) < 200
