"""Training of any model: it overfits one batch, and scanned layers or a mesh of devices give the same losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scratch_core.layers import scan_layers
from scratch_core.parallel import make_mesh
from scratch_core.tasks import find_task
from scratch_core.testing.goldens import assert_close, loss_and_gradients
from scratch_core.train.trainer import Trainer

MESHES = {"1x1": (1, 1), "8x1": (8, 1), "1x4": (1, 4), "4x2": (4, 2)}


def overfit_one_batch(model: Any, batch: Any, *, steps: int = 60, rate: float = 3e-3) -> float:
    """Train on one batch with Adam. Fails unless the loss falls below a tenth, or if a step is not finite."""
    trainer = Trainer(model, optax.adam(rate), max_skipped=1)
    before = trainer.evaluate([batch])["loss"]
    trainer.fit([batch] * steps, steps)
    after = trainer.evaluate([batch])["loss"]
    assert after < 0.1 * before, f"loss {before:.3f} fell only to {after:.3f} in {steps} steps"
    return after


def check_scanned_and_rematerialised(model: Any, batch: Any, folder: Path) -> None:
    """Check that the model's layers, rematerialised and then also scanned, give its loss, gradients and saved file.

    ``folder`` is for the files. The model's layers stay scanned.
    """

    def measure() -> tuple[jax.Array, dict[str, np.ndarray]]:
        return loss_and_gradients(model, lambda model: jnp.divide(*model.loss(batch)))

    loss, gradients = measure()
    model.save_pretrained(folder / "plain")
    model.remat_layers = True
    for scan in (False, True):
        if scan:
            scan_layers(model)
        again, found = measure()
        assert_close(again, np.asarray(loss), 1e-6, "loss")
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_close(found[name], np.asarray(gradient), 1e-6, name)
    model.save_pretrained(folder / "scanned")
    plain, scanned = ((folder / name / "model.safetensors").read_bytes() for name in ("plain", "scanned"))
    assert plain == scanned, "the saved files differ"


def check_meshes(model_class: Any, config: Any, meshes: Sequence[str] = ("8x1", "1x4", "4x2")) -> None:
    """Check that three training steps on meshes of simulated devices give the losses of one device.

    Each mesh is fsdp x tensor. The process must have 8 devices.
    """
    assert len(jax.devices()) >= 8, (
        f"this needs 8 devices, {len(jax.devices())} are here: call "
        'jax.config.update("jax_num_cpu_devices", 8) before anything else uses JAX'
    )
    batch = random_batch(model_class.task, config)
    losses = {
        mesh: _losses(model_class, config, batch, size) for mesh, size in MESHES.items() if mesh in ("1x1", *meshes)
    }
    for mesh, values in losses.items():
        assert_close(values, np.array(losses["1x1"]), 1e-5, f"losses of 3 steps on mesh {mesh}")
    assert len(set(losses["1x1"])) == 3, f"the losses do not move: {losses['1x1']}"


def _losses(model_class: Any, config: Any, batch: Any, size: tuple[int, int]) -> list[float]:
    model = model_class(config, rngs=nnx.Rngs(0))
    mesh = make_mesh(fsdp=size[0], tensor=size[1])
    trainer = Trainer(model, optax.adam(1e-3), handling=find_task(model_class.task), mesh=mesh)
    return [float(trainer.train_step(batch)["loss"]) for _ in range(3)]


def random_batch(task: str, config: Any, batch_size: int = 8) -> Any:
    """Return the task's random batch, always the same. Raises ConfigError for a task that is not installed."""
    return find_task(task).noise(config, batch_size)
