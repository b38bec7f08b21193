"""Token classification: finds the parts of a text that have a class, such as names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from scratch_core.data.annotated import TaggedText, open_tagged
from scratch_core.data.batches import TokenClassificationBatch
from scratch_core.data.pipelines import training_batches
from scratch_core.data.wordpiece import Pieces, WordPiece, padded_row
from scratch_core.errors import ConfigError, DataError
from scratch_core.losses import IGNORED
from scratch_core.registry import ModelSpec
from scratch_core.tasks.masked_lm import right_labels
from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Rows, Task
from scratch_core.tasks.texts import (
    EncoderOptions,
    Evaluation,
    build,
    fingerprint,
    room,
    run,
    split,
    text_shapes,
    tokenizer_of,
)
from scratch_core.vision import label

OUTSIDE, BEGINS, CONTINUES = "O", "B-", "I-"
AGGREGATIONS = ("none", "simple", "first", "average", "max")


@dataclasses.dataclass(frozen=True)
class Entity:
    """A part of a text with a class: its probability, and its characters ``start`` to ``end``, which are ``text``."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagOptions:
    """Find the parts of a text that have a class."""

    text: Annotated[str, tyro.conf.Positional]
    """The text."""
    aggregation: str = "first"
    """How to combine tokens: first, average or max give one class to each word; simple joins neighbouring tokens of
    one class; none keeps each token."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. TEXT is then that file; its
    lines have a "text"."""


