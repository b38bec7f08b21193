"""The effect of QK-norm on the largest stable learning rate: OLMo 2 with and without it, trained at many rates.

    uv run --all-packages python shared/benchmarks/olmo_stability.py
    uv run --all-packages python shared/benchmarks/olmo_stability.py --norm before

The second command puts the norms before the layers, as in OLMo 1 and Llama, to show the effect of QK-norm alone.

Everything else is equal: sizes, first weights, the order of the batches (bytes of the Python standard library), AdamW
with the paper's betas and weight decay, a warm-up over a tenth of the steps, then a constant rate. Gradients are not
clipped, because clipping hides an unstable step. The table shows for each rate the mean loss of the last tenth of the
steps, and the largest attention score (before the softmax) of the trained model on its last batch. A rate counts as
stable if that loss is at most 0.2 above the best of its column.

The effect on other models: Wortsman et al. 2023, https://arxiv.org/abs/2309.14322, figure 1.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scratch_core.data import ByteTokenizer
from scratch_core.data.text import load_text
from scratch_core.layers import causal_mask
from scratch_olmo import Olmo2, Olmo2Config
from scratch_olmo.model import Attention, NormedAttention, Olmo2Block

MARGIN = 0.2


class PlainAttention(NormedAttention):
    """OLMo 2's attention without eq. 4. The norms exist, so that all first weights are equal, but are not used."""

    project = Attention.project


class NormBeforeBlock(Olmo2Block):
    """OLMo 2's block with its norms moved to the inputs of the layers."""

    def __call__(self, x_BTD, positions_BT, cache=None):
        """Return y_BTD, and the cache with these T tokens appended (None without one)."""
        attended_BTD, cache = self.attention(self.attention_post_norm(x_BTD), positions_BT, cache)
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.feed_forward(self.feed_forward_post_norm(x_BTD)), cache


def create(qk_norm: bool, norm: str, config: Olmo2Config) -> Olmo2:
    """Return the model, with or without QK-norm, and with its norms "after" or "before" the layers."""
    model = Olmo2(config, rngs=nnx.Rngs(0))
    for layer in model.layers:
        if not qk_norm:
            layer.attention.__class__ = PlainAttention
        if norm == "before":
            layer.__class__ = NormBeforeBlock
    return model


def largest_score(model: Olmo2, ids_BT: jax.Array) -> jax.Array:
    """Return the largest attention score, in absolute value, of any layer and head."""
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
    x_BTD, largest = model.embed(ids_BT, positions_BT), jnp.float32(0)
    mask_B1TS = causal_mask(positions_BT, positions_BT)[:, None]
    for layer in model.layers:
        attention = layer.attention
        read_BTD = layer.attention_post_norm(x_BTD) if isinstance(layer, NormBeforeBlock) else x_BTD
        query_BTNH, key_BSNH, _ = attention.project(read_BTD)
        query_BTNH, key_BSNH = attention.rope(query_BTNH, positions_BT), attention.rope(key_BSNH, positions_BT)
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", query_BTNH, key_BSNH) * query_BTNH.shape[-1] ** -0.5
        largest = jnp.maximum(largest, jnp.where(mask_B1TS, jnp.abs(scores_BNTS), 0).max())
        x_BTD, _ = layer(x_BTD, positions_BT)
    return largest


def trainer(model: Olmo2, batches_SBT: np.ndarray) -> Any:
    """Return ``train(rate) -> (mean loss of the last tenth of the steps, largest score)``, compiled once."""
    graphdef, first = nnx.split(model)
    steps = len(batches_SBT)
    adam = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8), optax.add_decayed_weights(0.1))

    def loss(state: Any, ids_BT: jax.Array) -> jax.Array:
        return jnp.divide(*nnx.merge(graphdef, state).loss({"input_ids": ids_BT}))

    @jax.jit
    def train(rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, numbered: Any) -> Any:
            (state, moments), (number, ids_BT) = carry, numbered
            value, gradients = jax.value_and_grad(loss)(state, ids_BT)
            updates, moments = adam.update(gradients, moments, state)
            now = rate * jnp.minimum(1.0, (number + 1) / (0.1 * steps))
            return (jax.tree.map(lambda p, u: p - now * u, state, updates), moments), value

        numbered = (jnp.arange(steps), jnp.asarray(batches_SBT))
        (state, _), losses = jax.lax.scan(step, (first, adam.init(first)), numbered)
        return losses[-(steps // 10) :].mean(), largest_score(nnx.merge(graphdef, state), batches_SBT[-1])

    return train


def main() -> None:
    """Train at every rate, print the table and the two largest stable rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="d_model; heads are 16 wide")
    parser.add_argument("--norm", choices=("after", "before"), default="after", help="the layers; OLMo 2's are after")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0])
    options = parser.parse_args()
    D = options.width
    tokenizer = ByteTokenizer()
    sizes = {"d_model": D, "num_layers": options.layers, "num_heads": D // 16, "num_kv_heads": D // 16, "d_ff": 3 * D}
    config = Olmo2Config(tokenizer.vocab_size, **sizes)
    tokens = load_text(None, tokenizer).train
    starts_SB = np.random.default_rng(0).integers(0, len(tokens) - 64, (options.steps, 8))
    batches_SBT = tokens[starts_SB[..., None] + np.arange(64)].astype(np.int32)

    size = f"{options.steps} steps of 8 x 64 bytes, {options.layers} layers, d_model={D}"
    print(f"{size}, norms {options.norm} the layers, jax {jax.__version__}\n")
    print("| learning rate | with QK-norm | largest score | without | largest score |\n|--:|--:|--:|--:|--:|")
    start, losses = time.perf_counter(), {True: [], False: []}
    trainers = {qk_norm: trainer(create(qk_norm, options.norm, config), batches_SBT) for qk_norm in (True, False)}
    for rate in options.rates:
        cells = []
        for qk_norm, train in trainers.items():
            loss, score = (float(value) for value in train(jnp.float32(rate)))
            losses[qk_norm].append(loss)
            cells += [f"{loss:.3f}", f"{score:,.0f}"]
        print(f"| {rate:g} | {' | '.join(cells)} |", flush=True)
    print()
    for qk_norm, values in losses.items():
        best = min(loss for loss in values if np.isfinite(loss))
        stable = max(rate for rate, loss in zip(options.rates, values) if loss <= best + MARGIN)
        print(f"{'with' if qk_norm else 'without'} QK-norm: best loss {best:.3f}, stable up to {stable:g}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
