"""Prefill, decoding and a training step of a language model, of ours and of any class of transformers."""

from typing import Any

from side_by_side import Task, serve, timed


def prompt(length: int, rows: int = 1) -> list[list[int]]:
    """Return token ids [rows, length], the same on both sides, below 32,000."""
    return [[(7 * row + 13 * position) % 31_991 for position in range(length)] for row in range(rows)]


PROBE = prompt(40)


def serve_transformers(
    class_name: str, folder: str, new_tokens: int, training: tuple[int, int], **settings: Any
) -> None:
    """Serve the tasks with the transformers class of that name. ``training`` is (rows, length).

    ``settings`` are further arguments of from_pretrained.
    """
    import os

    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = getattr(transformers, class_name).from_pretrained(folder, dtype=torch.float32, **settings).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def prefill(length: int) -> None:
        with torch.inference_mode():
            model(torch.tensor(prompt(length)), use_cache=True, logits_to_keep=1)

    def decode(rows: int) -> float:
        ids = torch.tensor(prompt(16, rows))

        def write(new: int) -> None:
            with torch.inference_mode():
                mask = torch.ones_like(ids)
                model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)

        first = timed(lambda: write(1))  # decoding excludes the prompt and the first token
        return timed(lambda: write(new_tokens + 1)) - first

    def train(_: int) -> None:
        model.train()
        ids = torch.tensor(prompt(training[1], training[0]))
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        model.eval()

    with torch.inference_mode():
        logits = model(torch.tensor(PROBE)).logits[0, -1, :8].tolist()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    serve({"logits": logits, "versions": versions}, {"prefill": prefill, "decode": decode, "train": train})


class Ours:
    """The same tasks with a model of ours, loaded from ``folder``."""

    def __init__(self, folder: str, new_tokens: int, training: tuple[int, int]):
        import jax
        import optax
        import scratch_core
        from flax import nnx
        from scratch_core.losses import causal_lm_loss
        from scratch_core.train import Trainer

        self.model, self.new_tokens, self.training = scratch_core.load(folder), new_tokens, training
        self.trainer = Trainer(scratch_core.load(folder), optax.adamw(0.0), causal_lm_loss)
        graphdef, state = nnx.split(self.model)

        @jax.jit
        def prefill(state: Any, ids: Any) -> Any:
            model = nnx.merge(graphdef, state)
            return model.decode(ids, model.init_cache(ids.shape[0], ids.shape[1] + 64), last_only=True)

        self._prefill = lambda ids: jax.block_until_ready(prefill(state, ids))

    def difference(self, hello: dict[str, Any]) -> float:
        """Return the largest difference between our logits and the reference's."""
        import numpy as np

        return float(np.abs(np.asarray(self.model(np.array(PROBE)))[0, -1, :8] - hello["logits"]).max())

    def __call__(self, task: Task) -> float:
        """Return the seconds of one task."""
        import jax
        import numpy as np
        from scratch_core import generate

        name, size = task
        if name == "prefill":
            ids = np.array(prompt(size))
            return timed(lambda: self._prefill(ids))
        if name == "decode":
            ids = np.array(prompt(16, size))
            first = timed(lambda: generate(self.model, ids, max_new_tokens=1))
            return timed(lambda: generate(self.model, ids, max_new_tokens=self.new_tokens + 1)) - first
        rows, length = self.training
        batch = {"input_ids": np.array(prompt(length, rows), np.int32)}
        return timed(lambda: jax.block_until_ready(self.trainer.train_step(batch)))
