"""What a model package's tests call: golden comparisons, decoding, shapes, meshes; each is one call.

Tolerances are those of DESIGN.md for float32 on a CPU, and are never a parameter that a test could loosen,
save where a reference is known to be noisier (``atol``).
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file

from scratch_core import models
from scratch_core.errors import ConfigError
from scratch_core.generation import generate
from scratch_core.losses import causal_lm_loss, image_classification_loss
from scratch_core.models import ModelSpec
from scratch_core.parallel import make_mesh
from scratch_core.train.trainer import LossFunction, Trainer
from scratch_core.weights import load, save, to_hf

LOGITS, LOSS, CACHED = 5e-5, 1e-5, 1e-5


# ------------------------------------------------------------------------------------------------ shapes

SUFFIX = re.compile(r"[a-z0-9]_([A-Z]+)$")


def _check_frame(frame: Any, event: str, _: Any) -> Any:
    """A tracing function: on the call of a ``scratch_*`` function return itself, on its return check the names."""
    if event == "call":
        frame.f_trace_lines = False
        return _check_frame if f"{os.sep}scratch_" in frame.f_code.co_filename else None
    if event != "return":
        return _check_frame
    local = frame.f_locals
    size = {k: v for k, v in local.items() if len(k) == 1 and k.isupper() and isinstance(v, int)}
    for name, value in local.items():
        if (found := SUFFIX.search(name)) and hasattr(value, "shape"):
            where = f"{frame.f_code.co_filename}:{frame.f_code.co_name}: {name} has shape {value.shape}"
            assert len(value.shape) == len(found[1]), where
            for letter, n in zip(found[1], value.shape, strict=True):
                assert size.setdefault(letter, n) == n, f"{where}, but {letter}={size[letter]}"
    return _check_frame


@contextlib.contextmanager
def shapes_checked() -> Generator[None]:
    """Check the suffix of every array name within ``scratch_*`` code, tracers too, when its function returns.

    ``x_BTD`` must have three axes, and one letter means one size throughout a call. Nothing is checked under
    a debugger or coverage, which need the same hook.
    """
    if sys.gettrace() is not None:
        yield
        return
    sys.settrace(_check_frame)
    try:
        yield
    finally:
        sys.settrace(None)


# ------------------------------------------------------------------------------------------------ goldens


def read_io(golden: Path) -> dict[str, np.ndarray]:
    """Return the inputs and expected outputs of a golden folder."""
    return load_file(golden / "io.safetensors")


def with_legacy_config(golden: Path, folder: Path) -> Path:
    """Return ``folder``, filled with the golden checkpoint under its config.legacy.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in golden.glob("model*"):
        shutil.copy(path, folder)
    shutil.copy(golden / "config.legacy.json", folder / "config.json")
    return folder


def assert_close(actual: Any, expected: np.ndarray, atol: float, what: str) -> None:
    """Fail unless the arrays have one shape and no difference beyond ``atol``."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    worst = np.abs(actual.astype(np.float64) - expected).max()
    assert worst <= atol, f"{what}: differs by {worst:.2e}, allowed {atol:.0e}"


def jitted(model: nnx.Module, method: str = "__call__") -> Callable[..., Any]:
    """Return a method of the model as one compiled function, which saves tests the compiling of each operation."""
    graphdef, state = nnx.split(model)

    @partial(jax.jit, static_argnames="last_only")
    def call(state: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(nnx.merge(graphdef, state), method)(*args, **kwargs)

    return partial(call, state)


def check_gradients(model: Any, loss: Callable[[Any], jax.Array], io: dict[str, np.ndarray]) -> None:
    """Compare the loss, and its gradients under the reference's names, with ``loss`` and ``grad.*``."""
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    value_and_grad = jax.value_and_grad(lambda parameters: loss(nnx.merge(graphdef, parameters, rest)))
    value, gradients = jax.jit(value_and_grad)(parameters)
    assert_close(value, io["loss"], LOSS, "loss")
    theirs = to_hf(model, gradients)
    names = [name for name in io if name.startswith("grad.")]
    assert names
    for name in names:
        atol = 1e-5 + 1e-4 * np.abs(io[name]).max()
        assert_close(theirs[name.removeprefix("grad.")], io[name], atol, name)


