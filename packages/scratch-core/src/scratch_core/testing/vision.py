"""Checks of image classifiers; each is one call."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scratch_core.fine_tuning import freeze, replace_head
from scratch_core.losses import image_classification_loss
from scratch_core.registry import load
from scratch_core.testing.goldens import CACHED, LOGITS, assert_close, check_gradients, jitted, read_io
from scratch_core.train import Trainer
from scratch_core.vision import VisionModel
from scratch_core.weights import flatten


def check_image_classifier(golden: Path, atol: float = LOGITS) -> None:
    """Compare logits, last hidden state, loss and gradients of a checkpoint with its golden."""
    model: Any = load(golden)
    io = read_io(golden)
    images = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1))  # theirs are channels first
    assert_close(jitted(model)(images), io["logits"], atol, "logits")
    hidden = io["last_hidden_state"]
    hidden = hidden.transpose(0, 2, 3, 1) if hidden.ndim == 4 else hidden
    assert_close(jitted(model, "hidden")(images), hidden, atol, "last hidden state")
    batch = {"images": images, "labels": jnp.asarray(io["labels"])}
    check_gradients(model, lambda model: jnp.divide(*image_classification_loss(model, batch)), io)


def noise(config: Any, batch_size: int, size: int = 32, seed: int = 0) -> jax.Array:
    """Return random images [B, Y, X, C] of the configuration's image size, or of ``size`` x ``size`` if it has none."""
    size = config.image_size or size  # None: any size
    shape = (batch_size, size, size, config.num_channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def check_images_are_independent(model: VisionModel) -> None:
    """In evaluation, the logits of an image do not depend on the other images of the batch, only on the image."""
    model.eval()
    images, others, forward = noise(model.config, 4), noise(model.config, 4, seed=1), jitted(model)
    together = np.asarray(forward(images))
    for i in range(4):
        assert_close(np.asarray(forward(images[i : i + 1]))[0], together[i], CACHED, f"image {i} alone")
    moved = np.asarray(forward(others.at[2].set(images[2])))
    assert_close(moved[2], together[2], CACHED, "image 2 among others")
    assert np.abs(moved - together)[[0, 1, 3]].max(axis=-1).min() > 1e-4


def check_new_head_on_a_frozen_trunk(model: VisionModel, folder: Path) -> None:
    """Training only a new head leaves every other array unchanged, bit for bit, and the head survives a checkpoint."""
    replace_head(model, ("cat", "dog", "owl"), rngs=nnx.Rngs(7))
    before = _learned(model)
    batch = {"images": noise(model.config, 6), "labels": jnp.array([0, 1, 2, 0, 1, 2])}
    trainable = freeze(model, "*", keep=("classifier.*",))
    trainer = Trainer(model, optax.adam(0.02), image_classification_loss, trainable=trainable)
    first = trainer.evaluate([batch])["loss"]
    trainer.fit([batch] * 60, 60)
    assert trainer.evaluate([batch])["loss"] < 0.7 * first
    after = _learned(model)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"classifier.kernel", "classifier.bias"}, changed

    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert again.config.labels == ("cat", "dog", "owl")
    assert again.config == model.config
    np.testing.assert_array_equal(jitted(again)(batch["images"]), jitted(model)(batch["images"]))


def check_bfloat16(model_class: type[VisionModel], config: Any) -> None:
    """In bfloat16, parameters and gradients stay float32, and logits agree to bfloat16's precision."""
    exact, narrow = (model_class(config, dtype=dtype, rngs=nnx.Rngs(0)) for dtype in (jnp.float32, jnp.bfloat16))
    batch = {"images": noise(config, 4), "labels": jnp.arange(4)}
    # Compared in training mode, where batch norm keeps the activations of a random network in bounds.
    logits = [jitted(model)(batch["images"]) for model in (exact, narrow)]
    assert logits[1].dtype in (jnp.bfloat16, jnp.float32)
    expected, actual = (np.asarray(each, np.float32) for each in logits)
    assert 0 < np.abs(actual - expected).max() < 0.05 * np.abs(expected).max() + 0.02
    narrow.eval()  # in training, the running statistics would have to leave the gradient as a second result
    graphdef, parameters, rest = nnx.split(narrow, nnx.Param, ...)

    @jax.jit
    def gradients(parameters: Any, rest: Any) -> Any:
        def loss(parameters: Any, rest: Any) -> jax.Array:
            return image_classification_loss(nnx.merge(graphdef, parameters, rest), batch)[0]

        return jax.grad(loss)(parameters, rest)

    for path, value in flatten(gradients(parameters, rest)).items():
        assert value.dtype == jnp.float32, path
        assert np.isfinite(value).all(), path


def check_dropout(model_class: type[VisionModel], dropping: Any, without: Any) -> None:
    """In training, each call drops different features, chosen by the seed; evaluation drops nothing.

    ``dropping`` and ``without`` are the same configuration with and without a dropout rate.
    """
    images = noise(dropping, 4)
    first, second, other = (model_class(dropping, rngs=nnx.Rngs(params=0, dropout=seed)) for seed in (1, 1, 2))
    plain = model_class(without, rngs=nnx.Rngs(params=0, dropout=1))
    nnx.update(plain, nnx.state(first, nnx.Param))
    forward = nnx.jit(lambda model, images: model(images))  # nnx.jit also returns the count of draws to the model
    draws = [np.asarray(forward(model, images)) for model in (first, first, second, other)]
    np.testing.assert_array_equal(draws[0], draws[2])
    assert np.abs(draws[0] - draws[1]).max() > 1e-4
    assert np.abs(draws[0] - draws[3]).max() > 1e-4
    for model in (first, plain):
        model.eval()
    np.testing.assert_array_equal(jitted(first)(images), jitted(plain)(images))


def _learned(model: Any) -> dict[str, np.ndarray]:
    # Copies, because the training step donates the arrays.
    return {path: np.array(value) for path, value in flatten(nnx.state(model, (nnx.Param, nnx.BatchStat))).items()}
