"""The Python cost of a training step of a 12-layer Llama: the trainer's beside `nnx.jit` over the module.

    uv run python shared/benchmarks/dispatch.py

The model is so small that the step itself takes little time. The benchmark times the call, in which Python dispatches
the step: by the clock, and in CPU seconds of the calling thread, which other jobs disturb less. Waiting for the device
is not timed. The result is the median of all steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from scratch_core.layers import scan_layers
from scratch_core.train import Trainer, adamw
from scratch_llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=64, d_model=16, num_layers=12, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32, max_positions=64
)
BATCH = {"input_ids": np.ones((1, 8), np.int32)}


def main() -> None:
    """Time each form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    forms = {"Trainer": trainer(False), "Trainer, layers scanned": trainer(True), "nnx.jit over the module": nnx_jit()}
    print(f"Python per step, 12 layers, AdamW, jax {jax.__version__}, median of {steps} steps\n")
    print(f"{'':26} {'clock':>10} {'CPU':>10}")
    for name, step in forms.items():
        clock, cpu = medians(step, steps)
        print(f"{name:26} {1e3 * clock:7.2f} ms {1e3 * cpu:7.2f} ms", flush=True)


def trainer(scan: bool) -> Callable[[], Any]:
    """Return one step of the trainer."""
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    if scan:
        scan_layers(model)
    taken = Trainer(model, adamw(1e-3))
    return lambda: taken.train_step(BATCH)


def nnx_jit() -> Callable[[], Any]:
    """Return the same step as Flax's guide writes it."""
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, batch: Any) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            total, weight = model.loss(batch)
            return total / weight

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return lambda: step(model, optimizer, BATCH)


def medians(step: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Return the median seconds that a call takes until it returns: by the clock, and of the thread's CPU time."""
    for _ in range(3):
        jax.block_until_ready(step())
    clock, cpu = [], []
    for _ in range(steps):
        start, busy = time.perf_counter(), time.thread_time()
        result = step()
        clock.append(time.perf_counter() - start)
        cpu.append(time.thread_time() - busy)
        jax.block_until_ready(result)
    return statistics.median(clock), statistics.median(cpu)


if __name__ == "__main__":
    main()
