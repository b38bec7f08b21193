"""Sequence to sequence: a text in, another text out."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from scratch_core import weights
from scratch_core.data.pairs import IGNORED, Pair, Pairs, SpanCorruption, open_pairs
from scratch_core.data.pipelines import training_batches
from scratch_core.data.rows import Reading, is_rows, open_rows
from scratch_core.data.text import load_text
from scratch_core.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from scratch_core.errors import ConfigError, DataError
from scratch_core.generation import beam_search
from scratch_core.layers import scan_layers
from scratch_core.parallel import born_sharded, process_part
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RowOptions, RunOptions, flag
from scratch_core.tasks.task import Job, Rows, Task

SHOWN = 3
"""The number of examples that a run prints."""
MATCHED = 200
"""The number of held-out pairs over which exact matches are counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions(RowOptions):
    """Train a sequence-to-sequence model on pairs of texts, or to fill the gaps in a text."""

    paths: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """Rows with a "source" and a "target": .jsonl, .csv, .tsv, .parquet, a folder of `save_to_disk`, or hf:NAME for a
    data set of the Hub. Or texts for filling gaps: a file, a folder, or rows with a "text". The default is the source
    of Python's own standard library, with gaps."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder with a tokenizer.json. The default is bytes; with --start, the checkpoint's own."""
    batch_size: int = 16
    """Examples per update."""
    source_length: int = 128
    """Largest number of tokens of a source. For texts with gaps, it is the length before the gaps are cut out."""
    target_length: int = 64
    """Largest number of tokens of a target. For texts with gaps, the length follows from the gaps instead."""
    evaluation_examples: int = 1000
    """Largest number of held-out examples for the final figures."""
    scan: bool = False
    """Compile one layer of each stack and run all its layers with it. Deep models compile several times faster."""
    remat: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, more time."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        for name, least in (("source_length", 8), ("target_length", 2), ("evaluation_examples", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Write the target for a text."""

    text: Annotated[str, tyro.conf.Positional]
    """The source."""
    max_new_tokens: int = 128
    """Largest number of tokens to write."""
    num_beams: int = 1
    """Number of beams of the search; 1 is greedy decoding."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. TEXT is then that file; its
    lines have a "text"."""


