"""Five optimizers on the same small Llama, ResNet and ViT: their losses, and the cost of a step.

    uv run --all-packages python shared/benchmarks/optimizers.py train     # the losses; resumes if it was stopped
    uv run --all-packages python shared/benchmarks/optimizers.py time      # seconds per step; needs an idle machine
    uv run --all-packages python shared/benchmarks/optimizers.py overhead  # beside AdamW, 10 M parameters; likewise
    uv run --all-packages python shared/benchmarks/optimizers.py report --plot optimizers.png

Results are kept in the folder ``--out``. All but Muon are as `scratch train --optimizer NAME` builds them: gradients
clipped to a global norm of 1, roots every 20 steps. Muon (optax.contrib.muon) trains the hidden matrices, with heads
and the window of a convolution merged into one side; AdamW trains the embeddings, the classifier and all else. A root
mean square of 0.2 (Liu et al. 2025, https://arxiv.org/abs/2502.16982) lets both share one learning rate. Weight decay
is 0.01. The learning rate rises over a tenth of the steps, then falls to a tenth along a cosine; for schedule-free
AdamW it stays constant.

Tuning, for each optimizer and model, tries ``TRIALS`` learning rates with seed 0 and compares the final losses on
validation data. It tries the half decades of ``GRID`` first; then the next half decade beyond the edge if the best rate
is at the edge, else the middle of the wider gap beside the best rate. The best rate is then trained with each of
``SEEDS``, and the reported losses are on test data, which tuning does not read. A seed draws the first weights and the
batches.

Schedule-free AdamW is evaluated at x. For all optimizers, ResNet's statistics of batch normalisation are those of the
validation images at the evaluated weights, not the running ones.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scratch_core.data.digits import load_digits
from scratch_core.data.text import load_text
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_core.train import find_optimizer, keep_memory
from scratch_core.train.batches import BatchHandling
from scratch_core.train.optimizers import Optimizer, decay_mask, warmup_constant, warmup_cosine
from scratch_core.train.step import TrainingStep, model_loss
from scratch_llama import Llama, LlamaConfig
from scratch_resnet import ResNet, ResNetConfig
from scratch_resnet.batch_norm import BatchNorm
from scratch_vit import ViT, ViTConfig

GRID, TRIALS, SEEDS = (-3.5, -3.0, -2.5, -2.0, -1.5), 8, (1, 2, 3)  # decimal logarithms of learning rates
STEPS, EVERY, LENGTH, ROUND = 300, 10, 64, 20  # steps of a run, steps between evaluations, bytes of a row, timed steps
REFRESH = 20  # steps between the roots of both Shampoos


class Muon(Optimizer):
    """optax's Muon for the hidden matrices, AdamW for the rest."""

    def build(self, learning_rate, *, weight_decay, decayed):
        """Return Muon after clipping to a global norm of 1."""
        muon = optax.contrib.muon(
            learning_rate,
            weight_decay=weight_decay,
            weight_decay_mask=partial(decay_mask, decayed=tuple(decayed)),
            consistent_rms=0.2,
            adam_b2=0.95,
            muon_weight_dimension_numbers=partial(jax.tree_util.tree_map_with_path, matrix_axes),
        )
        return optax.chain(optax.clip_by_global_norm(1.0), muon)


