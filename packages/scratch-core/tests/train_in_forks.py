"""Trains in forks of one process that has imported everything: a start takes one second of CPU time instead of five.

Reads lines "MODEL FOLDER", forks, and prints the number of the process that trains; it ends when the run is complete.
"""

import os
import signal
import sys
import time
import traceback

import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core.data import Windows, training_batches
from scratch_core.data.image_sets import Augmentation, augmented
from scratch_core.losses import causal_lm_loss, cross_entropy
from scratch_core.train import Trainer, adamw, warmup_cosine

STEPS = 24


class Language(nnx.Module):
    """Each token is predicted from itself and the one before it."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(32, 16, rngs=rngs)
        self.mix = nnx.Linear(32, 16, rngs=rngs)
        self.head = nnx.Linear(16, 32, rngs=rngs)

    def __call__(self, input_ids, attention_mask=None):
        x = self.embedding(input_ids)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return self.head(jnp.tanh(self.mix(jnp.concatenate([x, before], axis=-1))))


class Images(nnx.Module):
    """Dropout, and a batch norm with running statistics."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))


class Pictures:
    """Random images whose label is the row of their brightest pixel."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        images = np.random.default_rng(0).normal(size=(100, 8, 8, 1)).astype(np.float32)[index]
        return {"images": images, "labels": np.int32(images.argmax() // 16)}


def train(model, folder):
    rngs = nnx.Rngs(0)
    if model == "language":
        text = np.random.default_rng(0).integers(0, 32, 2000).astype(np.uint16)
        model, loss, data = Language(rngs), causal_lm_loss, training_batches(Windows(text, 16), 8, seed=0)
    else:
        data = augmented(training_batches(Pictures(), 8, seed=0), Augmentation(1, True, 0.2), 4, seed=1)
        model, loss = Images(rngs), lambda model, batch: cross_entropy(model(batch["images"]), batch["labels"])
    trainer = Trainer(model, adamw(warmup_cosine(1e-2, STEPS)), loss, folder=folder, save_every=2, log_every=1)
    assert trainer.restore() == []  # nothing is ever damaged by a kill
    trainer.fit(data, STEPS)
    trainer.close()


def serve():
    import grain  # noqa: F401 each fork would import it again
    from orbax.checkpoint import v1  # noqa: F401 each fork would import it again

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            model, folder = line.split()
            sys.stdout = sys.stderr = open(f"{folder}.err", "a", buffering=1)  # noqa: SIM115
            try:
                train(model, folder)
            except BaseException:
                traceback.print_exc()
            print("seconds of CPU:", time.process_time())
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    serve()