class SequenceToSequenceTask(Task):
    """An encoder reads the source, and a decoder writes the target."""

    name: ClassVar[str] = "seq2seq"
    unit: ClassVar[str] = "tokens"
    Options: ClassVar[type[RunOptions]] = PairOptions
    # A constant 1e-3 is the rate at which the paper fine-tunes, with Adafactor: https://arxiv.org/abs/1910.10683,
    # section 3.1.2; Adam needs less.
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 3e-4}
    contract: ClassVar[str] = "scratch_core.testing:SequenceToSequenceContract"
    PredictOptions: ClassVar[type | None] = WriteOptions
    row_fields: ClassVar[tuple[str, ...]] = ("text",)

    def count(self, batch: Any) -> int:
        """Return the number of source and target tokens, padding included."""
        return batch["input_ids"].size + batch["labels"].size

    def prepare(self, spec: ModelSpec, options: PairOptions) -> "PairJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and data do not fit."""
        model, tokenizer = build(spec, options)
        model.remat_layers = options.remat
        if options.scan:
            scan_layers(model)
        lengths = options.source_length, options.target_length
        reading, change = options.reading(), None
        if options.data is not None and is_rows(options.data) and _has_pairs(options.data, reading):
            pairs = open_pairs(options.data, reading)
            order = np.random.default_rng(0).permutation(len(pairs))
            cut = max(1, round(0.1 * len(pairs)))
            kept, held_out = ([pairs[i] for i in part] for part in (order[cut:], order[:cut]))
            source: Any = Pairs(kept, tokenizer, *lengths)
            test: Any = Pairs(held_out[: options.evaluation_examples], tokenizer, *lengths)
            description = f"{options.data}: {len(pairs):,} pairs, {cut:,} held out{reading.note}"
            example = source[0]
            fingerprint = str(hash_of(pairs))
        else:
            tokens = load_text(options.data, tokenizer, reading=reading)
            marks, end = sentinels(tokenizer, model.config.vocab_size), tokenizer.eos_id
            train = SpanCorruption(tokens.train, options.source_length, marks, end=end)
            source, change, example = train.windows, train.corrupt, train[0]  # new gaps in each epoch
            limit = options.evaluation_examples * options.source_length
            test = SpanCorruption(tokens.validation[:limit], options.source_length, marks, end=end)
            description = f"{tokens.description}; gaps to fill"
            fingerprint = tokens.fingerprint()
        part, parts = process_part(options.device_mesh())
        return PairJob(
            model=model,
            batches=training_batches(
                source, options.batch_size, seed=options.seed, process_index=part, process_count=parts, change=change
            ),
            held_out=[_batch(test, i, options.batch_size) for i in range(0, len(test), options.batch_size)],
            description=description,
            fingerprint=fingerprint,
            update=f"{options.batch_size} examples",
            example=example,
            metrics={"right tokens": right_tokens},
            tokenizer=tokenizer,
            examples=test,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random sources of 24 tokens and targets of 12."""
        rng = np.random.default_rng(0)
        draw = lambda length: rng.integers(1, config.vocab_size, (batch_size, length)).astype(np.int32)  # noqa: E731
        return {"input_ids": draw(24), "labels": draw(12)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of sources of ``length`` and of targets of half of it, as the options' defaults are."""
        shape = lambda tokens: jax.ShapeDtypeStruct((batch_size, tokens), jnp.int32)  # noqa: E731
        return {"input_ids": shape(length), "attention_mask": shape(length), "labels": shape(length // 2)}

    def predict(self, folder: Path, model_class: Any, options: WriteOptions) -> None:
        """Print the text that the model writes."""
        model, tokenizer = model_class.from_pretrained(folder), load_tokenizer(folder)
        (text,) = write(model, tokenizer, [options.text], options.max_new_tokens, num_beams=options.num_beams)
        print(text)

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: WriteOptions) -> list[Any]:
        """Return the text that the model writes for each "text"."""
        texts = [row["text"] for row in rows]
        return write(model, load_tokenizer(folder), texts, options.max_new_tokens, num_beams=options.num_beams)


TASK = SequenceToSequenceTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairJob(Job):
    """A run on pairs: shows what the model writes for a few held-out sources, and counts exact matches."""

    tokenizer: Tokenizer
    examples: Any

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer."""
        self.tokenizer.save(folder)
        self.model.save_pretrained(folder)

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print loss and metrics. For pairs, also print examples, and exact matches beside the most frequent target."""
        super().show_after(folder, results)
        labels = np.concatenate([batch["labels"][batch["labels"] != IGNORED] for batch in self.held_out])
        print(f"  always the most frequent token  {np.max(np.bincount(labels)) / len(labels):.4f}")
        if not isinstance(self.examples, Pairs):
            return
        pairs = self.examples.pairs[:MATCHED]
        length = self.examples.target_length
        written = write(self.model, self.tokenizer, [pair.source for pair in pairs], length)
        right = sum(text == pair.target for text, pair in zip(written, pairs, strict=True))
        most = Counter(pair.target for pair in pairs).most_common(1)[0][1]
        print(f"held-out exact match {right} of {len(pairs)}; always the most frequent target: {most}")
        for pair, text in zip(pairs[:SHOWN], written, strict=False):
            print(f"  {pair.source!r}\n    -> {text!r} (target {pair.target!r})", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that lets the model write."""
        source = self.examples.pairs[0].source if isinstance(self.examples, Pairs) else "def main():"
        return "predict", str(folder), source


def build(spec: ModelSpec, options: PairOptions) -> tuple[Any, Tokenizer]:
    """Return the model and the tokenizer; a new model gets the tokenizer's special tokens.

    Raises ConfigError if the tokenizer has more tokens than the model.
    """
    folder = None if options.checkpoint is None else weights.resolve(options.checkpoint)
    source = options.tokenizer or folder
    tokenizer: Tokenizer = ByteTokenizer() if source is None else load_tokenizer(source)
    model_class = spec.model(TASK.name)
    model = None if folder is None else model_class.from_pretrained(folder, mesh=options.device_mesh())
    config = spec.config(options.preset) if model is None else model.config
    if tokenizer.vocab_size > config.vocab_size:
        origin = f"--preset {options.preset}" if folder is None else str(folder)
        raise ConfigError(
            f"{origin} has vocab_size={config.vocab_size}, fewer than the tokenizer's {tokenizer.vocab_size} tokens"
        )
    if model is not None:
        return model, tokenizer
    start = config.decoder_start_token_id if tokenizer.pad_id is None else tokenizer.pad_id
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    config = dataclasses.replace(config, decoder_start_token_id=start, **special)
    build = lambda: model_class(config, dtype=jnp.float32, rngs=nnx.Rngs(options.seed))  # noqa: E731
    return born_sharded(build, options.device_mesh()), tokenizer


def sentinels(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Return the tokens that stand for gaps: <extra_id_0> and so on of the tokenizer.

    If the tokenizer has none, they are the model's ids beyond the tokenizer's, in descending order as in T5.
    """
    named = [tokenizer.token_id(f"<extra_id_{number}>") for number in range(1000)]
    found = [token for token in named if token is not None]
    return found or list(range(vocab_size - 1, tokenizer.vocab_size - 1, -1))


def write(
    model: Any, tokenizer: Tokenizer, sources: Sequence[str], max_new_tokens: int, *, num_beams: int = 1
) -> list[str]:
    """Return the target that the model writes for each source. Raises DataError for an empty source."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    rows = [np.concatenate([tokenizer.encode(text), end]).astype(np.int32) for text in sources]
    for text, row in zip(sources, rows, strict=True):
        if len(row) == len(end):
            raise DataError(f"the source {text!r} holds no token: give a text")
    texts = []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        ids = np.zeros((len(part), max(map(len, part))), np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(part):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        eos = model.config.eos_token_id
        pad = eos[0] if isinstance(eos, tuple) else 0 if eos is None else eos
        found, _ = beam_search(
            model, ids, mask, num_beams=num_beams, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad
        )
        texts += [tokenizer.decode(row[1:]) for row in found[:, 0].tolist()]
    return texts


def right_tokens(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return how many labels the model predicts right, each given the true labels before it, and their number."""
    logits = model(batch["input_ids"], model.decoder_inputs(batch["labels"]), batch.get("attention_mask"))
    counted = batch["labels"] != IGNORED
    return ((logits.argmax(axis=-1) == batch["labels"]) & counted).sum(), counted.sum()


def hash_of(pairs: Sequence[Pair]) -> str:
    """Return a sha256 of all pairs. A resumed run compares it to check that its data has not changed."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _has_pairs(source: str, reading: Reading) -> bool:
    """Return whether the first readable row is a pair, that is, has no "text"."""
    for row in open_rows(source):
        if isinstance(row.fields, dict):
            return "text" not in row.fields and "text" not in reading.columns
    return True


def _batch(source: Any, start: int, batch_size: int) -> dict[str, np.ndarray]:
    """Return the examples from ``start`` on as a batch. The last batch is padded with labels that no loss counts."""
    rows = [source[i] for i in range(start, min(start + batch_size, len(source)))]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    missing = batch_size - len(rows)
    for name, value in batch.items():
        filler = IGNORED if name == "labels" else 0
        batch[name] = np.pad(value, ((0, missing), (0, 0)), constant_values=filler)
    return batch