def matrix_axes(path: Any, x: jax.Array) -> Any:
    """Return how Muon reads a parameter as a matrix, or None for a parameter that AdamW trains."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if not name.endswith("kernel") or name.startswith(("classifier", "patches")):
        return None
    inputs = x.ndim - 1  # axes that are summed over; a kernel has one axis of outputs, or two: [D, N, H]
    if x.ndim == 3 and not name.endswith("out.kernel"):
        inputs = 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, x.ndim)))


OPTIMIZERS = {
    "AdamW": find_optimizer("adamw"),
    "schedule-free AdamW": find_optimizer("schedule-free-adamw"),
    "Shampoo": find_optimizer("shampoo"),
    "Distributed Shampoo": find_optimizer("distributed-shampoo"),
    "Muon": Muon(),
}


class Problem(NamedTuple):
    """A model with its data: ``batches(seed)`` to train on, without end; batches for validation and for the test."""

    create: Any
    batches: Any
    validation: Any
    test: Any


def text(create: Any, rows: int, length: int, held_out: int = 64) -> Problem:
    """Return a language model on the bytes of Python's standard library; whole files are held out."""
    tokens = load_text(None, ByteTokenizer())

    def windows(tokens: np.ndarray, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        starts_B = rng.integers(0, len(tokens) - length, rows)
        return {"input_ids": tokens[starts_B[:, None] + np.arange(length)].astype(np.int32)}

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            yield windows(tokens.train, rng, rows)

    rng = np.random.default_rng(0)
    return Problem(create, batches, *(windows(part, rng, held_out) for part in np.array_split(tokens.validation, 2)))


def digits(create: Any, scale: int, rows: int = 64) -> Problem:
    """Return a classifier of the digits, each pixel ``scale`` x ``scale``, shifted by up to one pixel in training.

    There are as many validation images as test images; they are taken from the training images.
    """
    data = load_digits()
    size = 8 * scale

    def batch(images_NYX: np.ndarray, labels_N: np.ndarray) -> dict[str, np.ndarray]:
        pixels_NYX = images_NYX.astype(np.float32).repeat(scale, axis=1).repeat(scale, axis=2) / 8 - 1
        return {"images": pixels_NYX[..., None], "labels": labels_N.astype(np.int32)}

    order = np.random.default_rng(0).permutation(len(data.train_labels))
    held, kept = np.split(order, [len(data.test_labels)])
    training = batch(data.train_images[kept], data.train_labels[kept])
    padded_NYXC = np.pad(training["images"], ((0, 0), (scale, scale), (scale, scale), (0, 0)), constant_values=-1)

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            index_B, shift_B2 = rng.integers(0, len(kept), rows), scale * rng.integers(0, 3, (rows, 2))
            cut = [padded_NYXC[i, y : y + size, x : x + size] for i, (y, x) in zip(index_B, shift_B2)]
            yield {"images": np.stack(cut), "labels": training["labels"][index_B]}

    validation = batch(data.train_images[held], data.train_labels[held])
    return Problem(create, batches, validation, batch(data.test_images, data.test_labels))


def llama(rngs: nnx.Rngs, d_model: int = 64, num_layers: int = 2) -> Llama:
    """Return a Llama of bytes."""
    heads = {"num_heads": d_model // 16, "num_kv_heads": d_model // 16, "head_dim": 16}
    if d_model >= 128:
        heads = {"num_heads": d_model // 64, "num_kv_heads": d_model // 64, "head_dim": 64}
    return Llama(LlamaConfig(264, d_model, num_layers, **heads, d_ff=3 * d_model, tie_embeddings=True), rngs=rngs)


def resnet(rngs: nnx.Rngs) -> ResNet:
    """Return a ResNet of 171,000 parameters."""
    sizes = {"stem_width": 32, "num_channels": 1, "num_classes": 10}
    return ResNet(ResNetConfig((2, 2), (32, 64), "basic", **sizes), rngs=rngs)


def vit(rngs: nnx.Rngs) -> ViT:
    """Return a ViT of 69,000 parameters that reads patches of 2 x 2."""
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_classes": 10, "norm_epsilon": 1e-6}
    return ViT(ViTConfig(64, 2, 4, 128, qkv_bias=False, **sizes), rngs=rngs)


PROBLEMS = {
    "Llama": partial(text, llama, 16, LENGTH),
    "ResNet": partial(digits, resnet, 2),
    "ViT": partial(digits, vit, 1),
}


class Runner:
    """The compiled step and evaluation of one model with one optimizer, whose learning rate is data."""

    def __init__(self, problem: Problem, optimizer: Optimizer, steps: int = STEPS):
        model = problem.create(nnx.Rngs(0))
        model.train()
        self.problem, self.graphdef = problem, nnx.split(model)[0]
        unit = (warmup_constant if optimizer.schedule == "constant" else warmup_cosine)(1.0, steps)

        @optax.inject_hyperparams
        def build(rate):
            return optimizer.build(lambda count: rate * unit(count), weight_decay=0.01, decayed=model.decayed)

        self.step_of = TrainingStep(self.graphdef, build(rate=1.0), model_loss, BatchHandling(), nnx.Param)
        self.step = jax.jit(self.step_of, donate_argnums=0)

        @jax.jit
        def loss(state: Any, images: Any, batch: Any) -> jax.Array:
            parameters = optimizer.evaluation_parameters(state["optimizer"], state["parameters"])
            model = nnx.merge(self.graphdef, nnx.State(parameters), nnx.State(state["rest"]))
            norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
            for norm in norms:
                norm.momentum = 1.0  # the statistics become those of these images
            if norms:
                model(images)
            model.eval()
            return jnp.divide(*model.loss(batch))

        self.loss = loss

    def start(self, seed: int, log_rate: float) -> Any:
        """Return the state of an untrained model."""
        model = self.problem.create(nnx.Rngs(seed))
        model.train()
        state = self.step_of.initial_state(model)
        state["optimizer"].hyperparams["rate"] = jnp.float32(10**log_rate)
        return state

    def train(self, seed: int, log_rate: float, held_out: Any) -> list[float]:
        """Return the held-out losses, every ``EVERY`` steps and at the end; a loss that is not finite is infinite."""
        state, losses = self.start(seed, log_rate), []
        for number, batch in zip(range(1, STEPS + 1), self.problem.batches(seed)):
            state, _ = self.step(state, batch)
            if number % EVERY == 0:
                losses.append(float(self.loss(state, self.problem.validation.get("images"), held_out)))
        return [loss if math.isfinite(loss) else math.inf for loss in losses]

    def seconds(self, state: Any, steps: int) -> tuple[Any, float]:
        """Return the state after ``steps`` steps, and the seconds of one step."""
        batches = [jax.device_put(batch) for batch, _ in zip(self.problem.batches(0), range(steps))]
        start = time.perf_counter()
        for batch in batches:
            state, metrics = self.step(state, batch)
        jax.block_until_ready((state, metrics))
        return state, (time.perf_counter() - start) / steps


def next_rate(losses: dict[float, float]) -> float:
    """Return the next learning rate to try (its decimal logarithm), given the losses of those tried."""
    untried = [rate for rate in GRID if rate not in losses]
    if untried:
        return untried[0]
    rates, best = sorted(losses), min(losses, key=losses.__getitem__)
    place = rates.index(best)
    if place in (0, len(rates) - 1):
        return best + (0.5 if place else -0.5)
    below, above = best - rates[place - 1], rates[place + 1] - best
    return round(best + (above / 2 if above >= below else -below / 2), 3)


def train(results: dict[str, Any], save: Any) -> None:
    """Tune and train everything that ``results`` does not hold yet; ``save()`` after each run."""
    for model, problem in PROBLEMS.items():
        data = None
        for name, optimizer in OPTIMIZERS.items():
            found = results.setdefault(f"{model}, {name}", {"tuning": {}, "losses": {}})
            runner, start = None, time.process_time()
            while len(found["tuning"]) < TRIALS or len(found["losses"]) < len(SEEDS):
                data = data or problem()
                runner = runner or Runner(data, optimizer)
                tuned = {float(rate): losses[-1] for rate, losses in found["tuning"].items()}
                if len(tuned) < TRIALS:
                    rate = next_rate(tuned)
                    found["tuning"][str(rate)] = losses = runner.train(0, rate, data.validation)
                else:
                    found["rate"] = rate = min(tuned, key=tuned.__getitem__)
                    seed = next(seed for seed in SEEDS if str(seed) not in found["losses"])
                    found["losses"][str(seed)] = losses = runner.train(seed, rate, data.test)
                print(f"{model}, {name}, rate 1e{rate:g}: {losses[-1]:.4f}", flush=True)
                save()
            if runner is not None:
                print(f"{time.process_time() - start:.0f} CPU s", flush=True)


def measure_time(results: dict[str, Any], save: Any, rounds: int = 5) -> None:
    """Measure the seconds of a step: medians of rounds of ``ROUND`` steps, the optimizers in turn."""
    assert ROUND % REFRESH == 0, "a round must hold its share of root computations"
    for model, problem in PROBLEMS.items():
        data = problem()
        runners = {name: Runner(data, optimizer) for name, optimizer in OPTIMIZERS.items()}
        states = {name: runner.seconds(runner.start(0, -3.0), REFRESH + 1)[0] for name, runner in runners.items()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                states[name], seconds = runner.seconds(states[name], ROUND)
                times[name].append(seconds)
        for name, seconds in times.items():
            results[f"{model}, {name}"] = statistics.median(seconds)
            print(f"{model}, {name}: {1e3 * results[f'{model}, {name}']:.2f} ms", flush=True)
        save()


def measure_overhead(results: dict[str, Any], save: Any, rounds: int = 9) -> None:
    """Measure single steps of a Llama with 10 M parameters, the optimizers in turn, with and without roots."""
    problem = text(partial(llama, d_model=384, num_layers=5), rows=8, length=512, held_out=1)
    names = ("AdamW", "schedule-free AdamW", "Distributed Shampoo")
    runners = {name: Runner(problem, OPTIMIZERS[name]) for name in names}
    states = {name: runner.start(0, -3.0) for name, runner in runners.items()}
    size = sum(x.size for x in jax.tree.leaves(states["AdamW"]["parameters"]))
    # The count before a step decides whether it computes roots: at 2 REFRESH it does, at one more it does not.
    turns = [(name, name, 2 * REFRESH) for name in names] + [("with roots", names[-1], 2 * REFRESH - 1)]
    times: dict[str, list[float]] = {turn: [] for turn, _, _ in turns}
    for number in range(rounds + 1):
        for turn, name, count in turns:
            states[name]["optimizer"] = at_count(states[name]["optimizer"], count)
            states[name], seconds = runners[name].seconds(states[name], 1)
            if number:  # the first compiles
                times[turn].append(seconds)
    results.update({turn: statistics.median(seconds) for turn, seconds in times.items()}, parameters=size)
    save()
    base, plain, roots = (results[key] for key in ("AdamW", "Distributed Shampoo", "with roots"))
    mean = plain + (roots - plain) / REFRESH
    print(f"{size:,} parameters, 8 x 512 bytes, medians of {rounds} steps each")
    for name, seconds in (("AdamW", base), (names[1], results[names[1]]), (names[2], mean)):
        print(f"| {name} | {seconds:.3f} s | {seconds / base - 1:+.1%} |")
    print(f"Distributed Shampoo: {plain:.3f} s without roots, {roots:.3f} s with; every {REFRESH} steps")


def at_count(state: Any, count: int) -> Any:
    """Return an optimizer's state with all of its counts of steps set; optax.tree.set sets only the outermost."""
    is_count = lambda path: getattr(path[-1], "name", None) == "count"  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.int32(count) if is_count(path) else x, state)


def first_step(losses: list[float], goal: float) -> float:
    """Return the first step whose held-out loss is at most ``goal``; infinite if there is none."""
    return next(((i + 1) * EVERY for i, loss in enumerate(losses) if loss <= goal), math.inf)


def report(results: dict[str, Any], seconds: dict[str, float]) -> None:
    """Print the table."""
    print("| model | optimizer | learning rate | held-out loss, mean and spread | steps to AdamW's | ms per step |")
    print("|---|---|--:|--:|--:|--:|")
    for model in PROBLEMS:
        runs = {name: list(results[f"{model}, {name}"]["losses"].values()) for name in OPTIMIZERS}
        goal = statistics.mean(losses[-1] for losses in runs["AdamW"])
        for name, all_losses in runs.items():
            final = [losses[-1] for losses in all_losses]
            spread = f"{statistics.mean(final):.3f} ({min(final):.3f} to {max(final):.3f})"
            mean_losses = [statistics.mean(step) for step in zip(*all_losses)]
            reached = first_step(mean_losses, goal)
            rate, took = results[f"{model}, {name}"]["rate"], seconds.get(f"{model}, {name}", math.nan)
            steps = f"{reached:.0f}" if math.isfinite(reached) else "not reached"
            print(f"| {model} | {name} | {10**rate:.2g} | {spread} | {steps} | {1e3 * took:.1f} |")


def plot(results: dict[str, Any], seconds: dict[str, float], path: Path) -> None:
    """Draw the held-out losses over steps and over seconds: the mean of the seeds, and their range shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(PROBLEMS), figsize=(12, 6), layout="constrained", sharey="col")
    steps_N = np.arange(EVERY, STEPS + 1, EVERY)
    for column, model in enumerate(PROBLEMS):
        for name in OPTIMIZERS:
            losses_SN = np.array(list(results[f"{model}, {name}"]["losses"].values()))
            for row, unit in enumerate((1.0, seconds[f"{model}, {name}"])):
                axes[row, column].plot(unit * steps_N, losses_SN.mean(axis=0), label=name, linewidth=1)
                axes[row, column].fill_between(unit * steps_N, losses_SN.min(axis=0), losses_SN.max(axis=0), alpha=0.2)
        axes[0, column].set(title=model, xlabel="steps", yscale="log")
        axes[1, column].set(xlabel="seconds of training")
    for row in axes:
        row[0].set(ylabel="held-out loss")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run one part, with its results kept in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "time", "overhead", "report"))
    parser.add_argument("--out", type=Path, default=Path("optimizers"), help="folder of the results")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    keep_memory()

    def read(part: str) -> dict[str, Any]:
        path = options.out / f"{part}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def saver(part: str, results: dict[str, Any]) -> Any:
        def save() -> None:
            unfinished = options.out / f"{part}.json.part"
            unfinished.write_text(json.dumps(results))
            os.replace(unfinished, options.out / f"{part}.json")

        return save

    if options.part == "report":
        report(read("train"), read("time"))
        if options.plot is not None:
            plot(read("train"), read("time"), options.plot)
        return
    results = read(options.part)
    run = {"train": train, "time": measure_time, "overhead": measure_overhead}[options.part]
    run(results, saver(options.part, results))


if __name__ == "__main__":
    main()
