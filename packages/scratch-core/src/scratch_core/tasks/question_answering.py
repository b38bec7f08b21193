"""Question answering: finds the part of a text that answers a question."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from scratch_core.data.annotated import Question, open_questions
from scratch_core.data.batches import QuestionAnsweringBatch
from scratch_core.data.pipelines import training_batches
from scratch_core.data.wordpiece import WordPiece, padded_row
from scratch_core.errors import ConfigError, DataError
from scratch_core.losses import IGNORED, encoder_outputs
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Rows, Task
from scratch_core.tasks.texts import (
    EncoderOptions,
    Evaluation,
    at_least_one,
    build,
    fingerprint,
    run,
    split,
    text_shapes,
    tokenizer_of,
)

POSITIONS = ("start_positions", "end_positions")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A part of the context, characters ``start`` to ``end``, with its probability. An empty text means "no answer"."""

    text: str
    score: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Answer a question from a text."""

    question: Annotated[str, tyro.conf.Positional]
    """The question."""
    context: Annotated[str, tyro.conf.Positional] = ""
    """The text that holds the answer."""
    top: int = 1
    """Number of answers to print."""
    no_answer: bool = False
    """Allow "no answer" as an answer, for questions that the text does not answer."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. QUESTION is then that file;
    its lines have "question" and "context"."""


class QuestionAnsweringTask(Task):
    """The answer to a question is a part of a text."""

    name: ClassVar[str] = "question_answering"
    unit: ClassVar[str] = "questions"
    Options: ClassVar[type[RunOptions]] = EncoderOptions
    PredictOptions: ClassVar[type | None] = AnswerOptions
    row_fields: ClassVar[tuple[str, ...]] = ("question", "context")
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 5e-5}
    contract: ClassVar[str] = "scratch_core.testing:QuestionAnsweringContract"

    def prepare(self, spec: ModelSpec, options: EncoderOptions) -> "QuestionJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and questions do not fit."""
        reading = options.reading()
        questions = open_questions(options.data, reading)
        train, test = split(questions, [each.context for each in questions])
        if not train or not test:
            raise DataError(f"{options.data}: {len(questions)} questions are too few to hold out some")
        model, tokenizer = build(spec, self.name, options, [text for each in train for text in each[:2]])
        test = test[: options.evaluation_examples]
        source = Questions(train, tokenizer, options.sequence_length)
        origin = options.data or "names of functions of the standard library"
        return QuestionJob(
            model=model,
            batches=training_batches(source, options.batch_size, seed=options.seed),
            held_out=Evaluation(Questions(test, tokenizer, options.sequence_length), options.batch_size, POSITIONS),
            description=f"{origin}: {len(train):,} questions to train on, {len(test):,} held out{reading.note}",
            fingerprint=fingerprint(questions),
            update=f"{options.batch_size} questions",
            example=source[0],
            metrics={"both ends right": right_spans},
            questions=test,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random tokens, 24 for each row, and random answers."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, config.vocab_size, (batch_size, 24)).astype(np.int32)
        start, more = rng.integers(0, 12, (2, batch_size)).astype(np.int32)
        return {"input_ids": ids, "start_positions": start, "end_positions": start + more}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the texts and of the answers' positions."""
        return text_shapes(batch_size, length) | dict.fromkeys(
            POSITIONS, jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        )

    def predict(self, folder: Path, model_class: Any, options: AnswerOptions) -> None:
        """Print the answers, likeliest first."""
        model = model_class.from_pretrained(folder)
        for each in answer(model, options.question, options.context, top=options.top, no_answer=options.no_answer):
            print(f"{each.score:.4f}  {each.start:5} {each.end:5}  {each.text or '(no answer)'}")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: AnswerOptions) -> list[Any]:
        """Return the ``top`` answers to each "question", each {"text", "score", "start", "end"}."""
        asked = [(row["question"], row["context"]) for row in rows]
        found = answer_all(model, asked, top=options.top, no_answer=options.no_answer)
        return [[dataclasses.asdict(each) for each in answers] for answers in found]


TASK = QuestionAnsweringTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuestionJob(Job):
    """A run on questions: prints the number of exact matches."""

    questions: Sequence[Question]

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print loss and exact matches, and the matches of always the most frequent answer or the first word."""
        super().show_after(folder, results)
        asked = self.questions[:200]
        found = [answer(self.model, q.question, q.context, no_answer=not q.answer)[:1] for q in asked]
        right = sum(bool(row) and row[0].text == q.answer for row, q in zip(found, asked, strict=True))
        most = Counter(q.answer for q in asked).most_common(1)[0][1]
        first = sum(q.context.split()[0] == q.answer for q in asked)
        print(f"held-out exact match {right} of {len(asked)}")
        print(f"  always the most frequent answer {most}; always the first word {first}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that answers a question."""
        return "predict", str(folder), self.questions[0].question, self.questions[0].context