class TokenClassificationTask(Task):
    """A class for each word of a text, predicted at the first piece of the word."""

    name: ClassVar[str] = "token_classification"
    unit: ClassVar[str] = "tokens"
    Options: ClassVar[type[RunOptions]] = EncoderOptions
    PredictOptions: ClassVar[type | None] = TagOptions
    row_fields: ClassVar[tuple[str, ...]] = ("text",)
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 5e-5}
    contract: ClassVar[str] = "scratch_core.testing:TokenClassificationContract"

    def count(self, batch: Any) -> int:
        """Return the number of tokens, padding included."""
        return batch["input_ids"].size

    def prepare(self, spec: ModelSpec, options: EncoderOptions) -> "TagJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and texts do not fit."""
        reading = options.reading()
        texts = open_tagged(options.data, reading)
        train, test = split(texts, [each.text for each in texts])
        if not train or not test:
            raise DataError(f"{options.data}: {len(texts)} texts are too few to hold out some: give more")
        kinds = sorted({kind for each in texts for _, _, kind in each.spans} - {OUTSIDE})
        labels = (OUTSIDE, *(mark + kind for kind in kinds for mark in (BEGINS, CONTINUES)))
        model, tokenizer = build(spec, self.name, options, [each.text for each in train], labels)
        test = test[: options.evaluation_examples]
        source = TaggedTexts(train, tokenizer, options.sequence_length, labels)
        origin = options.data or "code of the standard library"
        size = f"{len(train):,} texts to train on, {len(test):,} held out; {', '.join(kinds)}"
        return TagJob(
            model=model,
            batches=training_batches(source, options.batch_size, seed=options.seed),
            held_out=Evaluation(TaggedTexts(test, tokenizer, options.sequence_length, labels), options.batch_size),
            description=f"{origin}: {size}{reading.note}",
            fingerprint=fingerprint(texts),
            update=f"{options.batch_size} texts",
            example=source[0],
            metrics={"accuracy": right_labels},
            texts=test,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random tokens, 24 for each row, each with a random class."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, config.vocab_size, (batch_size, 24)).astype(np.int32)
        return {"input_ids": ids, "labels": rng.integers(0, config.num_classes, ids.shape).astype(np.int32)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the texts and of their labels."""
        return {**text_shapes(batch_size, length), "labels": jax.ShapeDtypeStruct((batch_size, length), jnp.int32)}

    def predict(self, folder: Path, model_class: Any, options: TagOptions) -> None:
        """Print the parts that have a class."""
        (found,) = tag(model_class.from_pretrained(folder), [options.text], aggregation=options.aggregation)
        for each in found:
            print(f"{each.start:5} {each.end:5}  {each.score:.4f}  {each.label}  {each.text!r}")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: TagOptions) -> list[Any]:
        """Return the parts of each "text" that have a class, each {"label", "score", "start", "end", "text"}."""
        found = tag(model, [row["text"] for row in rows], aggregation=options.aggregation)
        return [[dataclasses.asdict(each) for each in parts] for parts in found]


TASK = TokenClassificationTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TagJob(Job):
    """A run on texts with labelled parts: prints accuracy and F1."""

    texts: Sequence[TaggedText]

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the loss, the accuracy beside that of the most frequent class, and F1 of the entities of some texts."""
        super().show_after(folder, results)
        labels = np.concatenate([batch["labels"][batch["labels"] != IGNORED] for batch in self.held_out])
        print(f"  always the most frequent class  {np.max(np.bincount(labels)) / len(labels):.4f}")
        texts = self.texts[:200]
        found = [{(e.start, e.end, e.label) for e in row} for row in tag(self.model, [each.text for each in texts])]
        right = sum(len(row & set(each.spans)) for row, each in zip(found, texts, strict=True))
        total = sum(map(len, found)) + sum(len(each.spans) for each in texts)
        print(f"held-out F1 of {len(texts)} texts, whole entities {2 * right / max(total, 1):.4f}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that tags a text."""
        return "predict", str(folder), next(line.strip() for line in self.texts[0].text.splitlines() if line.strip())


class TaggedTexts:
    """Texts with labelled parts in tokens. Item i: "input_ids", "attention_mask", "token_type_ids", "labels" [T].

    ``labels`` are O, and B- and I- with the name of each class. The first word of a part has B-, its other words I-, so
    that two neighbouring parts of one class stay separate. The first piece of a word has the class of the part that
    contains its first character; the other pieces have -100.
    """

    def __init__(self, texts: Sequence[TaggedText], tokenizer: WordPiece, length: int, labels: tuple[str, ...]):
        self.pad_id, self.length = tokenizer.pad_id, length
        self.rows, self.labels = [], []
        for each, pieces in zip(texts, tokenizer.all_pieces([each.text for each in texts]), strict=True):
            self.rows.append(tokenizer.join(pieces.ids[: length - 2]))
            kinds = np.zeros(len(each.text) + 1, np.int32)
            for first, end, kind in each.spans:
                kinds[first:end] = labels.index(CONTINUES + kind)
                kinds[first] = labels.index(BEGINS + kind)
            targets = np.where(pieces.begins_word(), kinds[pieces.spans[:, 0]], IGNORED)[: length - 2]
            targets = np.pad(targets, (1, length - 1 - len(targets)), constant_values=IGNORED)
            self.labels.append(targets.astype(np.int32))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenClassificationBatch:
        """Return text ``index``."""
        batch: Any = padded_row(self.rows[int(index)], self.pad_id, self.length)
        return {**batch, "labels": self.labels[int(index)]}


def tag(model: Any, texts: Sequence[str], *, aggregation: str = "first", progress: bool = False) -> list[list[Entity]]:
    """Return the parts of each text whose class is not O, in their order.

    ``aggregation`` is as in transformers. "none" gives each token with its class. "simple" joins neighbouring tokens of
    one class. "first", "average" and "max" first give one class to all pieces of a word: that of its first piece, of
    the mean of their probabilities, or of the piece with the highest probability. The prefix B- marks the start of a
    part and I- its continuation; without them, neighbours of one class are one part. A text that is too long is cut at
    its end. Raises ConfigError for another aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation={aggregation!r} must be one of: {', '.join(AGGREGATIONS)}")
    tokenizer = tokenizer_of(model)
    cut = room(model, 2)
    pieces = [Pieces(*(part[:cut] for part in each)) for each in tokenizer.all_pieces(texts)]
    rows = [tokenizer.join(each.ids) for each in pieces]
    names = [label(model.config, i) for i in range(model.config.num_classes)]
    return [
        _entities(logits_TC[1 : 1 + len(each.ids)], each, text, names, aggregation)
        for text, each, logits_TC in zip(texts, pieces, run(model, rows, progress=progress), strict=True)
    ]


def _entities(logits_TC: np.ndarray, pieces: Pieces, text: str, names: list[str], aggregation: str) -> list[Entity]:
    exponents_TC = np.exp(logits_TC - logits_TC.max(axis=-1, keepdims=True))
    scores_TC = exponents_TC / exponents_TC.sum(axis=-1, keepdims=True)
    alone = aggregation in ("none", "simple")
    starts = np.flatnonzero(np.ones(len(pieces.ids), bool) if alone else pieces.begins_word()).tolist()
    ends = [*starts, len(pieces.ids)][1:]
    units = []
    for start, end in zip(starts, ends, strict=True):
        scores_C = scores_TC[start]
        if aggregation == "average":
            scores_C = scores_TC[start:end].mean(axis=0)
        elif aggregation == "max":
            scores_C = scores_TC[start + scores_TC[start:end].max(axis=-1).argmax()]
        best = int(scores_C.argmax())
        units.append((names[best], float(scores_C[best]), int(pieces.spans[start, 0]), int(pieces.spans[end - 1, 1])))
    if aggregation == "none":
        return [Entity(*unit, text[unit[2] : unit[3]]) for unit in units if unit[0] != OUTSIDE]
    groups: list[list[tuple[str, float, int, int]]] = []
    for unit in units:
        if groups and _joins(groups[-1][-1][0], unit[0]):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    found = []
    for group in groups:
        kind, start, end = _kind(group[0][0]), group[0][2], group[-1][3]
        if kind != OUTSIDE:
            found.append(Entity(kind, float(np.mean([unit[1] for unit in group])), start, end, text[start:end]))
    return found


def _joins(before: str, name: str) -> bool:
    """Return whether a token of class ``name`` continues the part of the token before it."""
    return _kind(before) == _kind(name) and not name.startswith(BEGINS)


def _kind(name: str) -> str:
    return name[2:] if name.startswith((BEGINS, CONTINUES)) else name
