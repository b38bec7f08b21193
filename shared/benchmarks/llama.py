"""Llama of 125 M parameters, float32: ours beside Hugging Face transformers on PyTorch, interleaved in one run.

    uv run python shared/benchmarks/llama.py --reference-python PYTHON

PYTHON is an interpreter that has torch, transformers and safetensors (a CPU build is enough). Both sides
load the same weights, are checked to compute the same logits, and take turns, so that a busy machine slows
both; the best time of each counts. Decode is given as a share of the memory bandwidth that a plain
matrix-vector product reaches here, prefill and training as a share of the rate of a large matrix product.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

PREFILL, NEW, TRAIN = 256, 64, (4, 256)
CONFIG = {"vocab_size": 32_000, "d_model": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12}
CONFIG |= {"head_dim": 64, "d_ff": 1728, "max_positions": 2048}
TASKS = {
    "prefill 1 x 256": ("prefill", 1),
    "decode 64, batch 1": ("decode", 1),
    "decode 64, batch 8": ("decode", 8),
    "training step 4 x 256": ("train", TRAIN[0]),
}


def prompt(batch_size: int, length: int) -> list[list[int]]:
    """Return token ids, the same on both sides."""
    return [[(7 * row + 13 * position) % 31_991 for position in range(length)] for row in range(batch_size)]


# ------------------------------------------------------------------------------------------------ theirs


def serve(folder: str) -> None:
    """The reference's side: for each line of standard input, run that task once and print its seconds as JSON."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def prefill(batch_size: int) -> None:
        with torch.inference_mode():
            model(torch.tensor(prompt(batch_size, PREFILL)), use_cache=True, logits_to_keep=1)

    def decode(batch_size: int) -> float:
        ids = torch.tensor(prompt(batch_size, 16))
        seconds = []
        for new in (1, NEW + 1):  # prefill and the first token are not decoding
            start = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
                )
            seconds.append(time.perf_counter() - start)
        return seconds[1] - seconds[0]

    def train(batch_size: int) -> None:
        model.train()
        ids = torch.tensor(prompt(batch_size, TRAIN[1]))
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        model.eval()

    with torch.inference_mode():
        logits = model(torch.tensor(prompt(1, 8))).logits[0, -1, :8].tolist()
    print(json.dumps({"logits": logits, "versions": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        task, batch_size = json.loads(line)
        start = time.perf_counter()
        seconds = {"prefill": prefill, "decode": decode, "train": train}[task](batch_size)
        print(json.dumps(time.perf_counter() - start if seconds is None else seconds), flush=True)


# ------------------------------------------------------------------------------------------------ ours


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
            return model.decode(ids, model.init_cache(ids.shape[0], PREFILL + NEW), last_only=True)

        self._prefill = lambda ids: jax.block_until_ready(prefill(state, ids))
        trained = scratch_core.load(folder)
        self.trainer = Trainer(trained, optax.adamw(0.0), causal_lm_loss)

    def run(self, task: str, batch_size: int) -> float:
        """Return the seconds of one task."""
        import jax
        import numpy as np
        from scratch_core import generate

        if task == "prefill":
            ids = np.array(prompt(batch_size, PREFILL))
            start = time.perf_counter()
            self._prefill(ids)
            return time.perf_counter() - start
        if task == "decode":
            ids, seconds = np.array(prompt(batch_size, 16)), []
            for new in (1, NEW + 1):
                start = time.perf_counter()
                generate(self.model, ids, max_new_tokens=new)
                seconds.append(time.perf_counter() - start)
            return seconds[1] - seconds[0]
        batch = {"input_ids": np.array(prompt(batch_size, TRAIN[1]), np.int32)}
        start = time.perf_counter()
        self.trainer.state, metrics = self.trainer._step(self.trainer.state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def machine() -> tuple[float, float]:
    """Return GB/s of a matrix-vector product and GFLOP/s of a matrix product, float32, best of several."""
    import jax
    import jax.numpy as jnp

    matrix, vector, square = jnp.ones((10_000, 10_000)), jnp.ones(10_000), jnp.ones((3072, 3072))
    multiply = jax.jit(jnp.matmul)

    def best(*operands) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            multiply(*operands).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    return matrix.nbytes / best(matrix, vector) / 1e9, 2 * 3072**3 / best(square, square) / 1e9


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="an interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each side takes")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    if not arguments.reference_python:
        parser.error("name the interpreter to compare with: --reference-python PYTHON")

    import flax
    import jax
    import numpy as np
    from flax import nnx
    from scratch_core.models import count_parameters
    from scratch_llama import Llama, LlamaConfig

    config = LlamaConfig(**CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        Llama(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        theirs = subprocess.Popen(
            [arguments.reference_python, __file__, "--serve", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = json.loads(theirs.stdout.readline())
        ours = Ours(folder)
        difference = np.abs(np.asarray(ours.model(np.array(prompt(1, 8))))[0, -1, :8] - hello["logits"]).max()
        print(f"{count_parameters(Llama, config) / 1e6:.0f} M parameters, float32, {os.cpu_count()} cores; largest")
        print(f"difference of the logits compared: {difference:.1e}")
        print(f"jax {jax.__version__}, flax {flax.__version__}; {hello['versions']}")

        best = {name: [float("inf")] * 2 for name in TASKS}
        for number in range(arguments.rounds + 1):  # the first turn compiles and warms up
            for name, (task, batch_size) in TASKS.items():
                seconds = ours.run(task, batch_size)
                theirs.stdin.write(json.dumps([task, batch_size]) + "\n")
                theirs.stdin.flush()
                reference = json.loads(theirs.stdout.readline())
                if number:
                    best[name] = [min(old, new) for old, new in zip(best[name], (seconds, reference), strict=True)]
        theirs.stdin.close()
        theirs.wait()

    bandwidth, rate = machine()
    weights = (
        count_parameters(Llama, config) - CONFIG["vocab_size"] * CONFIG["d_model"]
    )  # the embedding is not read whole
    flops = {  # two per weight and token forward, six for a training step; the prefill's head reads one token
        "prefill 1 x 256": 2 * PREFILL * (weights - CONFIG["vocab_size"] * CONFIG["d_model"]),
        "training step 4 x 256": 6 * TRAIN[0] * TRAIN[1] * weights,
    }
    print(f"\nmatrix-vector {bandwidth:.0f} GB/s, matrix product {rate:.0f} GFLOP/s\n")
    print(f"{'':24}{'ours':>10}{'theirs':>10}{'ratio':>8}   share of the machine")
    for name, (mine, reference) in best.items():
        if name in flops:
            share = f"{flops[name] / mine / 1e9 / rate:.0%} of the matrix product's rate"
        else:
            share = f"{4 * weights * NEW / mine / 1e9 / bandwidth:.0%} of the memory bandwidth"
        print(f"{name:24}{mine:9.3f}s{reference:9.3f}s{reference / mine:7.2f}x   {share}")


if __name__ == "__main__":
    main()
