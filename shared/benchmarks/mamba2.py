"""Mamba-2: cost against sequence length, and ours beside Hugging Face transformers on PyTorch, interleaved.

    uv run python shared/benchmarks/mamba2.py [--plot mamba2.png] [--reference-python PYTHON]

The first part measures one layer on sequences of 128 to 16,384 tokens: the chunked form of state-space duality, its
quadratic form, and an attention layer of the same width. It prints seconds and temporary memory of a forward pass, each
form and length in a process of its own, and the length from which the chunked form is the fastest.

The second part, with --reference-python (an interpreter that has torch, transformers and safetensors; a CPU build is
enough), measures mamba2-130m with random weights in float32: prefill, decoding and a training step. Both sides load the
same weights and take turns, so that a busy machine slows both; the best time of each counts. The largest difference
between their logits is printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from language_model import Ours, serve_transformers
from side_by_side import Reference, arguments, print_setting, print_table, take_turns

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
WIDTH, HEAD, STATE = 256, 64, 64  # the attention layer has 4 heads of 64, the mixer (twice as wide inside) 8
FORMS = ("chunked", "quadratic", "attention")

NEW, TRAINING = 64, (2, 512)
TASKS = {
    "prefill 1 x 1024": ("prefill", 1024),
    "prefill 1 x 4096": ("prefill", 4096),
    "decode 64, batch 1": ("decode", 1),
    "training step 2 x 512": ("train", TRAINING[0]),
}


# ---------------------------------------------------------------------------------------------- lengths


def measure(form: str, length: int) -> None:
    """Print seconds and MB of one form at one length: a whole layer, projections included, batch 1, float32."""
    import dataclasses

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
        if form == "quadratic":  # a single chunk
            config, ssd.CPU_CHUNK = dataclasses.replace(config, chunk_size=length), length
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


def against_reference(reference_python: str, rounds: int) -> None:
    """Run both sides in turns and print the table."""
    import dataclasses

    from flax import nnx
    from scratch_core.testing import count_parameters
    from scratch_core.train import keep_memory
    from scratch_mamba2 import Mamba2, Mamba2Config

    keep_memory()
    config = dataclasses.replace(Mamba2Config.mamba2_130m(), layout="hf")
    with tempfile.TemporaryDirectory() as folder:
        Mamba2(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        with Reference(reference_python, __file__, folder) as reference:
            ours = Ours(folder, NEW, TRAINING)
            print(f"\nMamba-2, {count_parameters(Mamba2, config) / 1e6:.0f} M parameters")
            print_setting(reference.hello, ours.difference(reference.hello))
            print_table(take_turns(TASKS, ours, reference, rounds), {})


def main() -> None:
    """Print both tables."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--plot", metavar="PNG", help="draw time and memory against length (needs matplotlib)")
    parser.add_argument("--memory-mb", type=float, default=12_000, help="leave out forms that would need more")
    parser.add_argument("--skip-lengths", action="store_true", help="only the comparison with the reference")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_transformers("Mamba2ForCausalLM", options.serve, NEW, TRAINING)
    elif options.measure:
        measure(options.measure[0], int(options.measure[1]))
    else:
        if not options.skip_lengths:
            against_length(options.plot, options.memory_mb)
        if options.reference_python:
            against_reference(options.reference_python, options.rounds)


if __name__ == "__main__":
    main()
