"""What selection is for: Mamba-2 copies marked tokens out of noise, its time-invariant twin cannot.

    uv run python shared/benchmarks/mamba2_selection.py [--steps 1200]

Selective copying (Gu and Dao 2023, https://arxiv.org/abs/2312.00752, section 4.1.1): three tokens stand somewhere among
thirteen blanks; after them, three questions, to be answered by the tokens in their order. How far apart they stand says
nothing, and must be ignored. One layer of Mamba-2 can: at a blank its step size is 0 and no time passes, so its state
depends on the tokens and their order alone. The twin has the same layer, gate and convolution included, but its step
size, B and C are learned constants: its state fades with every blank.
"""

import argparse
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

    def __init__(self, config: Mamba2Config, *, dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        shape = (config.num_groups, config.d_state)
        self.B, self.C = (nnx.Param(jax.random.normal(rngs.params(), shape)) for _ in range(2))

    def select(self, xBC_BTC, dt_BTH):
        """Return the token's x, and constants."""
        x_BTHP, dt_BTH, B_BTGN, C_BTGN = super().select(xBC_BTC, jnp.zeros_like(dt_BTH))
        return x_BTHP, dt_BTH, jnp.broadcast_to(self.B[...], B_BTGN.shape), jnp.broadcast_to(self.C[...], C_BTGN.shape)


def examples(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [B, T] and the answers [B, T], -100 where nothing is asked."""
    values = rng.integers(2, 2 + VALUES, (BATCH, MARKED)).astype(np.int32)
    places = np.sort(rng.permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1)[:, :MARKED], axis=1)
    ids = np.full((BATCH, LENGTH + MARKED), BLANK, np.int32)
    np.put_along_axis(ids, places, values, axis=1)
    ids[:, LENGTH:] = QUESTION
    answers = np.full_like(ids, IGNORED)
    answers[:, LENGTH:] = values
    return ids, answers


def train(selective: bool, steps: int, seed: int = 0, report=None) -> float:
    """Return the share of right answers on fresh examples after training."""
    config = Mamba2Config(
        2 + VALUES, 64, 1, num_heads=8, head_dim=16, d_state=16, dt_min=0.01, dt_max=0.5, chunk_size=32
    )
    model = Mamba2(config, rngs=nnx.Rngs(seed))
    if not selective:
        model.layers[0].mixer = TimeInvariantMixer(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, min(100, steps // 4), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    optimizer_state, rng = optimizer.init(state), np.random.default_rng(seed)

    def loss(state, ids, answers):
        logits = nnx.merge(graphdef, state)(ids)
        right = (logits.argmax(axis=-1) == answers).sum() / (answers != IGNORED).sum()
        return jnp.divide(*cross_entropy(logits, answers)), right

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(state, optimizer_state, ids, answers):
        gradients, right = jax.grad(loss, has_aux=True)(state, ids, answers)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return optax.apply_updates(state, updates), optimizer_state, right

    for number in range(1, steps + 1):
        state, optimizer_state, right = step(state, optimizer_state, *examples(rng))
        if report and number % 100 == 0:
            report(number, float(right))
    evaluate = jax.jit(lambda state, ids, answers: loss(state, ids, answers)[1])
    return float(np.mean([evaluate(state, *examples(rng)) for _ in range(20)]))


def main() -> None:
    """Train both and print what they learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    steps = parser.parse_args().steps
    for name, selective in (("Mamba-2", True), ("time-invariant", False)):
        right = train(selective, steps, report=lambda n, r, name=name: print(f"{name:16} {n:5} {r:6.1%}", flush=True))
        print(f"{name:16} after {steps} steps: {right:.1%} of answers right (guessing: {1 / VALUES:.1%})\n", flush=True)


if __name__ == "__main__":
    main()
