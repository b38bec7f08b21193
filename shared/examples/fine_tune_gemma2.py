"""Fine-tune Gemma 2 on a file of instructions: from a checkpoint to a checkpoint that answers.

    uv run python shared/examples/fine_tune_gemma2.py
    uv run python shared/examples/fine_tune_gemma2.py --lora 8
    uv run python shared/examples/fine_tune_gemma2.py --checkpoint gemma-2-2b --data mine.jsonl --out tuned

The first trains every parameter, the second adapters of rank 8 on the linear layers (LoRA), which are merged into the
saved model and saved by themselves beside it.

The data is a JSONL file whose rows have a "prompt" and an "answer"; the default is instructions.jsonl beside this file.
Without a checkpoint, a tiny Gemma 2 is first trained on the source of Python's standard library, so that the example
runs on a laptop with nothing to download. What to watch for is in shared/docs/fine_tuning_gemma2.md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scratch_core
from flax import nnx
from scratch_core.data.pipelines import Windows, training_batches
from scratch_core.data.text import load_text
from scratch_core.data.tokenizers import ByteTokenizer, load_tokenizer
from scratch_core.errors import DataError
from scratch_core.layers import LoRAParam
from scratch_core.train import Trainer, adamw, keep_memory, warmup_cosine
from scratch_core.train.lora import add_lora, merge_lora
from scratch_core.train.lora_files import save_lora
from scratch_gemma import Gemma2, Gemma2Config, encode_chat
from scratch_gemma.chat import END

INSTRUCTIONS = Path(__file__).with_name("instructions.jsonl")


class Conversations:
    """Prompts with answers, each padded on the right to the longest: item i is one row of a batch."""

    def __init__(self, rows: list[dict[str, str]], tokenizer: Any):
        encoded = [encode_chat(tokenizer, row["prompt"], row["answer"]) for row in rows]
        self.rows, self.encoded, self.pad_id = rows, encoded, tokenizer.pad_id or 0
        self.length = max(len(ids) for ids, _ in encoded)

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return "input_ids", "attention_mask" and "labels", int32 [T]; labels are -100 but over the answer."""
        ids, labels = self.encoded[int(index)]
        padding = (0, self.length - len(ids))
        return {
            "input_ids": np.pad(ids, padding, constant_values=self.pad_id),
            "attention_mask": np.pad(np.ones_like(ids), padding),
            "labels": np.pad(labels, padding, constant_values=-100),
        }

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield all conversations in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            items = [self[index] for index in range(start, min(start + size, len(self)))]
            yield {name: np.stack([item[name] for item in items]) for name in items[0]}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of the data. Raises DataError that names the first row without a prompt and an answer."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if not (isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str)):
            raise DataError(f'{path}, row {number}: must have a "prompt" and an "answer", found {line[:60]!r}')
        rows.append(row)
    return rows


def make_checkpoint(folder: Path, steps: int) -> None:
    """Train a tiny Gemma 2 on the source of Python's standard library, and save it with its tokenizer."""
    tokenizer, model = ByteTokenizer(), Gemma2(Gemma2Config.tiny(), rngs=nnx.Rngs(0))
    windows = Windows(load_text(None, tokenizer).train, 128)
    trainer = Trainer(model, adamw(warmup_cosine(3e-3, steps), decayed=model.decayed))
    outcome = trainer.fit(training_batches(windows, 16, seed=0), steps)
    print(f"made a checkpoint: {steps} steps on Python's source, loss {outcome.loss:.3f}")
    model.save_pretrained(folder)
    tokenizer.save(folder)


@nnx.jit
def summed_loss(model: Gemma2, batch: Any) -> Any:
    """Return the (sum, weight) of the loss over the answers of a batch."""
    return model.loss(batch)


def evaluate(model: Gemma2, batches: Iterator[Any]) -> float:
    """Return the mean loss of a token of the answers, in nats."""
    totals = [summed_loss(model, batch) for batch in batches]
    return float(sum(total for total, _ in totals) / sum(weight for _, weight in totals))


