"""Question answering: finds the part of a text that answers a question.

A text that is longer than the model's input is read in windows that overlap, in training and in prediction.
Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.2; the windows are those of its code.
"""

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
OVERLAP = 128
"""Tokens that neighbouring windows of a long context share, but at most half of a window's context."""


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
    max_tokens: int = 384
    """Tokens of a window of a long text, including the question: the --sequence-length of the training."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Predict every line of a .jsonl file, and write the lines with a "prediction" here. QUESTION is then that file;
    its lines have "question" and "context"."""


class QuestionAnsweringTask(Task):
    """The answer to a question is a part of a text."""

    name: ClassVar[str] = "question_answering"
    unit: ClassVar[str] = "windows"
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
        size = f"{len(train):,} questions to train on in {len(source):,} windows"
        return QuestionJob(
            model=model,
            batches=training_batches(source, options.batch_size, seed=options.seed),
            held_out=Evaluation(Questions(test, tokenizer, options.sequence_length), options.batch_size, POSITIONS),
            description=f"{origin}: {size}, {len(test):,} questions held out{reading.note}",
            fingerprint=fingerprint(questions),
            update=f"{options.batch_size} windows",
            example=source[0],
            metrics={"both ends right": right_spans},
            questions=test,
            length=options.sequence_length,
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
        allowed = {"top": options.top, "no_answer": options.no_answer, "max_tokens": options.max_tokens}
        for each in answer(model, options.question, options.context, **allowed):
            print(f"{each.score:.4f}  {each.start:5} {each.end:5}  {each.text or '(no answer)'}")

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: AnswerOptions) -> list[Any]:
        """Return the ``top`` answers to each "question", each {"text", "score", "start", "end"}."""
        asked = [(row["question"], row["context"]) for row in rows]
        allowed: dict[str, Any] = {"top": options.top, "no_answer": options.no_answer, "max_tokens": options.max_tokens}
        found = answer_all(model, asked, **allowed)
        return [[dataclasses.asdict(each) for each in answers] for answers in found]


TASK = QuestionAnsweringTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuestionJob(Job):
    """A run on questions: prints the number of exact matches."""

    questions: Sequence[Question]
    length: int

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print loss and exact matches, and the matches of always the most frequent answer or the first word.

        "No answer" is allowed if one of the questions has none.
        """
        super().show_after(folder, results)
        asked = self.questions[:200]
        longest = max(len(each.ids) for each in tokenizer_of(self.model).all_pieces([q.question for q in asked]))
        found = answer_all(
            self.model,
            [(q.question, q.context) for q in asked],
            max_tokens=max(self.length, longest + self.length // 2),  # training cuts such a question
            no_answer=not all(q.answer for q in asked),
        )
        right = sum(bool(row) and row[0].text == q.answer for row, q in zip(found, asked, strict=True))
        most = Counter(q.answer for q in asked).most_common(1)[0][1]
        first = sum(q.context.split()[0] == q.answer for q in asked)
        print(f"held-out exact match {right} of {len(asked)}")
        print(f"  always the most frequent answer {most}; always the first word {first}", flush=True)

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that answers a question."""
        question, context = self.questions[0][:2]
        return "predict", str(folder), question, context, "--max-tokens", str(self.length)


class Questions:
    """Questions in tokens, each with a window of its context.

    Item i has "input_ids", "attention_mask", "token_type_ids" [T], and both ends of the answer. T is ``length``.

    A context that does not fit is cut into the windows of :func:`window_starts`, which are items of their own. The
    position of "no answer", also in a window that does not hold the answer, is [CLS], 0. In a window that holds only a
    part of the answer, the answer does not count (-100). A question longer than half of T is cut at its end.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: WordPiece, length: int):
        self.tokenizer, self.length, self.windows = tokenizer, length, []
        asked = tokenizer.all_pieces([each.question for each in questions])
        contexts = tokenizer.all_pieces([each.context for each in questions])
        for each, question, context in zip(questions, asked, contexts, strict=True):
            ids = question.ids[: length // 2]
            width = max(1, length - 3 - len(ids))
            start, end = token_span(context.spans, each.start, each.start + len(each.answer))
            for first in window_starts(len(context.ids), width, shared(width)):
                if not each.answer or start >= first + width or 0 <= end < first:
                    ends = 0, 0
                elif first <= start and end < first + width:
                    ends = start - first + len(ids) + 2, end - first + len(ids) + 2
                else:
                    ends = IGNORED, IGNORED
                self.windows.append((ids, context.ids[first : first + width], *ends))

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> QuestionAnsweringBatch:
        """Return window ``index``."""
        question, context, *ends = self.windows[int(index)]
        batch: Any = padded_row(self.tokenizer.join(question, context), self.tokenizer.pad_id, self.length)
        return {**batch, **{name: np.int32(where) for name, where in zip(POSITIONS, ends, strict=True)}}


def shared(width: int) -> int:
    """Return how many tokens neighbouring windows of ``width`` tokens share."""
    return min(OVERLAP, width // 2)


def window_starts(tokens: int, width: int, stride: int) -> range:
    """Return the first token of each window of ``width`` tokens over ``tokens`` tokens; neighbours share ``stride``."""
    return range(0, tokens - stride, width - stride) if tokens > width else range(1)


def token_span(spans: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the first and the last token of the characters ``start`` to ``end``.

    Returns -100 twice if no token begins at or before ``start``, or none ends at or after ``end``.
    """
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

    A long context is read in windows of at most ``max_tokens`` tokens, including the question; neighbouring windows
    share ``stride`` tokens (None: those of :func:`shared`). With the same windows, the answers are those of the
    question-answering pipeline of transformers 4.56.

    The score of a span of at most ``max_answer_tokens`` tokens is the probability of its first token times that of its
    last, each among [CLS] and the tokens of the window's context. Of each window, the best ``2 * top + 10`` spans
    count; each is widened to whole words unless ``align_to_words`` is False, which suits languages that put no spaces
    between words. Spans with the same text, ignoring case, are one answer: it has the sum of their scores, and the
    place where it is read first. Windows that share it both count, so that the sum can exceed 1. With ``no_answer``,
    [CLS] ("no answer") competes; its score is the lowest over all windows.

    Raises DataError for an empty context, ConfigError if a question fills the window or an argument is out of range.
    """
    tokenizer = tokenizer_of(model)
    at_least_one(top=top, max_answer_tokens=max_answer_tokens)
    max_tokens = min(max_tokens, model.config.max_positions)
    if stride is not None and stride < 0:
        raise ConfigError(f"stride={stride} must not be negative")
    asked_ids = [each.ids for each in tokenizer.all_pieces([question for question, _ in asked])]
    contexts = list(tokenizer.all_pieces([context for _, context in asked]))
    rows, windows = [], []  # all windows of all questions, and the first context token of each window by question
    for question_ids, read, (_, context) in zip(asked_ids, contexts, asked, strict=True):
        if not len(read.ids):
            raise DataError(f"the context {context!r} holds no token: give a text")
        width = max_tokens - 3 - len(question_ids)
        overlap = shared(max(width, 0)) if stride is None else stride
        if width <= overlap and width < len(read.ids):
            raise ConfigError(
                f"a window has {max_tokens} tokens: the question takes {len(question_ids)}, [CLS] and [SEP] take 3, "
                f"and {overlap} are shared with the next window: shorten the question, or choose a smaller stride"
            )
        windows.append(window_starts(len(read.ids), width, overlap))
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
