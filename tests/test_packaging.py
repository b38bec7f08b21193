"""Protects installing one package: its wheel alone, in an empty environment, imports and works outside of the tree.

Other tests run with the whole workspace installed. They do not notice a dependency that is not declared, a file that is
not shipped, or wrong bounds on the version of a member.
"""

import sys
import zipfile

import pytest

USE_MODEL = """
import tempfile
from importlib.metadata import entry_points

import numpy as np
from flax import nnx

import scratch_core
from scratch_core.testing import random_batch

for entry in entry_points(group="scratch.models"):
    spec = entry.load()
    config = spec.config("tiny")
    model = spec.model()(config, rngs=nnx.Rngs(0))
    model.eval()
    batch = random_batch(spec.task, config, 1)
    inputs = [batch[name] for name in ("images", "input_ids", "x", "edge_index") if name in batch]
    if spec.task == "seq2seq":
        inputs.append(model.decoder_inputs(batch["labels"]))
    forward = nnx.jit(lambda model, *inputs: model(*inputs))
    before = forward(model, *inputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder + "/saved")
        loaded = scratch_core.load(folder + "/saved")
    np.testing.assert_array_equal(before, forward(loaded, *inputs))
    assert np.isfinite(before).all()
"""

USE = {
    "scratch-core": """
import subprocess, sys
from pathlib import Path

import numpy as np

from scratch_core.data import digits
from scratch_core.registry import installed

assert installed() == {}
command = Path(sys.prefix) / ("Scripts" if sys.platform == "win32" else "bin") / "scratch"
assert "train" in subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout
""",
    "scratch-optim": """
import jax.numpy as jnp
from scratch_core.train import find_optimizer
from scratch_optim import distributed_shampoo, evaluation_parameters, schedule_free_sgd

params = jnp.ones((3, 2))
for optimizer in (schedule_free_sgd(0.1), distributed_shampoo(0.1, start=1)):
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert float(jnp.abs(updates).max()) > 0
assert find_optimizer("schedule-free-adamw").schedule == "constant"
""",
    "scratch-classical": """
import numpy as np
from scratch_classical import Ridge

x = np.arange(12.0).reshape(6, 2) % 5
fitted = Ridge(alpha=1e-6).fit(x, x @ [2.0, -1.0] + 3.0)
np.testing.assert_allclose(fitted.coef_, [2.0, -1.0], atol=1e-4)
""",
}

IMPORT_EVERYTHING = """
import importlib, pkgutil
from importlib.metadata import distributions

package = importlib.import_module("{module}")
assert {tree!r} not in package.__file__, package.__file__
for module in pkgutil.walk_packages(package.__path__, "{module}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
ours = {{d.name for d in distributions() if d.name.startswith("scratch")}}
assert ours == {members!r}, ours
"""


@pytest.fixture(scope="session")
def pins(root, uv, run, tmp_path_factory):
    """The versions of the lockfile: those that are developed with, and that are in uv's cache."""
    path = tmp_path_factory.mktemp("pins") / "constraints.txt"
    everything = [
        "--all-packages",
        "--all-extras",
        "--no-emit-workspace",
        "--no-hashes",
        "--no-annotate",
        "--no-header",
    ]
    run([*uv, "export", "--quiet", "--frozen", *everything, "--output-file", path], cwd=root)
    return path


def test_a_wheel_ships_what_it_should(package, wheels):
    names = zipfile.ZipFile(wheels[package.name]).namelist()
    source = package.folder / "src"
    wanted = {
        p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert wanted <= set(names)
    assert {name.split("/")[0] for name in names} == {
        package.module,
        f"{wheels[package.name].stem.split('-py3')[0]}.dist-info",
    }


@pytest.fixture(scope="session")
def environment(uv, run, tmp_path_factory):
    """An environment that holds one package at a time; dependencies of several are compiled to bytecode once."""
    folder = tmp_path_factory.mktemp("environment")
    run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], cwd=folder.parent)
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def test_a_wheel_installed_alone_works(package, packages, root, wheels, pins, environment, uv, run, tmp_path):
    """Members are installed from their wheels too: their bounds are resolved as any installer would resolve them."""
    members, wanted, exact = (tmp_path / name for name in ("members.txt", "wanted.txt", "exact.txt"))
    members.write_text("".join(f"{name} @ {path.as_uri()}\n" for name, path in wheels.items()))
    wanted.write_text(f"{package.name} @ {wheels[package.name].as_uri()}\n")
    resolve = [*uv, "pip", "compile", "--quiet", "--python", environment, "--constraint", pins, "--constraint", members]
    run([*resolve, "--output-file", exact, wanted], cwd=tmp_path)
    run([*uv, "pip", "sync", "--quiet", "--python", environment, exact], cwd=tmp_path)

    needed = {package.name} | {
        p.name for p in packages if any(r.startswith(p.name) for r in package.project["dependencies"])
    }
    outside = tmp_path / "outside"
    outside.mkdir()
    script = IMPORT_EVERYTHING.format(module=package.module, tree=str(root), members=needed)
    assert package.models or package.name in USE, f"add a script that uses {package.name} to USE, above"
    script += USE_MODEL if package.models else USE[package.name]
    (outside / "use.py").write_text(script, encoding="utf-8")
    run([environment, "-P", "use.py"], cwd=outside, JAX_PLATFORMS="cpu")
