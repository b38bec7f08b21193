"""Code shared by the tasks of text encoders: options, the model and its tokenizer, and running it on many texts."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from scratch_core import weights
from scratch_core.config import read_json
from scratch_core.data.wordpiece import WordPiece, padded
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.fine_tuning import start_from
from scratch_core.losses import IGNORED
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RowOptions, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions(RowOptions):
    """Options of every task of text encoders."""

    paths: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Rows: .jsonl, .csv, .tsv, .parquet, a folder of `save_to_disk`, or hf:NAME for a data set of the Hub. Text
    classification reads "text" and "label"; token classification "tokens" and "tags" or "text" and "spans", or a CoNLL
    file; question answering "question", "context" and "answer", or SQuAD's .json. The default is made from the source
    of Python's own standard library."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder with a tokenizer.json or a vocab.txt. By default, a tokenizer is learned from the training data; with
    --start, the checkpoint's own is used."""
    sequence_length: int = 128
    """Tokens per example, including [CLS] and [SEP]. Question answering reads a longer text in windows that overlap."""
    evaluation_examples: int = 1000
    """Largest number of held-out examples for the final figures."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        for name, least in (("sequence_length", 8), ("evaluation_examples", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least {least}")


def build(
    spec: ModelSpec, task: str, options: EncoderOptions, texts: Iterable[str], labels: tuple[str, ...] | None = None
) -> tuple[Any, WordPiece]:
    """Return the model and its tokenizer. A new tokenizer is learned from ``texts``; a new head predicts ``labels``.

    Raises ConfigError if the tokenizer or the length of the examples does not fit the model.
    """
    model_class: Any = spec.model(task)
    folder = None if options.checkpoint is None else weights.resolve(options.checkpoint)
    config = (
        spec.config(options.preset) if folder is None else model_class.Config.from_hf(read_json(folder / "config.json"))
    )
    source = options.tokenizer or folder
    tokenizer = WordPiece.train(texts, config.vocab_size) if source is None else WordPiece(source)
    origin = f"--preset {options.preset}" if folder is None else str(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{origin} has vocab_size={config.vocab_size}, fewer than the tokenizer's {tokenizer.vocab_size} tokens"
        )
    if options.sequence_length > config.max_positions:
        raise ConfigError(
            f"--sequence-length {options.sequence_length} is more than the {config.max_positions} positions of {origin}"
        )
    rngs = nnx.Rngs(options.seed)
    if folder is not None:
        model = start_from(model_class, folder, labels, rngs=rngs)
    else:
        config = config if labels is None else config.with_labels(labels)
        config = dataclasses.replace(config, pad_token_id=tokenizer.pad_id)
        model = model_class(config, dtype=jnp.float32, rngs=rngs)
    model.tokenizer = tokenizer
    return model, tokenizer


def text_shapes(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of an encoder's inputs."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: jax.ShapeDtypeStruct((batch_size, length), jnp.int32) for name in names}


def tokenizer_of(model: Any) -> WordPiece:
    """Return the model's tokenizer. Raises CheckpointError if it has none."""
    if model.tokenizer is None:
        raise CheckpointError(
            f"this {type(model).__name__} has no tokenizer: load it from a folder with tokenizer.json or vocab.txt, or "
            "set model.tokenizer = WordPiece(folder)"
        )
    return model.tokenizer


def at_least_one(**numbers: int) -> None:
    """Raise ConfigError unless each of the arguments is 1 or more."""
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}={number} must be at least 1")


def room(model: Any, special: int) -> int:
    """Return how many tokens of a text fit into the model's positions beside ``special`` special tokens."""
    return model.config.max_positions - special


def run(
    model: Any,
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Any]:
    """Return the model's output for each joined text (ids, token types), as numpy arrays without padding rows.

    Texts of similar length run together, the longest first. Batches have few different shapes, to compile few programs.
    Outputs per token keep the padding after the text. Raises ConfigError for a batch_size below 1.
    """
    at_least_one(batch_size=batch_size)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    results: list[Any] = [None] * len(rows)
    starts: Iterable[int] = range(0, len(order), batch_size)
    if progress:
        from rich.progress import track

        starts = track(starts, description="texts")
    for start in starts:
        part = order[start : start + batch_size]
        given = [rows[i] for i in part]
        given += [given[-1]] * (_rounded(len(part), 1) - len(part))
        width = min(_rounded(len(given[0][0]), 16), model.config.max_positions)
        batch = padded(given, model.tokenizer.pad_id, max(width, len(given[0][0])))
        found = jax.tree.map(np.asarray, _forward(model, *map(jnp.asarray, batch.values())))
        for row, i in enumerate(part):
            results[i] = jax.tree.map(lambda array: array[row], found)  # noqa: B023, used within the turn
    return results


@nnx.jit
def _forward(model: Any, input_ids: jax.Array, attention_mask: jax.Array, token_type_ids: jax.Array) -> Any:
    return model(input_ids, attention_mask, token_type_ids)


def _rounded(count: int, least: int) -> int:
    """Round up to one of the sizes that batches have. There are four sizes per doubling."""
    step = max(least, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step


class Evaluation:
    """The examples of a source in order, in batches of one shape. The padding of the last has labels of -100."""

    def __init__(self, source: Any, batch_size: int, targets: Sequence[str] = ("labels",)):
        self.source, self.batch_size, self.targets = source, batch_size, targets

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.source) // self.batch_size)

    def __iter__(self):
        """Return all batches, one after another."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return batch ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, last = index * self.batch_size, min((index + 1) * self.batch_size, len(self.source))
        rows = [self.source[i] for i in range(first, last)]
        missing = self.batch_size - len(rows)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for name, value in batch.items():
            rest = np.repeat(value[-1:], missing, axis=0)
            batch[name] = np.concatenate([value, np.full_like(rest, IGNORED) if name in self.targets else rest])
        return batch


def split(items: Sequence[Any], keys: Sequence[str], fraction: float = 0.1) -> tuple[list[Any], list[Any]]:
    """Return the training items and the held-out items: about ``fraction`` of all, chosen by the hash of their keys."""
    parts: tuple[list[Any], list[Any]] = [], []
    for item, key in zip(items, keys, strict=True):
        number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
        parts[number < fraction * 2**64].append(item)
    return parts


def fingerprint(items: Any) -> str:
    """Return a sha256 of all items. A resumed run compares it to check that its data has not changed."""
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()
