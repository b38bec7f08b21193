"""50 steps of the schedulefree package, and of a float64 reference of Shampoo in numpy: every iterate agrees."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from scratch_optim import evaluation_parameters, schedule_free_adamw, schedule_free_sgd, shampoo

GOLDEN = Path(__file__).parent / "golden"
SCHEDULE_FREE = json.loads((GOLDEN / "schedule-free" / "config.json").read_text())
SHAMPOO = json.loads((GOLDEN / "shampoo" / "config.json").read_text())


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def assert_iterates(found, io, name, tolerance):
    """Compare each step's arrays with the reference's, relative to the largest number of the run."""
    for parameter, values in found.items():
        expected = io[f"{name}.{parameter}"]
        error = np.abs(np.stack(values) - expected).max() / np.abs(expected).max()
        assert error < tolerance, f"{name}.{parameter}: {error:.1e}"


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_equals_the_package(name):
    io, settings = load_file(GOLDEN / "schedule-free" / "io.safetensors"), dict(SCHEDULE_FREE[name])
    shared = {key: settings[key] for key in ("r", "warmup_steps", "weight_decay", "weight_lr_power")}
    if "betas" in settings:
        b1, b2 = settings["betas"]
        optimizer = schedule_free_adamw(settings["lr"], b1=b1, b2=b2, eps=settings["eps"], **shared)
    else:
        optimizer = schedule_free_sgd(settings["lr"], momentum=settings["momentum"], **shared)
    if settings["problem"] == "logistic":
        X, labels = io["logistic.X"], io["logistic.y"]
        params = {"W": jnp.asarray(io["logistic.W0"]), "b": jnp.asarray(io["logistic.b0"])}

        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(X @ p["W"] + p["b"], labels).mean()
    else:
        A, c = io["quadratic.A"], io["quadratic.c"]
        params = {"x": jnp.asarray(io["quadratic.x0"])}

        def loss(p):
            return 0.5 * p["x"] @ A @ p["x"] - c @ p["x"]

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, evaluation_parameters(state, params)

    state, found = optimizer.init(params), {}
    for _ in range(settings["steps"]):
        params, state, average = step(params, state)
        for sequence, tree in (("x", average), ("y", params), ("z", state.z)):
            for parameter, value in tree.items():
                found.setdefault(f"{sequence}.{parameter}", []).append(np.asarray(value))
    assert_iterates(found, io, name, 1e-10)


@pytest.mark.parametrize("name", SHAMPOO)
def test_shampoo_equals_the_reference(name):
    io, settings = load_file(GOLDEN / "shampoo" / "io.safetensors"), SHAMPOO[name]
    A, c, w = io[f"{name}.A"], io[f"{name}.c"], jnp.asarray(io[f"{name}.W0"])
    optimizer = shampoo(
        settings["lr"],
        epsilon=settings["eps"],
        graft=settings.get("graft"),
        momentum=settings.get("momentum", 0.0),
    )

    @jax.jit
    def step(w, state):
        gradient = jax.grad(lambda w: 0.5 * w.ravel() @ A @ w.ravel() - c @ w.ravel())(w)
        updates, state = optimizer.update(gradient, state)
        return w + updates, state

    state, found = optimizer.init(w), {}
    for _ in range(settings["steps"]):
        w, state = step(w, state)
        found.setdefault("W", []).append(np.asarray(w))
        for axis, axis_state in enumerate(state.parameters[0].axes):
            found.setdefault(f"H{axis}", []).append(np.asarray(axis_state.statistics_SS))
    assert_iterates(found, io, name, 1e-8)
