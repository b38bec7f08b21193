"""BERT-base, float32: ours beside transformers and sentence-transformers on PyTorch, taking turns.

    uv run --all-packages python shared/benchmarks/bert.py --reference-python PYTHON

PYTHON is an interpreter that has torch, transformers, sentence-transformers and safetensors (a CPU build is enough).
Both sides load one folder in the layout of sentence-transformers, with a random model of BERT-base's size. Encoding is
`encode(texts)` of both, from the text to the vector, in batches of 32: each side cuts the texts into word pieces, sorts
them by length and pads them as it does for its users. The texts are docstrings of the standard library, 3 to 200 words.
A fine-tuning step is a step of AdamW on a classifier of 8 texts of 128 tokens, once with the dropout of BERT-base's
config.json and once without.
"""

import json
import tempfile
from pathlib import Path
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

TEXTS, ROWS, LENGTH, CLASSES = 64, 8, 128, 4
TASKS = {
    f"encode {TEXTS} texts": ("encode", TEXTS),
    f"fine-tuning step {ROWS} x {LENGTH}": ("train", 1),
    "  without dropout": ("train", 0),
}
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def batch() -> tuple[list[list[int]], list[int]]:
    """Return token ids [rows, length] and labels [rows], the same on both sides."""
    return [[1000 + (7 * i + 13 * j) % 20_011 for j in range(LENGTH)] for i in range(ROWS)], [
        i % CLASSES for i in range(ROWS)
    ]


def serve_torch(folder: str) -> None:
    """Serve the tasks with sentence-transformers and with transformers' BertForSequenceClassification."""
    import os

    import sentence_transformers
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count() or 1)
    texts = json.loads(Path(folder, "texts.json").read_text(encoding="utf-8"))
    encoder = sentence_transformers.SentenceTransformer(folder, device="cpu")
    ids, labels = map(torch.tensor, batch())

    def steps(dropout: bool) -> Any:
        rates = {} if dropout else dict.fromkeys(DROPOUT, 0.0)
        model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=CLASSES, **rates).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

        def step() -> None:
            optimizer.zero_grad()
            model(ids, labels=labels).loss.backward()
            optimizer.step()

        return step

    trained = {0: steps(False), 1: steps(True)}

    def encode(_: int) -> None:
        encoder.encode(texts, batch_size=32, show_progress_bar=False)

    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, sentence_transformers))
    hello = {"logits": encoder.encode(texts[:4]).tolist(), "versions": versions}
    serve(hello, {"encode": encode, "train": lambda dropout: trained[dropout]()})


class Ours:
    """The same tasks with scratch-bert."""

    def __init__(self, folder: str):
        import dataclasses

        import jax
        import numpy as np
        import optax
        from flax import nnx
        from scratch_bert import BertConfig, BertForSequenceClassification, SentenceEncoder
        from scratch_core.train import Trainer

        self.texts = json.loads(Path(folder, "texts.json").read_text(encoding="utf-8"))
        self.encoder = SentenceEncoder.from_pretrained(folder)
        ids, labels = (np.array(values, np.int32) for values in batch())
        self.batch = {"input_ids": ids, "labels": labels}
        config = dataclasses.replace(BertConfig.base_uncased(), num_classes=CLASSES)
        without = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
        self.trainers = [
            Trainer(BertForSequenceClassification(each, rngs=nnx.Rngs(0)), optax.adamw(0.0))
            for each in (without, config)
        ]
        self.wait = jax.block_until_ready

    def difference(self, hello: dict[str, Any]) -> float:
        """Return the largest difference between our embeddings and the reference's."""
        import numpy as np

        return float(np.abs(self.encoder.encode(self.texts[:4]) - np.array(hello["logits"])).max())

    def __call__(self, task: Task) -> float:
        """Return the seconds of one task."""
        name, dropout = task
        if name == "encode":
            return timed(lambda: self.encoder.encode(self.texts))
        return timed(lambda: self.wait(self.trainers[dropout].train_step(self.batch)))


def docstrings() -> list[str]:
    """Return docstrings of many lengths: evenly spaced in the order of length, then mixed."""
    from scratch_core.data.annotated import open_labelled

    found = sorted(
        {" ".join(each.text.split()[:200]) for each in open_labelled(None)}, key=lambda text: (len(text), text)
    )
    spaced = [found[(2 * i + 1) * len(found) // (2 * TEXTS)] for i in range(TEXTS)]
    return spaced[::2] + spaced[1::2]  # not in the order of length


def main() -> None:
    """Run both sides and print the table."""
    parser = arguments(__doc__, rounds=4)
    options = parse(parser, serve_torch)

    from flax import nnx
    from scratch_bert import BertConfig, SentenceEncoder
    from scratch_core.data.wordpiece import WordPiece
    from scratch_core.train import keep_memory

    keep_memory()
    texts = docstrings()
    with tempfile.TemporaryDirectory() as folder:
        model = SentenceEncoder(BertConfig.base_uncased(), rngs=nnx.Rngs(0))
        model.tokenizer = WordPiece.train(texts, 4096, lower_case=True)
        model.save_pretrained(folder)
        Path(folder, "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        lengths = sorted(len(model.tokenizer.encode(text)) + 2 for text in texts)
        with Reference(options.reference_python, __file__, folder) as reference:
            ours = Ours(folder)
            print(f"BERT-base; texts of {lengths[0]} to {lengths[-1]} tokens, {sum(lengths):,} in all")
            print_setting(reference.hello, ours.difference(reference.hello))
            best = take_turns(TASKS, ours, reference, options.rounds)
    name = next(iter(TASKS))
    seconds, theirs = best[name]
    rate = machine()[1]
    layers = 12 * (4 * 768**2 + 2 * 768 * 3072)
    share = 2 * layers * sum(lengths) / seconds / 1e9 / rate
    print_table(
        best, {name: f"{TEXTS / seconds:.1f} and {TEXTS / theirs:.1f} texts/s; {share:.0%} of {rate:.0f} GFLOP/s"}
    )


if __name__ == "__main__":
    main()
