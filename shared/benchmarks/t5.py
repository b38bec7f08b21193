"""T5-small, float32: ours beside transformers on PyTorch, taking turns.

    uv run --all-packages python shared/benchmarks/t5.py --reference-python PYTHON

PYTHON is an interpreter that has torch, transformers and safetensors (a CPU build is enough). Both sides load one
random checkpoint of T5 v1.0 small. Encoding reads sources of 128 tokens. Decoding is greedy, 64 tokens for a source of
128. Its time excludes the encoder and the first token, whose best time so far is subtracted. "encode + decode" is one
call of `generate`.
"""

import tempfile
from typing import Any

from side_by_side import (
    Reference,
    Task,
    arguments,
    machine,
    parse,
    print_setting,
    print_table,
    serve,
    take_turns,
    timed,
)

SOURCE, NEW, TRAINING = 128, 64, (8, 64)
TASKS = {
    "encode 1 x 128": ("encode", 1),
    "encode 8 x 128": ("encode", 8),
    "decode 64, batch 1": ("decode", 1),
    "decode 64, batch 8": ("decode", 8),
    "encode + decode 64, batch 1": ("write", 1),
    "encode + decode 64, batch 8": ("write", 8),
    "training step 8 x (128, 64)": ("train", TRAINING[0]),
}


def source(rows: int, length: int = SOURCE) -> list[list[int]]:
    """Return token ids [rows, length], the same on both sides."""
    return [[2 + (7 * row + 13 * position) % 31_991 for position in range(length)] for row in range(rows)]


def serve_torch(folder: str) -> None:
    """Serve the tasks with transformers' T5ForConditionalGeneration."""
    import os

    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def encode(rows: int) -> None:
        with torch.inference_mode():
            model.get_encoder()(torch.tensor(source(rows)))

    def write(rows: int, new: int = NEW) -> None:
        ids = torch.tensor(source(rows))
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)

    first: dict[int, float] = {}

    def decode(rows: int) -> float:
        first[rows] = min(first.get(rows, 9.0), timed(lambda: write(rows, 1)))
        return timed(lambda: write(rows, NEW + 1)) - first[rows]

    def train(rows: int) -> None:
        model.train()
        optimizer.zero_grad()
        model(torch.tensor(source(rows)), labels=torch.tensor(source(rows, TRAINING[1]))).loss.backward()
        optimizer.step()
        model.eval()

    with torch.inference_mode():
        logits = model(torch.tensor(source(1)), decoder_input_ids=torch.tensor([[0, 5, 6]])).logits[0, -1, :8].tolist()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    tasks = {"encode": encode, "decode": decode, "write": write, "train": train}
    serve({"logits": logits, "versions": versions}, tasks)


class Ours:
    """The same tasks with scratch-t5."""

    def __init__(self, folder: str):
        import jax
        import optax
        from flax import nnx
        from scratch_core.train import Trainer
        from scratch_t5 import T5

        self.model = T5.from_pretrained(folder)
        trained = T5.from_pretrained(folder)
        trained.train()
        self.trainer, self.wait = Trainer(trained, optax.adamw(0.0)), jax.block_until_ready
        self.first: dict[int, float] = {}
        graphdef, state = nnx.split(self.model)
        encode = jax.jit(lambda state, ids: nnx.merge(graphdef, state).encode(ids))
        self.encode = lambda ids: encode(state, ids)

    def difference(self, hello: dict[str, Any]) -> float:
        """Return the largest difference between our logits and the reference's."""
        import numpy as np

        logits = self.model(np.array(source(1)), np.array([[0, 5, 6]]))
        return float(np.abs(np.asarray(logits)[0, -1, :8] - hello["logits"]).max())

    def __call__(self, task: Task) -> float:
        """Return the seconds of one task."""
        import numpy as np
        from scratch_core import generate

        name, rows = task
        ids = np.array(source(rows), np.int32)
        write = lambda new: timed(lambda: generate(self.model, ids, max_new_tokens=new))  # noqa: E731
        if name == "encode":
            return timed(lambda: self.wait(self.encode(ids)))
        if name == "write":
            return write(NEW)
        if name == "decode":
            self.first[rows] = min(self.first.get(rows, 9.0), write(1))
            return write(NEW + 1) - self.first[rows]
        batch = {"input_ids": ids, "labels": np.array(source(rows, TRAINING[1]), np.int32)}
        return timed(lambda: self.wait(self.trainer.train_step(batch)))


def main() -> None:
    """Run both sides and print the table."""
    parser = arguments(__doc__, rounds=5)
    options = parse(parser, serve_torch)

    from flax import nnx
    from scratch_core.train import keep_memory
    from scratch_t5 import T5, T5Config

    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        T5(T5Config.t5_small(), rngs=nnx.Rngs(0)).save_pretrained(folder)
        with Reference(options.reference_python, __file__, folder) as reference:
            ours = Ours(folder)
            print("T5 v1.0 small, 61 M parameters")
            print_setting(reference.hello, ours.difference(reference.hello))
            best = take_turns(TASKS, ours, reference, options.rounds)
    weights = 6 * (6 * 512**2 + 2 * 512 * 2048) + 32_128 * 512  # weights that decoding reads for each token
    bandwidth = machine()[0]
    print(f"matrix-vector product {bandwidth:.0f} GB/s\n")
    decoding = [name for name in TASKS if name.startswith("decode")]
    share = {name: 4 * weights * NEW / best[name][0] / 1e9 / bandwidth for name in decoding}
    print_table(best, {name: f"{part:.0%} of the memory bandwidth" for name, part in share.items()})


if __name__ == "__main__":
    main()