class Questions:
    """Questions in tokens. Item i: "input_ids", "attention_mask", "token_type_ids" [T], and both ends of the answer.

    A context that is too long is cut at its end. An answer that is cut off with it does not count (-100). The position
    of "no answer" is [CLS], 0.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: WordPiece, length: int):
        self.pad_id, self.length = tokenizer.pad_id, length
        self.rows, self.ends = [], []
        asked = list(tokenizer.all_pieces([each.question for each in questions]))
        for each, first, second in zip(
            questions, asked, tokenizer.all_pieces([each.context for each in questions]), strict=True
        ):
            ids = first.ids[: length // 2]
            kept = max(0, length - 3 - len(ids))
            self.rows.append(tokenizer.join(ids, second.ids[:kept]))
            start, end = (
                (0, 0)
                if not each.answer
                else token_span(second.spans[:kept], each.start, each.start + len(each.answer))
            )
            shift = len(ids) + 2 if each.answer and start >= 0 else 0
            self.ends.append((start + shift, end + shift))

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> QuestionAnsweringBatch:
        """Return question ``index``."""
        batch: Any = padded_row(self.rows[int(index)], self.pad_id, self.length)
        return {
            **batch,
            **{name: np.int32(where) for name, where in zip(POSITIONS, self.ends[int(index)], strict=True)},
        }


def token_span(spans: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the first and the last token of the characters ``start`` to ``end``, or -100 twice if one is cut off."""
    inside = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start))
    if not len(inside) or spans[inside[-1], 1] < end or spans[inside[0], 0] > start:
        return IGNORED, IGNORED
    return int(inside[0]), int(inside[-1])


def answer(model: Any, question: str, context: str, **options: Any) -> list[Answer]:
    """Return the ``top`` likeliest answers to one question; arguments and errors as for :func:`answer_all`."""
    return answer_all(model, [(question, context)], **options)[0]


def answer_all(
    model: Any,
    asked: Sequence[tuple[str, str]],
    *,
    top: int = 1,
    max_answer_tokens: int = 15,
    stride: int | None = None,
    max_tokens: int = 384,
    no_answer: bool = False,
    align_to_words: bool = True,
) -> list[list[Answer]]:
    """Return the ``top`` likeliest answers to each question from its context, likeliest first.

    They are those of the question-answering pipeline of transformers 4.56. A long context is read in windows of at most
    ``max_tokens`` tokens, including the question; neighbouring windows share ``stride`` tokens (None: 128, or half a
    window if that is less). The score of a span of at most ``max_answer_tokens`` tokens is the probability of its first
    token times that of its last, each among [CLS] and the tokens of the window's context. Of each window, the best
    ``2 * top + 10`` spans count; each is widened to whole words unless ``align_to_words`` is False, which suits
    languages that put no spaces between words. Spans with the same text, ignoring case, are one answer: it has the sum
    of their scores, and the place where it is read first. Windows that share it both count, so that the sum can exceed
    1. With ``no_answer``, [CLS] ("no answer") competes; its score is the lowest over all windows.

    Raises DataError for an empty context, ConfigError if a question fills the window or an argument is out of range.
    """
    tokenizer = tokenizer_of(model)
    at_least_one(top=top, max_answer_tokens=max_answer_tokens)
    max_tokens = min(max_tokens, model.config.max_positions)
    stride = min(128, max_tokens // 2) if stride is None else stride
    if stride < 0:
        raise ConfigError(f"stride={stride} must not be negative")
    asked_ids = [each.ids for each in tokenizer.all_pieces([question for question, _ in asked])]
    contexts = list(tokenizer.all_pieces([context for _, context in asked]))
    rows, windows = [], []  # all windows of all questions, and the first context token of each window by question
    for question_ids, read, (_, context) in zip(asked_ids, contexts, asked, strict=True):
        if not len(read.ids):
            raise DataError(f"the context {context!r} holds no token: give a text")
        width = max_tokens - 3 - len(question_ids)
        if width <= stride and width < len(read.ids):
            raise ConfigError(
                f"a window has {max_tokens} tokens: the question takes {len(question_ids)}, [CLS] and [SEP] take 3, "
                f"and stride={stride} are shared with the next window: shorten the question, or choose a smaller stride"
            )
        step = max(width - stride, 1)
        windows.append(range(0, max(len(read.ids) - stride, 1), step) if width < len(read.ids) else range(1))
        rows += [tokenizer.join(question_ids, read.ids[first : first + width]) for first in windows[-1]]
    outputs, found = iter(zip(rows, run(model, rows), strict=True)), []
    for question_ids, read, (_, context), firsts in zip(asked_ids, contexts, asked, windows, strict=True):
        spans, nothing = read.word_spans() if align_to_words else read.spans, 1.0
        answers: dict[str, Answer] = {}
        for first in firsts:
            row, logits = next(outputs)
            size = len(row[0]) - len(question_ids) - 3
            where = np.concatenate([[0], len(question_ids) + 2 + np.arange(size)])  # [CLS], then the context
            start_S, end_S = (_softmax(each[where]) for each in logits)
            nothing = min(nothing, float(start_S[0] * end_S[0]))
            scores = np.tril(np.triu(np.outer(start_S[1:], end_S[1:])), max_answer_tokens - 1)
            best = np.argsort(-scores, axis=None, kind="stable")[: 2 * top + 10 if align_to_words else top]
            for start, end in zip(*np.unravel_index(best, scores.shape), strict=True):
                if score := float(scores[start, end]):
                    span = int(spans[first + start, 0]), int(spans[first + end, 1])
                    text = context[slice(*span)]
                    same = answers.get(text.lower(), Answer(text, 0.0, *span))
                    answers[text.lower()] = dataclasses.replace(same, score=same.score + score)
        every = [*answers.values(), *([Answer("", nothing, 0, 0)] if no_answer else [])]
        found.append(sorted(every, key=lambda each: -each.score)[:top])
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def right_spans(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return for how many answers the model predicts both ends right, and how many answers there are."""
    start_BT, end_BT = encoder_outputs(model, batch)
    start_B, end_B = (batch[name] for name in POSITIONS)
    counted_B = start_B >= 0
    right_B = (start_BT.argmax(axis=-1) == start_B) & (end_BT.argmax(axis=-1) == end_B) & counted_B
    return right_B.sum(), jnp.asarray(counted_B).sum()
