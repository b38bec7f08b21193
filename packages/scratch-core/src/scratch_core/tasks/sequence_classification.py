"""Text classification: one class for each text."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from scratch_core.data.annotated import LabelledText, open_labelled
from scratch_core.data.batches import SequenceClassificationBatch
from scratch_core.data.pipelines import training_batches
from scratch_core.data.wordpiece import WordPiece, padded_row
from scratch_core.errors import DataError
from scratch_core.registry import ModelSpec
from scratch_core.tasks.masked_lm import right_labels
from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Rows, Task
from scratch_core.tasks.texts import (
    EncoderOptions,
    Evaluation,
    at_least_one,
    build,
    fingerprint,
    room,
    run,
    split,
    text_shapes,
    tokenizer_of,
)
from scratch_core.vision import label


@dataclasses.dataclass(frozen=True)
class TextClass:
    """A class of a text, and its probability. For a regression, the score is the predicted number."""

    label: str
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Classify a text."""

    text: Annotated[str, tyro.conf.Positional]
    """The text."""
    top: int = 5
    """Number of classes to print."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. TEXT is then that file; its
    lines have a "text"."""


class SequenceClassificationTask(Task):
    """One class for each text."""

    name: ClassVar[str] = "sequence_classification"
    unit: ClassVar[str] = "texts"
    Options: ClassVar[type[RunOptions]] = EncoderOptions
    PredictOptions: ClassVar[type | None] = ClassifyOptions
    row_fields: ClassVar[tuple[str, ...]] = ("text",)
    # The paper's range of rates is 2e-5 to 5e-5, with a warm-up: https://arxiv.org/abs/1810.04805, appendix A.3.
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 5e-5}
    contract: ClassVar[str] = "scratch_core.testing:SequenceClassificationContract"

    def prepare(self, spec: ModelSpec, options: EncoderOptions) -> "TextClassificationJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and texts do not fit."""
        reading = options.reading()
        texts = open_labelled(options.data, reading)
        train, test = split(texts, [each.text for each in texts])
        labels = tuple(sorted({each.label for each in train}))
        unknown = sorted({each.label for each in test} - set(labels))
        if unknown or not test:
            raise DataError(f"{options.data}: {len(texts)} texts are too few to hold out some of each class {unknown}")
        model, tokenizer = build(spec, self.name, options, [each.text for each in train], labels)
        test = test[: options.evaluation_examples]
        source = LabelledTexts(train, tokenizer, options.sequence_length, labels)
        held_out = LabelledTexts(test, tokenizer, options.sequence_length, labels)
        origin = options.data or "docstrings of the standard library, by package"
        size = f"{len(train):,} to train on, {len(test):,} held out, {len(labels)} classes"
        return TextClassificationJob(
            model=model,
            batches=training_batches(source, options.batch_size, seed=options.seed),
            held_out=Evaluation(held_out, options.batch_size),
            description=f"{origin}: {size}{reading.note}",
            fingerprint=fingerprint(texts),
            update=f"{options.batch_size} texts",
            example=source[0],
            metrics={"accuracy": right_labels},
            texts=test,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random tokens, 24 for each row, and random classes."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, config.vocab_size, (batch_size, 24)).astype(np.int32)
        return {"input_ids": ids, "labels": rng.integers(0, config.num_classes, batch_size).astype(np.int32)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the texts and of their labels."""
        return {**text_shapes(batch_size, length), "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def predict(self, folder: Path, model_class: Any, options: ClassifyOptions) -> None:
        """Print the classes of a text, likeliest first."""
        at_least_one(top=options.top)
        (found,) = classify(model_class.from_pretrained(folder), [options.text])
        for each in found[: options.top]:
            print(f"{each.score:8.4f}  {each.label}")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: ClassifyOptions) -> list[Any]:
        """Return the ``top`` classes of each "text", each {"label", "score"}, likeliest first."""
        at_least_one(top=options.top)
        found = classify(model, [row["text"] for row in rows])
        return [[dataclasses.asdict(each) for each in classes[: options.top]] for classes in found]


TASK = SequenceClassificationTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextClassificationJob(Job):
    """A run on labelled texts: ends with the accuracy beside that of the most frequent class."""

    texts: Sequence[LabelledText]

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print loss and accuracy, and the accuracy of always answering the most frequent class."""
        super().show_after(folder, results)
        most = Counter(each.label for each in self.texts).most_common(1)[0][1]
        print(f"  always the most frequent class  {most / len(self.texts):.4f}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that classifies a text."""
        return "predict", str(folder), self.texts[0].text.splitlines()[0]


class LabelledTexts:
    """Labelled texts in tokens. Item i: "input_ids", "attention_mask", "token_type_ids" [T], "labels" its class.

    A text that is longer than T is cut at its end.
    """

    def __init__(self, texts: Sequence[LabelledText], tokenizer: WordPiece, length: int, labels: tuple[str, ...]):
        self.labels = np.array([labels.index(each.label) for each in texts], np.int32)
        self.rows = [
            tokenizer.join(found.ids[: length - 2]) for found in tokenizer.all_pieces([each.text for each in texts])
        ]
        self.pad_id, self.length = tokenizer.pad_id, length

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.rows)

    def __getitem__(self, index: int) -> SequenceClassificationBatch:
        """Return text ``index``."""
        batch: Any = padded_row(self.rows[int(index)], self.pad_id, self.length)
        return {**batch, "labels": self.labels[int(index)]}


def classify(model: Any, texts: Sequence[str | tuple[str, str]], *, progress: bool = False) -> list[list[TextClass]]:
    """Return the classes of each text, or of each pair of texts, the highest score first.

    Scores are probabilities that add up to 1; independent probabilities for a multi-label model; the predicted numbers
    for a regression. A text that is too long is cut at its end. Of a pair, the second text is cut first.
    """
    tokenizer = tokenizer_of(model)
    rows = []
    for text in texts:
        first, second = (text, None) if isinstance(text, str) else text
        ids = tokenizer.pieces(first).ids
        if second is None:
            rows.append(tokenizer.join(ids[: room(model, 2)]))
        else:
            ids = ids[: room(model, 3)]
            rows.append(tokenizer.join(ids, tokenizer.pieces(second).ids[: room(model, 3) - len(ids)]))
    config, found = model.config, []
    for logits_C in run(model, rows, progress=progress):
        if config.problem_type == "regression" or (config.problem_type is None and config.num_classes == 1):
            scores_C = logits_C
        elif config.problem_type == "multi_label_classification":
            scores_C = 1 / (1 + np.exp(-logits_C))
        else:
            exponents_C = np.exp(logits_C - logits_C.max())
            scores_C = exponents_C / exponents_C.sum()
        order = np.argsort(-scores_C, kind="stable")
        found.append([TextClass(label(config, int(i)), float(scores_C[i])) for i in order])
    return found
