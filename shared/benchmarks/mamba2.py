"""Mamba-2: cost against sequence length, and ours beside Hugging Face transformers on PyTorch, interleaved.

    uv run python shared/benchmarks/mamba2.py [--plot mamba2.png] [--reference-python PYTHON]

First, one layer's work on a sequence of 512 to 16,384 tokens: the chunked form of state-space duality, its quadratic
form, and an attention layer of the same width. Seconds and peak memory of a forward pass, each form and length in a
process of its own, all in one run; and the length from which the chunked form is the fastest.

Then, with --reference-python (an interpreter that has torch, transformers and safetensors; a CPU build is enough),
mamba2-130m with random weights in float32: prefill, decode, and a training step. Both sides load the same weights, are
checked to compute the same logits, and take turns, so that a busy machine slows both; the best time of each counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
WIDTH, HEAD, STATE = 256, 64, 64  # the attention layer has 4 heads of 64, the mixer (twice as wide inside) 8
FORMS = ("chunked", "quadratic", "attention")

PREFILL, NEW, TRAIN = (1024, 4096), 64, (2, 512)
TASKS = {
    "prefill 1 x 1024": ("prefill", 1024),
    "prefill 1 x 4096": ("prefill", 4096),
    "decode 64": ("decode", NEW),
    "training step 2 x 512": ("train", TRAIN[1]),
}


# ---------------------------------------------------------------------------------------------- lengths


def measure(form: str, length: int) -> None:
    """Print seconds and MB of one form at one length: a whole layer, projections included, batch 1, float32."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from scratch_core.layers import GroupedQueryAttention
    from scratch_mamba2 import Mamba2Config, ssd
    from scratch_mamba2.model import Mixer

    x_BTD = jax.random.normal(jax.random.key(0), (1, length, WIDTH))
    if form == "attention":
        layer = GroupedQueryAttention(WIDTH, WIDTH // HEAD, WIDTH // HEAD, HEAD, rngs=nnx.Rngs(0))
        run = lambda layer, x: layer(x, jnp.arange(length)[None])[0]  # noqa: E731
    else:
        config = Mamba2Config(264, WIDTH, 1, 2 * WIDTH // HEAD, HEAD, d_state=STATE)
        if form == "quadratic":
            ssd.scan = lambda *arrays, chunk_size: ssd.quadratic(*arrays)
        layer = Mixer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        run = lambda layer, x: layer(x, None, layer.empty_state(1))[0]  # noqa: E731
    graphdef, state = nnx.split(layer)
    compiled = jax.jit(lambda state, x: run(nnx.merge(graphdef, state), x)).lower(state, x_BTD).compile()
    seconds = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5 if length <= 4096 else 2):
        start = time.perf_counter()
        jax.block_until_ready(compiled(state, x_BTD))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    planned = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(json.dumps([min(seconds), max(planned, 0.0), peak / 1024]))


def against_length(plot: str | None, limit_mb: float) -> None:
    """Print the table of all forms and lengths, and draw it."""
    table: dict[str, dict[int, tuple[float, float]]] = {form: {} for form in FORMS}
    print(f"one layer of width {WIDTH}, batch 1, float32, {os.cpu_count()} cores: seconds (MB of temporary memory)\n")
    print(f"{'tokens':>8}" + "".join(f"{form:>24}" for form in FORMS))
    for length in LENGTHS:
        row = f"{length:8}"
        for form in FORMS:
            heads = 2 * WIDTH // HEAD if form == "quadratic" else WIDTH // HEAD
            if form != "chunked" and 2 * 4 * heads * length**2 / 2**20 > limit_mb:
                row += f"{'over the memory limit':>24}"
                continue
            run = subprocess.run(
                [sys.executable, __file__, "--measure", form, str(length)], capture_output=True, text=True
            )
            if run.returncode:
                row += f"{'failed':>24}"
                continue
            seconds, megabytes, _ = json.loads(run.stdout.splitlines()[-1])
            table[form][length] = (seconds, megabytes)
            row += f"{seconds:13.4f} ({megabytes:6.0f})"
        print(row, flush=True)
    chunked = table["chunked"]
    for form in FORMS[1:]:
        crossing = [n for n in table[form] if chunked[n][0] < table[form][n][0]]
        print(f"chunked is faster than {form} from {min(crossing)} tokens on" if crossing else f"{form} stays faster")
    growth = chunked[LENGTHS[-1]][0] / chunked[LENGTHS[-3]][0]
    print(f"chunked, {LENGTHS[-3]} to {LENGTHS[-1]} tokens (4x): {growth:.1f}x the time")
    if plot:
        draw(table, plot)


def draw(table: dict[str, dict[int, tuple[float, float]]], path: str) -> None:
    """Write the plot of time and memory against length, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for which, (ax, title) in enumerate(zip(axes, ("seconds of a forward pass", "MB of temporary memory"))):
        for form, marker in zip(FORMS, "os^"):
            lengths = list(table[form])
            ax.loglog(lengths, [table[form][n][which] for n in lengths], marker=marker, label=form, base=2)
        ax.set(xlabel="tokens", title=title)
        ax.set_yscale("log", base=10)
        ax.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"drawn in {path}")


# ------------------------------------------------------------------------------------ beside the reference


def prompt(length: int, rows: int = 1) -> list[list[int]]:
    """Return token ids, the same on both sides."""
    return [[(7 * row + 13 * position) % 50_261 for position in range(length)] for row in range(rows)]


def serve(folder: str) -> None:
    """The reference's side: for each line of standard input, run that task once and print its seconds as JSON."""
    import torch
    from transformers import Mamba2ForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = Mamba2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def prefill(length: int) -> None:
        with torch.inference_mode():
            model(torch.tensor(prompt(length)), use_cache=True, logits_to_keep=1)

    def decode(count: int) -> float:
        ids = torch.tensor(prompt(16))
        seconds = []
        for new in (1, count + 1):  # prefill and the first token are not decoding
            start = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
                )
            seconds.append(time.perf_counter() - start)
        return seconds[1] - seconds[0]

    def train(length: int) -> None:
        model.train()
        ids = torch.tensor(prompt(length, TRAIN[0]))
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        model.eval()

    with torch.inference_mode():
        logits = model(torch.tensor(prompt(40))).logits[0, -1, :8].tolist()
    print(json.dumps({"logits": logits, "versions": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        task, size = json.loads(line)
        start = time.perf_counter()
        seconds = {"prefill": prefill, "decode": decode, "train": train}[task](size)
        print(json.dumps(time.perf_counter() - start if seconds is None else seconds), flush=True)


class Ours:
    """Our side of the same tasks."""

    def __init__(self, folder: str):
        import jax
        import optax
        import scratch_core
        from flax import nnx
        from scratch_core.losses import causal_lm_loss
        from scratch_core.train import Trainer

        self.model = scratch_core.load(folder)
        graphdef, state = nnx.split(self.model)

        @jax.jit
        def prefill(state, ids):
            model = nnx.merge(graphdef, state)
            return model.decode(ids, model.init_cache(ids.shape[0]), last_only=True)

        self._prefill = lambda ids: jax.block_until_ready(prefill(state, ids))
        self.trainer = Trainer(scratch_core.load(folder), optax.adamw(0.0), causal_lm_loss)

    def run(self, task: str, size: int) -> float:
        """Return the seconds of one task."""
        import jax
        import numpy as np
        from scratch_core import generate

        if task == "prefill":
            ids = np.array(prompt(size))
            start = time.perf_counter()
            self._prefill(ids)
            return time.perf_counter() - start
        if task == "decode":
            ids, seconds = np.array(prompt(16)), []
            for new in (1, size + 1):
                start = time.perf_counter()
                generate(self.model, ids, max_new_tokens=new)
                seconds.append(time.perf_counter() - start)
            return seconds[1] - seconds[0]
        batch = {"input_ids": np.array(prompt(size, TRAIN[0]), np.int32)}
        start = time.perf_counter()
        self.trainer.state, metrics = self.trainer._step(self.trainer.state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def against_reference(reference_python: str, rounds: int) -> None:
    """Run both sides in turns and print the table."""
    import dataclasses

    import flax
    import jax
    import numpy as np
    from flax import nnx
    from scratch_core.models import count_parameters
    from scratch_mamba2 import Mamba2, Mamba2Config

    config = dataclasses.replace(Mamba2Config.mamba2_130m(), layout="hf")
    with tempfile.TemporaryDirectory() as folder:
        Mamba2(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        theirs = subprocess.Popen(
            [reference_python, __file__, "--serve", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        hello = json.loads(theirs.stdout.readline())
        ours = Ours(folder)
        difference = np.abs(np.asarray(ours.model(np.array(prompt(40))))[0, -1, :8] - hello["logits"]).max()
        count = count_parameters(Mamba2, config) / 1e6
        print(
            f"\n{count:.0f} M parameters, float32, {os.cpu_count()} cores; logits compared differ by {difference:.1e}"
        )
        print(f"jax {jax.__version__}, flax {flax.__version__}; {hello['versions']}", flush=True)
        best = {name: [float("inf")] * 2 for name in TASKS}
        for number in range(rounds + 1):  # the first turn compiles and warms up
            for name, (task, size) in TASKS.items():
                seconds = ours.run(task, size)
                theirs.stdin.write(json.dumps([task, size]) + "\n")
                theirs.stdin.flush()
                reference = json.loads(theirs.stdout.readline())
                if number:
                    best[name] = [min(old, new) for old, new in zip(best[name], (seconds, reference), strict=True)]
        theirs.stdin.close()
        theirs.wait()
    print(f"\n{'':24}{'ours':>10}{'theirs':>10}{'ratio':>8}")
    for name, (mine, reference) in best.items():
        print(f"{name:24}{mine:9.3f}s{reference:9.3f}s{reference / mine:7.2f}x")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="an interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side takes")
    parser.add_argument("--plot", metavar="PNG", help="draw time and memory against length (needs matplotlib)")
    parser.add_argument("--memory-mb", type=float, default=12_000, help="leave out what would need more")
    parser.add_argument("--skip-lengths", action="store_true", help="only the comparison with the reference")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.measure:
        measure(arguments.measure[0], int(arguments.measure[1]))
    else:
        if not arguments.skip_lengths:
            against_length(arguments.plot, arguments.memory_mb)
        if arguments.reference_python:
            against_reference(arguments.reference_python, arguments.rounds)


if __name__ == "__main__":
    main()
