"""The effect of selection: Mamba-2 copies tokens that stand among blanks; with constant dt, B and C it does not.

    uv run python shared/benchmarks/mamba2_selection.py

Selective copying (Gu and Dao 2023, https://arxiv.org/abs/2312.00752, section 4.1.1): some tokens stand at random places
among blanks. After them come as many questions, and the answers are the tokens in their order. The distances between
the tokens must be ignored. Mamba-2 learns this: at a blank its step size is 0, which leaves its state unchanged, so
that the state depends only on the tokens and their order. Its time-invariant twin is the same model, with gates and
convolutions, but dt, B and C are learned constants: every blank changes its state, and its answers depend on the number
of blanks.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from scratch_core.losses import IGNORED, cross_entropy
from scratch_mamba2 import Mamba2, Mamba2Config
from scratch_mamba2.model import Mixer

BLANK, QUESTION, FIRST_VALUE = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Task:
    """``marked`` tokens of ``values`` kinds in ``length`` places, and the model that learns to copy them."""

    values: int = 8
    marked: int = 8
    length: int = 64
    num_layers: int = 2
    batch: int = 64

    def examples(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return ids [B, T] and the answers [B, T], -100 where nothing is asked."""
        value_key, place_key = jax.random.split(key)
        values = jax.random.randint(value_key, (self.batch, self.marked), FIRST_VALUE, FIRST_VALUE + self.values)
        places = jnp.tile(jnp.arange(self.length), (self.batch, 1))
        places = jax.random.permutation(place_key, places, axis=1, independent=True)[:, : self.marked].sort(axis=1)
        blanks = jnp.full((self.batch, self.length), BLANK)
        ids = jnp.put_along_axis(blanks, places, values, axis=1, inplace=False)
        ids = jnp.concatenate([ids, jnp.full_like(values, QUESTION)], axis=1)
        return ids, jnp.concatenate([jnp.full_like(blanks, IGNORED), values], axis=1)

    def model(self, selective: bool, seed: int) -> Mamba2:
        """Return an untrained model, or its time-invariant twin."""
        sizes = {"num_heads": 8, "head_dim": 16, "d_state": 32, "dt_min": 0.01, "dt_max": 0.5, "chunk_size": 24}
        config = Mamba2Config(FIRST_VALUE + self.values, 64, self.num_layers, **sizes)
        rngs = nnx.Rngs(seed)
        model = Mamba2(config, rngs=rngs)
        if not selective:
            for layer in model.layers:
                layer.mixer = TimeInvariantMixer(config, dtype=jnp.float32, rngs=rngs)
        return model


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


def train(
    task: Task,
    selective: bool,
    steps: int,
    *,
    seed: int = 0,
    peak: float = 5e-3,
    report: Callable[[int, float], None] = lambda step, right: None,
) -> float:
    """Return the share of right answers to new examples after training; ``report`` is called every 100 steps."""
    graphdef, state = nnx.split(task.model(selective, seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 100, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))

    def loss(state, key):
        ids, answers = task.examples(key)
        logits = nnx.merge(graphdef, state)(ids)
        right = (logits.argmax(axis=-1) == answers).sum() / (answers != IGNORED).sum()
        return jnp.divide(*cross_entropy(logits, answers)), right

    def step(carry, key):
        state, optimizer_state = carry
        gradients, right = jax.grad(loss, has_aux=True)(state, key)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, state)
        return (optax.apply_updates(state, updates), optimizer_state), right

    steps_of = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)
    carry, training, test = (state, optimizer.init(state)), *jax.random.split(jax.random.key(seed))
    for start in range(0, steps, 100):
        carry, right = steps_of(carry, jax.random.split(jax.random.fold_in(training, start), min(100, steps - start)))
        report(start + right.size, float(right[-20:].mean()))
    _, right = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(carry[0], jax.random.split(test, 20))
    return float(right.mean())


def main() -> None:
    """Train both and print their shares of right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = Task()
    for field in ("marked", "length", "num_layers"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(task, field))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    steps, seed = options.pop("steps"), options.pop("seed")
    task = Task(**options)
    print(task, flush=True)
    for name, selective in (("Mamba-2", True), ("time-invariant", False)):
        right = train(
            task,
            selective,
            steps,
            seed=seed,
            report=lambda n, r, name=name: print(f"{name:16}{n:6}{r:8.1%}", flush=True),
        )
        print(
            f"{name:16} after {steps} steps: {right:.1%} of answers right (guessing: {1 / task.values:.1%})\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
