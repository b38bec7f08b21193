"""Mixture-of-Depths beside the plain transformer at equal FLOPs: the isoFLOP comparison of the paper, small.

    uv run --all-packages python shared/benchmarks/mixture_of_depths.py --plot isoflop.png

Source: Raposo et al. 2024, https://arxiv.org/abs/2404.02258, figure 3. Every model is trained on the source of Python's
standard library with the same number of floating-point operations, counted from its compiled step; a cheaper model
takes more steps. Each size is trained twice: plain, and with every other block routed at capacity 1/8. The table shows
the held-out loss in bits per byte, and the time of a step beside its FLOPs. Routed models have two losses: as they
generate (the predictor chooses tokens) and as they train (the highest scores of the whole text are chosen, which looks
ahead).

    uv run --all-packages python shared/benchmarks/mixture_of_depths.py --step

compares the training steps of two models of 125 M parameters instead, one plain and one routed, which take turns.
"""

import argparse
import dataclasses
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core.data.pipelines import TextEvaluation, Windows, training_batches
from scratch_core.data.text import TokenSplit, load_text
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_core.losses import causal_lm_loss
from scratch_core.train import Trainer, adamw, keep_memory, warmup_cosine
from scratch_mod import MixtureOfDepths, MixtureOfDepthsConfig
from scratch_mod.model import RoutedBlock

ROWS, LENGTH, LAYERS, CAPACITY = 8, 128, 4, 0.125


@dataclasses.dataclass(frozen=True)
class Run:
    """Cost and loss of one model."""

    name: str
    parameters: int
    flops: float  # of a step
    steps: int
    seconds: float  # of a step, the median
    bits: float  # per held-out byte, as the model generates
    bits_top_k: float  # the same, as it trains
    agreement: float  # share of tokens for which the predictor and top-k choose the same; 1 without routing


def config(d_model: int, capacity: float) -> MixtureOfDepthsConfig:
    """Return the configuration of one size."""
    return MixtureOfDepthsConfig(
        264, d_model, LAYERS, num_heads=d_model // 16, num_kv_heads=d_model // 16, head_dim=16, d_ff=3 * d_model,
        capacity=capacity, predictor_size=16,
    )  # fmt: skip