def check_causal_lm(folder: Path, io: dict[str, np.ndarray]) -> None:
    """Compare logits, last hidden state, loss, gradients and greedy tokens of a checkpoint with its golden."""
    model = load(folder)
    ids, mask = io["input_ids"], io["attention_mask"]
    real = mask == 1
    hidden = jitted(model, "hidden")(ids, mask)
    assert_close(np.asarray(hidden)[real], io["last_hidden_state"][real], LOGITS, "last hidden state")
    assert_close(np.asarray(jitted(model)(ids, mask))[real], io["logits"][real], LOGITS, "logits")

    batch = {name: jnp.asarray(io[name]) for name in ("input_ids", "attention_mask", "labels")}
    check_gradients(model, lambda model: jnp.divide(*causal_lm_loss(model, batch)), io)

    prompt, eos = io["gen.input_ids"], int(io["gen.eos_token_id"])
    new = io["generated_ids"].shape[1] - prompt.shape[1]
    np.testing.assert_array_equal(generate(model, prompt, max_new_tokens=new), io["generated_ids"])
    padded = (io["gen_leftpad.input_ids"], io["gen_leftpad.attention_mask"])
    np.testing.assert_array_equal(generate(model, *padded, max_new_tokens=new), io["generated_ids_leftpad"])
    stopped = generate(model, prompt, max_new_tokens=new, eos_token_id=eos)
    np.testing.assert_array_equal(stopped, io["generated_ids_eos"])


