"""Layers as a loop and as one scanned block: time to compile, memory and time of a training step of Llama.

    uv run python shared/benchmarks/scan.py [--layers 32]

All forms train the same weights, and their first losses are compared. The compilation cache is off. "arguments" are the
weights and what AdamW keeps, "temporary" what the step needs beside them, both as XLA plans them.
"""

import argparse
import time

import jax

jax.config.update("jax_enable_compilation_cache", False)

import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from scratch_core.layers import scan_layers  # noqa: E402
from scratch_core.train import Trainer, adamw, keep_memory  # noqa: E402
from scratch_llama import Llama, LlamaConfig  # noqa: E402

FORMS = {"loop": (False, False), "loop, remat": (False, True), "scan": (True, False), "scan, remat": (True, True)}
ROWS, LENGTH = 4, 128


def main() -> None:
    """Measure each form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="steps that are timed; the fastest counts")
    options = parser.parse_args()
    keep_memory()
    config = LlamaConfig(
        vocab_size=4096, d_model=256, num_layers=options.layers, num_heads=8, num_kv_heads=8, head_dim=32, d_ff=704
    )
    batch = {"input_ids": np.random.default_rng(0).integers(0, 4096, (ROWS, LENGTH)).astype(np.int32)}
    print(f"{options.layers} layers of width 256, batch {ROWS} x {LENGTH}, AdamW, float32, jax {jax.__version__}\n")
    print(
        f"{'':12} {'trace s':>8} {'compile s':>10} {'arguments MB':>13} {'temporary MB':>13} {'step s':>8} {'loss':>9}"
    )
    for name, (scan, remat) in FORMS.items():
        model = Llama(config, rngs=nnx.Rngs(0))
        model.remat_layers = remat
        if scan:
            scan_layers(model)
        trainer = Trainer(model, adamw(1e-3))
        start = time.perf_counter()
        lowered = trainer._step.lower(trainer.state, batch)
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
        memory = compiled.memory_analysis()
        state, metrics = compiled(trainer.state, batch)
        loss, seconds = float(metrics["loss"]), []
        for _ in range(options.rounds):
            begin = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begin)
        print(
            f"{name:12} {traced - start:8.2f} {done - traced:10.2f} {memory.argument_size_in_bytes / 1e6:13.1f} "
            f"{memory.temp_size_in_bytes / 1e6:13.1f} {min(seconds):8.3f} {loss:9.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
