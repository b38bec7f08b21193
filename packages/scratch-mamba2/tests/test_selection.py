"""What selection is for: one layer copies marked tokens out of noise, its time-invariant twin does not.

shared/benchmarks/mamba2_selection.py trains both for longer and tells more.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scratch_core.losses import IGNORED, cross_entropy
from scratch_mamba2 import Mamba2, Mamba2Config
from scratch_mamba2.model import Mixer

BLANK, QUESTION, VALUES, MARKED, LENGTH, BATCH = 0, 1, 8, 3, 16, 64


class TimeInvariantMixer(Mixer):
    """The mixer with dt, B and C independent of the input."""

    def __init__(self, config, *, dtype, rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        shape = (config.num_groups, config.d_state)
        self.B, self.C = (nnx.Param(jax.random.normal(rngs.params(), shape)) for _ in range(2))

    def select(self, xBC_BTC, dt_BTH):
        x_BTHP, dt_BTH, B_BTGN, C_BTGN = super().select(xBC_BTC, jnp.zeros_like(dt_BTH))
        return x_BTHP, dt_BTH, jnp.broadcast_to(self.B[...], B_BTGN.shape), jnp.broadcast_to(self.C[...], C_BTGN.shape)


def examples(rng):
    """Three values somewhere among blanks, then three questions, to be answered by the values in order."""
    values = rng.integers(2, 2 + VALUES, (BATCH, MARKED)).astype(np.int32)
    places = np.sort(rng.permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1)[:, :MARKED], axis=1)
    ids = np.full((BATCH, LENGTH + MARKED), BLANK, np.int32)
    np.put_along_axis(ids, places, values, axis=1)
    ids[:, LENGTH:] = QUESTION
    answers = np.full_like(ids, IGNORED)
    answers[:, LENGTH:] = values
    return ids, answers


def right_after_training(selective, steps):
    """Return the share of right answers to fresh examples."""
    config = Mamba2Config(
        2 + VALUES, 64, 1, num_heads=8, head_dim=16, d_state=16, dt_min=0.01, dt_max=0.5, chunk_size=32
    )
    model = Mamba2(config, rngs=nnx.Rngs(0))
    if not selective:
        model.layers[0].mixer = TimeInvariantMixer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 100, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    optimizer_state, rng = optimizer.init(state), np.random.default_rng(0)

    def loss(state, ids, answers):
        logits = nnx.merge(graphdef, state)(ids)
        right = (logits.argmax(axis=-1) == answers).sum() / (answers != IGNORED).sum()
        return jnp.divide(*cross_entropy(logits, answers)), right

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(state, optimizer_state, ids, answers):
        gradients, right = jax.grad(loss, has_aux=True)(state, ids, answers)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return optax.apply_updates(state, updates), optimizer_state, right

    shares = []
    for _ in range(steps):
        state, optimizer_state, right = step(state, optimizer_state, *examples(rng))
        shares.append(right)
    return float(np.mean(shares[-20:]))  # each batch was new when it was answered


def test_selective_copying_needs_selection():
    selective, invariant = right_after_training(True, 500), right_after_training(False, 500)
    assert selective > 0.8
    assert invariant < 0.7
