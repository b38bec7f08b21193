"""Comparison with the recorded outputs of a reference implementation.

Tolerances are for float32 on a CPU. Tests cannot loosen them, except where a reference is known to be noisier
(``atol``).
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from scratch_core.errors import CheckpointError
from scratch_core.generation import generate
from scratch_core.registry import load
from scratch_core.weights import flatten, save, to_hf

LOGITS, LOSS, CACHED = 5e-5, 1e-5, 1e-5


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
    """Fail unless the arrays have the same shape and differ by at most ``atol``."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    worst = np.abs(actual.astype(np.float64) - expected).max()
    assert worst <= atol, f"{what}: differs by {worst:.2e}, allowed {atol:.0e}"


def jitted(model: nnx.Module, method: str = "__call__") -> Callable[..., Any]:
    """Return a method of the model as one compiled function, so that tests do not compile each operation separately."""
    graphdef, state = nnx.split(model)

    @partial(jax.jit, static_argnames="last_only")
    def call(state: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(nnx.merge(graphdef, state), method)(*args, **kwargs)

    return partial(call, state)


def loss_and_gradients(model: Any, loss: Callable[[Any], jax.Array]) -> tuple[jax.Array, dict[str, np.ndarray]]:
    """Return ``loss(model)``, and its gradients under the reference's names."""
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    value_and_grad = jax.value_and_grad(lambda parameters: loss(nnx.merge(graphdef, parameters, rest)))
    value, gradients = jax.jit(value_and_grad)(parameters)
    return value, to_hf(model, gradients)


def check_gradients(model: Any, loss: Callable[[Any], jax.Array], io: dict[str, np.ndarray]) -> None:
    """Compare the loss, and its gradients under the reference's names, with ``loss`` and ``grad.*``."""
    value, theirs = loss_and_gradients(model, loss)
    assert_close(value, io["loss"], LOSS, "loss")
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
    check_gradients(model, lambda model: jnp.divide(*model.loss(batch)), io)

    prompt, eos = io["gen.input_ids"], int(io["gen.eos_token_id"])
    new = io["generated_ids"].shape[1] - prompt.shape[1]
    np.testing.assert_array_equal(generate(model, prompt, max_new_tokens=new), io["generated_ids"])
    padded = (io["gen_leftpad.input_ids"], io["gen_leftpad.attention_mask"])
    np.testing.assert_array_equal(generate(model, *padded, max_new_tokens=new), io["generated_ids_leftpad"])
    stopped = generate(model, prompt, max_new_tokens=new, eos_token_id=eos)
    np.testing.assert_array_equal(stopped, io["generated_ids_eos"])


def check_round_trip(golden: Path, folder: Path) -> None:
    """Import, export into ``folder``, import and export again; every tensor must keep its bytes."""
    original = read_tensors(golden)
    for name in ("once", "twice"):
        save(load(golden), folder / name)
        golden = folder / name
        again = read_tensors(golden)
        assert again.keys() == original.keys()
        for key, tensor in original.items():
            assert (again[key].dtype, again[key].shape) == (tensor.dtype, tensor.shape), key
            assert again[key].tobytes() == tensor.tobytes(), key


def check_bare_trunk(model: Any, folder: Path, name: str, prefix: str) -> None:
    """Save only the trunk, as transformers does, and load it with a fresh head. The trunk must be unchanged."""
    save(model, folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": [name]}), encoding="utf-8")
    whole = read_tensors(folder)
    bare = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
    more = [key.removeprefix(prefix) for key in model.unread if key.startswith(prefix)]
    unread = {key.replace("*", "weight"): np.zeros(1, np.float32) for key in more}
    save_file(bare | unread, folder / "model.safetensors")
    parts = {path.partition(".")[0] for path in flatten(nnx.state(model, nnx.Param))}
    fresh = tuple(f"{head}.*" for head in ("head", "classifier") if head in parts)  # a tied head is the trunk's
    loaded = to_hf(load(folder, model_class=type(model), fresh=fresh))
    assert loaded.keys() == whole.keys()
    for key, tensor in bare.items():
        np.testing.assert_array_equal(loaded[prefix + key], tensor)
    if fresh:
        try:
            load(folder, model_class=type(model))
            message = "no error"
        except CheckpointError as error:
            message = str(error)
        assert "fresh=(...) names parameters to initialise instead" in message


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a checkpoint folder, by their names in the files."""
    return {
        key: tensor for path in sorted(folder.glob("model*.safetensors")) for key, tensor in load_file(path).items()
    }
