"""Masked language modelling: pre-trains encoders and fills in the blanks of a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from scratch_core.data.masking import COPIES, MaskedWindows, laid_end_to_end
from scratch_core.data.pipelines import training_batches
from scratch_core.data.sources import open_documents
from scratch_core.data.text import split_by_file
from scratch_core.data.wordpiece import WordPiece
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED, encoder_outputs
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Rows, Task
from scratch_core.tasks.texts import EncoderOptions, Evaluation, at_least_one, build, fingerprint, run, tokenizer_of


@dataclasses.dataclass(frozen=True)
class Fill:
    """A token for a blank: its probability, and the text with it in place."""

    token: str
    probability: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedOptions(EncoderOptions):
    """Train an encoder to predict hidden tokens."""

    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """A text file or a folder of them, or rows with a "text": .jsonl, .csv, .tsv, .parquet, a folder of `save_to_disk`,
    or hf:NAME for a data set of the Hub. The default is the source of Python's own standard library."""
    whole_words: bool = False
    """Hide whole words instead of single word pieces."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FillOptions:
    """Fill in the blanks of a text."""

    text: Annotated[str, tyro.conf.Positional]
    """A text with [MASK] where a token is missing."""
    top: int = 5
    """Number of tokens to print for each blank."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. TEXT is then that file; its
    lines have a "text"."""


class MaskedLMTask(Task):
    """The model predicts hidden tokens from the tokens around them."""

    name: ClassVar[str] = "masked_lm"
    unit: ClassVar[str] = "tokens"
    Options: ClassVar[type[RunOptions]] = MaskedOptions
    PredictOptions: ClassVar[type | None] = FillOptions
    row_fields: ClassVar[tuple[str, ...]] = ("text",)
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 5e-5}
    contract: ClassVar[str] = "scratch_core.testing:MaskedLMContract"

    def count(self, batch: Any) -> int:
        """Return the number of tokens, padding included."""
        return batch["input_ids"].size

    def prepare(self, spec: ModelSpec, options: MaskedOptions) -> "MaskedJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and text do not fit."""
        found = open_documents(options.data, options.reading())
        texts = {each.name: b"".join(each.pieces()).decode("utf-8", errors="replace") for each in found}
        texts = {name: text for name, text in texts.items() if text}
        if not texts:
            raise DataError(f"{found.label} holds token ids: a masked LM needs text")
        if len(texts) == 1:
            (text,) = texts.values()
            cut = round(0.95 * len(text))
            train, test = [text[:cut]], [text[cut:]]
        else:
            held_out = split_by_file({name: len(text) for name, text in texts.items()}, 0.05)
            train = [text for name, text in texts.items() if name not in held_out]
            test = [text for name, text in texts.items() if name in held_out]
        model, tokenizer = build(spec, self.name, options, train)
        windows: dict[str, Any] = {
            "length": options.sequence_length,
            "tokenizer": tokenizer,
            "whole_words": options.whole_words,
        }
        limit = options.evaluation_examples * options.sequence_length
        source = MaskedWindows(laid_end_to_end(train, tokenizer), copies=COPIES, seed=options.seed, **windows)
        size = f"{len(texts)} {found.unit}, {len(source.tokens):,} tokens to train on"
        return MaskedJob(
            model=model,
            batches=training_batches(source, options.batch_size, seed=options.seed),
            held_out=Evaluation(MaskedWindows(laid_end_to_end(test, tokenizer)[:limit], **windows), options.batch_size),
            description=f"{found.label}: {size}{found.note}",
            fingerprint=fingerprint([train, test]),
            update=f"{options.batch_size} x {options.sequence_length} tokens",
            example=source[0],
            metrics={"right tokens": right_labels},
            tokenizer=tokenizer,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random tokens, 24 for each row, with a label at every fourth position."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, config.vocab_size, (batch_size, 24)).astype(np.int32)
        labels = np.where(np.arange(24) % 4 == 1, rng.integers(0, config.vocab_size, ids.shape), IGNORED)
        return {"input_ids": ids, "labels": labels.astype(np.int32)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the texts and of their labels."""
        return dict.fromkeys(("input_ids", "labels"), jax.ShapeDtypeStruct((batch_size, length), jnp.int32))

    def predict(self, folder: Path, model_class: Any, options: FillOptions) -> None:
        """Print the likeliest tokens for each blank."""
        for number, fills in enumerate(fill_mask(model_class.from_pretrained(folder), options.text, options.top), 1):
            print(f"blank {number}:")
            for fill in fills:
                print(f"  {100 * fill.probability:6.2f} %  {fill.token}")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: FillOptions) -> list[Any]:
        """Return the ``top`` tokens for each blank of each "text", each {"token", "probability", "text"}."""
        found = fill_masks(model, [row["text"] for row in rows], options.top)
        return [[[dataclasses.asdict(each) for each in blank] for blank in blanks] for blanks in found]


TASK = MaskedLMTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskedJob(Job):
    """A run on text with hidden tokens: prints the share that the model predicts right."""

    tokenizer: WordPiece

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the loss, the share of right tokens, and the share of always answering the most frequent token."""
        super().show_after(folder, results)
        labels = np.concatenate([batch["labels"][batch["labels"] != IGNORED] for batch in self.held_out])
        print(f"  always the most frequent token  {np.max(np.bincount(labels)) / len(labels):.4f}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that fills in a blank."""
        return "predict", str(folder), f"for i in {self.tokenizer.names['mask']}(10):"


def fill_mask(model: Any, text: str, top: int = 5) -> list[list[Fill]]:
    """Return the likeliest tokens for each [MASK] of one text; errors as for :func:`fill_masks`."""
    return fill_masks(model, [text], top)[0]


def fill_masks(model: Any, texts: Sequence[str], top: int = 5) -> list[list[list[Fill]]]:
    """Return the ``top`` likeliest tokens for each [MASK] of each text, likeliest first.

    Raises DataError for a text without [MASK], and for a text with more tokens than the model has positions. Raises
    ConfigError for a ``top`` below 1.
    """
    at_least_one(top=top)
    tokenizer, found = tokenizer_of(model), []
    pieces = list(tokenizer.all_pieces(texts))
    rows = [tokenizer.join(each.ids) for each in pieces]
    for text, (ids, _) in zip(texts, rows, strict=True):
        if tokenizer.mask_id not in ids:
            raise DataError(f"{text!r} has no {tokenizer.names['mask']}: write it where a token is missing")
        if len(ids) > model.config.max_positions:
            raise DataError(
                f"the text has {len(ids)} tokens, the model {model.config.max_positions} positions: shorten the text"
            )
    for text, each, (ids, _), outputs in zip(texts, pieces, rows, run(model, rows), strict=True):
        logits_TV = outputs[0] if isinstance(outputs, tuple) else outputs  # a model with both heads of pre-training
        blanks = []
        for place in np.flatnonzero(ids == tokenizer.mask_id):
            probabilities_V = np.asarray(jax.nn.softmax(logits_TV[place]))
            order = np.argsort(-probabilities_V, kind="stable")[:top]
            first, end = each.spans[int(place) - 1]  # - 1, because [CLS] comes first
            tokens = [(tokenizer.token(number), float(probabilities_V[number])) for number in order]
            blanks.append([Fill(token, score, text[:first] + token + text[end:]) for token, score in tokens])
        found.append(blanks)
    return found


def right_labels(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return how many labels a classifier of texts or of tokens predicts right, and how many there are."""
    counted = batch["labels"] != IGNORED
    return ((encoder_outputs(model, batch).argmax(axis=-1) == batch["labels"]) & counted).sum(), counted.sum()