def loss_top_k(model: MixtureOfDepths, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the cross entropy, (sum, weight), where routed blocks choose from the whole text."""
    return causal_lm_loss(lambda *inputs: model.route(*inputs)[0], batch)


def agreement(model: MixtureOfDepths, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return (sum, weight) of the tokens on which the predictors agree with top-k's choice in training."""
    ids = batch["input_ids"]
    positions_BT = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    x_BTD, same, count = model.embed(ids, positions_BT), jnp.zeros(()), 0
    for layer in model.layers:
        if isinstance(layer, RoutedBlock):
            predicted_BT = layer.predictor(x_BTD) > 0
            x_BTD, chosen_BT = layer.choose_from_all(x_BTD, positions_BT)
            same, count = same + (predicted_BT == chosen_BT).sum(), count + ids.size
        else:
            x_BTD, _ = layer(x_BTD, positions_BT)
    return (same, jnp.asarray(count)) if count else (jnp.ones(()), jnp.ones(()))


def count_flops(model: MixtureOfDepths, rows: int, length: int) -> float:
    """Return the floating-point operations of the loss and its gradient for one batch, as the compiler counts them."""
    model.train()
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    batch = {"input_ids": jnp.zeros((rows, length), jnp.int32)}

    def loss(parameters: Any) -> jax.Array:
        return jnp.divide(*nnx.merge(graphdef, parameters, rest).loss(batch))

    cost = jax.jit(jax.value_and_grad(loss)).lower(parameters).compile().cost_analysis()
    if cost is None:
        raise SystemExit("this backend does not count FLOPs: run the comparison on a CPU, with JAX_PLATFORMS=cpu")
    return cost["flops"]


def train(d_model: int, capacity: float, budget: float, rate: float, tokens: TokenSplit, held_out: int) -> Run:
    """Train one model with the budget, and measure it."""
    model = MixtureOfDepths(config(d_model, capacity), rngs=nnx.Rngs(0))
    flops = count_flops(model, ROWS, LENGTH)
    steps = max(2, round(budget / flops))
    trainer = Trainer(model, adamw(warmup_cosine(rate, steps), decayed=model.decayed))
    batches, seconds = training_batches(Windows(tokens.train, LENGTH), ROWS, seed=0), []
    before = time.perf_counter()
    for _, metrics in trainer.steps(batches, steps):
        jax.block_until_ready(metrics["loss"])
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    validation = tokens.validation[:held_out]
    functions = {"top_k": loss_top_k, "agreement": agreement}
    result = trainer.evaluate(TextEvaluation(validation, ROWS, LENGTH), functions)
    to_bits = (len(validation) - 1) / math.log(2) / ByteTokenizer().count_bytes(validation[1:])
    return Run(
        f"{'dense' if capacity == 1 else 'routed'} {d_model}",
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        flops,
        steps,
        statistics.median(seconds[1:]),
        result["loss"] * to_bits,
        result["top_k"] * to_bits,
        result["agreement"],
    )


def compare_steps(turns: int, rows: int = 4, length: int = 256) -> None:
    """Time training steps of a plain and a routed model of 125 M parameters in turns, beside their FLOPs."""
    tokens = np.random.default_rng(0).integers(0, 32_000, 50_000, np.int32)
    flops, steps, seconds = [], [], []
    for capacity in (1.0, CAPACITY):
        config = MixtureOfDepthsConfig(
            32_000, 768, 12, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=1728, capacity=capacity
        )
        model = MixtureOfDepths(config, rngs=nnx.Rngs(0))
        flops.append(count_flops(model, rows, length))
        batches = training_batches(Windows(tokens, length), rows, seed=0)
        trainer = Trainer(model, adamw(warmup_cosine(1e-4, turns + 2), decayed=model.decayed))
        steps.append(trainer.steps(batches, turns + 2))
        seconds.append([])
    for turn in range(turns + 2):
        for run, times in zip(steps, seconds, strict=True):
            before = time.perf_counter()
            jax.block_until_ready(next(run)[1]["loss"])
            if turn >= 2:  # the first step compiles
                times.append(time.perf_counter() - before)
    dense, routed = (statistics.median(times) for times in seconds)
    print(f"{rows} x {length} tokens, 125 M parameters, float32, {os.cpu_count()} cores, jax {jax.__version__}")
    print(f"dense {flops[0]:.3g} FLOPs, {dense:.3f} s; routed {flops[1]:.3g} FLOPs, {routed:.3f} s")
    promised, found = flops[0] / flops[1], dense / routed
    print(f"by its FLOPs {promised:.2f}x faster, measured {found:.2f}x: {found / promised:.0%} of it")


def plot(runs: list[Run], budget: float, path: Path) -> None:
    """Draw the held-out loss over the size, dense and routed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, field, label, style in (
        ("dense", "bits", "dense", "o-"),
        ("routed", "bits", "routed, the predictor chooses", "s-"),
        ("routed", "bits_top_k", "routed, top-k over the text (looks ahead)", "s:"),
    ):
        chosen = [run for run in runs if run.name.startswith(kind)]
        axes.plot([run.parameters for run in chosen], [getattr(run, field) for run in chosen], style, label=label)
    axes.set(xscale="log", xlabel="parameters", ylabel="held-out bits per byte", title=f"{budget:.0e} FLOPs for each")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train every model, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1e12, help="FLOPs for each model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 48, 64, 96], help="d_model, multiples of 16")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--held-out", type=int, default=50_000, help="bytes of the held-out text")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--step", action="store_true", help="compare the steps of 125 M parameters, and end")
    options = parser.parse_args()
    keep_memory()
    if options.step:
        return compare_steps(turns=9)
    tokens, runs = load_text(None, ByteTokenizer()), []
    print(f"{options.budget:.1e} FLOPs for each; a step is {ROWS} x {LENGTH} bytes\n")
    print("| model | parameters | FLOPs of a step | steps | s per step | bits per byte | with top-k | agreement |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for d_model in options.sizes:
        for capacity in (1.0, CAPACITY):
            run = train(d_model, capacity, options.budget, options.learning_rate, tokens, options.held_out)
            runs.append(run)
            routed = ("", "") if capacity == 1 else (f"{run.bits_top_k:.3f}", f"{run.agreement:.1%}")
            print(
                f"| {run.name} | {run.parameters:,} | {run.flops:.2e} | {run.steps:,} | {run.seconds:.4f} | "
                f"{run.bits:.3f} | {routed[0]} | {routed[1]} |",
                flush=True,
            )
    print()
    for dense, routed in zip(runs[::2], runs[1::2], strict=True):
        print(
            f"{routed.name}: {routed.flops / dense.flops:.2f} of the FLOPs of {dense.name}, "
            f"{routed.seconds / dense.seconds:.2f} of its time"
        )
    best = {kind: min(run.bits for run in runs if run.name.startswith(kind)) for kind in ("dense", "routed")}
    print(f"best bits per byte: dense {best['dense']:.3f}, routed {best['routed']:.3f}")
    if options.plot is not None:
        plot(runs, options.budget, options.plot)


if __name__ == "__main__":
    main()