def answers(model: Gemma2, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Return what the model answers to each prompt, greedily; prompts are padded on the left."""
    encoded = [encode_chat(tokenizer, prompt)[0] for prompt in prompts]
    longest = max(map(len, encoded))
    ids = [np.pad(row, (longest - len(row), 0), constant_values=tokenizer.pad_id or 0) for row in encoded]
    mask = [np.pad(np.ones_like(row), (longest - len(row), 0)) for row in encoded]
    eos = tokenizer.eos_id
    written = scratch_core.generate(
        model, np.stack(ids), np.stack(mask), max_new_tokens=new_tokens, eos_token_id=eos, pad_token_id=eos
    )
    return [tokenizer.decode(row[longest:]).partition(END)[0] for row in np.asarray(written)]


def show(when: str, model: Gemma2, tokenizer: Any, held_out: Conversations, batch_size: int) -> float:
    """Print and return the held-out loss, and print how many answers are right."""
    loss = evaluate(model, held_out.batches(batch_size))
    room = max(int((labels != -100).sum()) for _, labels in held_out.encoded)
    found = answers(model, tokenizer, [row["prompt"] for row in held_out.rows], room)
    right = sum(answer == row["answer"] for answer, row in zip(found, held_out.rows, strict=True))
    print(f"{when}: held-out loss {loss:.3f}, {right} of {len(held_out)} answers right")
    for row, answer in list(zip(held_out.rows, found, strict=True))[:3]:
        print(f"    {row['prompt']!r} -> {answer!r}")
    return loss


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a folder with a Gemma 2 and its tokenizer")
    parser.add_argument("--data", type=Path, default=INSTRUCTIONS)
    parser.add_argument("--out", type=Path, help="where to save the tuned model; the default is a temporary folder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretrain-steps", type=int, default=200, help="of the tiny model, without --checkpoint")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank, and nothing else")
    rates = "default: 2e-5, or 2e-4 with --lora; without a checkpoint 2e-3, or 1e-2 with --lora"
    parser.add_argument("--learning-rate", type=float, help=rates)
    options = parser.parse_args(arguments)
    keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, rate = options.checkpoint, options.learning_rate or (2e-4 if options.lora else 2e-5)
        if checkpoint is None:
            checkpoint, rate = Path(temporary) / "tiny", options.learning_rate or (1e-2 if options.lora else 2e-3)
            make_checkpoint(checkpoint, options.pretrain_steps)
        out = options.out or Path(temporary) / "tuned"

        model, tokenizer = Gemma2.from_pretrained(checkpoint, dtype=jnp.float32), load_tokenizer(checkpoint)
        rows = read_rows(options.data)
        held_out = Conversations(rows[::10], tokenizer)
        training = Conversations([row for number, row in enumerate(rows) if number % 10], tokenizer)
        print(f"{len(training)} conversations to train on, {len(held_out)} held out")
        show("before", model, tokenizer, held_out, options.batch_size)

        trainable, decayed, weight_decay = nnx.Param, model.decayed, 0.01
        if options.lora:  # on every linear layer of the blocks; the head takes no adapter, because it is the embedding
            add_lora(model, "layers.*", rank=options.lora, rngs=nnx.Rngs(0))
            trainable, decayed, weight_decay = LoRAParam, (), 0.0
        optimizer = adamw(warmup_cosine(rate, options.steps), decayed=decayed, weight_decay=weight_decay)
        trainer = Trainer(model, optimizer, trainable=trainable)
        trainer.fit(training_batches(training, options.batch_size, seed=0), options.steps)
        if options.lora:
            save_lora(model, out / "adapter")
            model = merge_lora(model)
        loss = show("after", model, tokenizer, held_out, options.batch_size)

        model.save_pretrained(out)
        tokenizer.save(out)
        again = evaluate(scratch_core.load(out), held_out.batches(options.batch_size))
        if again != loss:
            raise SystemExit(f"the saved model has a held-out loss of {again}, the trained one {loss}")
        print(f"saved in {out}; loaded again, its held-out loss is {again:.3f}")


if __name__ == "__main__":
    main()