def check_round_trip(golden: Path, folder: Path) -> None:
    """Import, export into ``folder``, import and export again: the same bytes per tensor all along."""
    original = read_tensors(golden)
    for name in ("once", "twice"):
        save(load(golden), folder / name)
        golden = folder / name
        again = read_tensors(golden)
        assert again.keys() == original.keys()
        for key, tensor in original.items():
            assert (again[key].dtype, again[key].shape) == (tensor.dtype, tensor.shape), key
            assert again[key].tobytes() == tensor.tobytes(), key


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a checkpoint folder, by their names in the files."""
    return {
        key: tensor for path in sorted(folder.glob("model*.safetensors")) for key, tensor in load_file(path).items()
    }


# ------------------------------------------------------------------------------------------------ decoding


def check_decoding(model: Any, seed: int = 0) -> None:
    """Cached = uncached, in chunks of any length; a padded row = the row alone, whatever stands at the pads."""
    B, T = 3, 23
    forward, decode = jitted(model), jitted(model, "decode")
    ids_BT = np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)).astype(np.int32)
    expected_BTV = np.asarray(forward(ids_BT))
    for chunks in ([T], [1] * T, [7, 1, 4, 11]):
        cache, parts, start = model.init_cache(B, T + 5), [], 0
        for length in chunks:
            logits, cache = decode(ids_BT[:, start : start + length], cache)
            parts.append(np.asarray(logits))
            start += length
        assert_close(np.concatenate(parts, axis=1), expected_BTV, CACHED, f"decoding in chunks of {chunks}")

    lengths = [T, 9, 16]
    for side in ("left", "right"):
        mask_BT = np.zeros((B, T), np.int32)
        padded_BT = ids_BT[::-1].copy()
        for row, length in enumerate(lengths):
            real = slice(T - length, T) if side == "left" else slice(0, length)
            mask_BT[row, real], padded_BT[row, real] = 1, ids_BT[row, :length]
        full_BTV = np.asarray(forward(padded_BT, mask_BT))
        cache = model.init_cache(B, T + 5)
        prefill_BTV, cache = decode(padded_BT, cache, mask_BT)
        last_B1V, _ = decode(padded_BT, model.init_cache(B, T + 5), mask_BT, last_only=True)
        going_on = np.repeat(ids_BT[:, :1], 2, axis=1)
        more, _ = decode(going_on, cache)
        assert np.isfinite(full_BTV).all()
        for row, length in enumerate(lengths):
            alone = np.concatenate([ids_BT[row : row + 1, :length], going_on[row : row + 1]], axis=1)
            by_itself = np.asarray(forward(alone))[0]
            real = mask_BT[row] == 1
            what = f"row of {length}, padded on the {side}"
            assert_close(full_BTV[row, real], by_itself[:length], CACHED, what)
            assert_close(np.asarray(prefill_BTV)[row, real], by_itself[:length], CACHED, f"{what}, decoded")
            assert_close(np.asarray(last_B1V)[row], by_itself[length - 1 : length], CACHED, f"{what}, last logits")
            assert_close(np.asarray(more)[row], by_itself[length:], CACHED, f"{what}, going on")


def check_causal(model: Any, seed: int = 0) -> None:
    """Changing a token moves logits from there on, and none before."""
    T = 12
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, T)).astype(np.int32)
    changed = ids.copy()
    changed[0, 7] = (changed[0, 7] + 1) % model.config.vocab_size
    forward = jitted(model)
    moved = np.abs(np.asarray(forward(ids)) - np.asarray(forward(changed)))[0].max(axis=-1)
    assert (moved[:7] == 0).all()
    assert (moved[7:] > 1e-6).all()


def count_traces(model: Any, run: Callable[[], Any]) -> int:
    """Return how often ``run`` made JAX trace ``model.decode``: once per compiled program."""
    kind, traces = type(model), 0
    original = kind.decode

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal traces
        traces += 1
        return original(*args, **kwargs)

    kind.decode = counted
    try:
        run()
    finally:
        kind.decode = original
    return traces


def check_two_traces(model: Any) -> None:
    """Prompts of any length within a bucket, and any number of new tokens, share two compiled programs."""

    def run() -> None:
        for length, new in ((17, 5), (30, 16), (32, 3)):
            ids = np.ones((2, length), np.int32)
            generate(model, ids, max_new_tokens=new)

    jax.clear_caches()
    assert count_traces(model, run) == 2


# ------------------------------------------------------------------------------------------------ training


def overfit_one_batch(model: Any, loss_fn: LossFunction, batch: Any, *, steps: int = 60, rate: float = 3e-3) -> float:
    """Train on one batch with Adam; fail unless the loss falls below a tenth. A step that is not finite fails too."""
    trainer = Trainer(model, optax.adam(rate), loss_fn, max_skipped=1)
    before = trainer.evaluate([batch])["loss"]
    trainer.fit([batch] * steps, steps)
    after = trainer.evaluate([batch])["loss"]
    assert after < 0.1 * before, f"loss {before:.3f} fell only to {after:.3f} in {steps} steps"
    return after


MESHES = {"1x1": (1, 1), "8x1": (8, 1), "1x4": (1, 4), "4x2": (4, 2)}


def check_meshes(name: str) -> None:
    """Three training steps of a model's tiny preset on meshes of simulated devices give one device's losses.

    Runs in a process of its own with 8 devices. The meshes split fsdp x tensor as 8x1, 1x4 and 4x2.
    """
    command = [sys.executable, "-m", "scratch_core.testing", name]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr
    losses = json.loads(run.stdout.splitlines()[-1])
    assert losses.keys() == MESHES.keys()
    for mesh, values in losses.items():
        assert_close(values, np.array(losses["1x1"]), 1e-5, f"losses of 3 steps on mesh {mesh}")
    assert len(set(losses["1x1"])) == 3, f"the losses do not move: {losses['1x1']}"


def random_batch(spec: ModelSpec, config: Any, batch_size: int = 8) -> tuple[LossFunction, dict[str, np.ndarray]]:
    """Return the loss function of a model's task and a batch of noise for it, always the same."""
    rng = np.random.default_rng(0)
    if spec.task == "causal_lm":
        return causal_lm_loss, {"input_ids": rng.integers(0, config.vocab_size, (batch_size, 32)).astype(np.int32)}
    if spec.task == "image_classification":
        size, channels = getattr(config, "image_size", 32), config.num_channels
        images = rng.normal(size=(batch_size, size, size, channels)).astype(np.float32)
        labels = rng.integers(0, config.num_classes, batch_size).astype(np.int32)
        return image_classification_loss, {"images": images, "labels": labels}
    raise ConfigError(f"no batch of noise is known for the task {spec.task!r}")


def _mesh_losses(name: str, size: tuple[int, int]) -> list[float]:
    spec = models.find(name)
    config = spec.config("tiny")
    loss_fn, batch = random_batch(spec, config)
    model = spec.models[0](config, rngs=nnx.Rngs(0))
    trainer = Trainer(model, optax.adam(1e-2), loss_fn, mesh=make_mesh(fsdp=size[0], tensor=size[1]))
    losses = []
    for step in range(3):
        losses.append(trainer.evaluate([batch])["loss"])
        trainer.fit([batch] * 3, step + 1)
    return losses


if __name__ == "__main__":
    print(json.dumps({mesh: _mesh_losses(sys.argv[1], size) for mesh, size in MESHES.items()}))
