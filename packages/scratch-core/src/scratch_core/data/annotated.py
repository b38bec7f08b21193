"""Annotated texts: a text with its class, with labelled spans, or with a question and its answer.

They come from rows (see rows.py for the formats) with these fields:

    text, label                         a class
    text, spans                         spans: [[0, 5, "person"], ...], first character, end, class
    tokens, tags (or ner_tags)          words and their tags, such as ["B-PER", "I-PER", "O"]
    question, context, answer, start    "answer": "" where there is none
    question, context, answers          as in SQuAD: {"text": ["..."], "answer_start": [17]}

and from two other formats: CoNLL, with a word and its tag in each line and an empty line after each sentence, and
SQuAD's JSON. Without a file, all three kinds come from the source of Python's standard library: docstrings labelled
with their package; code with its identifiers, keywords and numbers; pieces of code with the name of the function that
they define.
"""

import ast
import io
import json
import keyword
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scratch_core.data.rows import BAD, Reading, is_rows, read_rows, text_of
from scratch_core.data.sources import standard_library
from scratch_core.errors import DataError

PACKAGES = 12
"""The number of packages in the default data of text classification: those with the most docstrings."""
LINES = 5
"""Lines of code in an example of the default data: about 60 word pieces."""


class LabelledText(NamedTuple):
    """A text and its class."""

    text: str
    label: str


class TaggedText(NamedTuple):
    """A text and its labelled spans, each (first character, end, class)."""

    text: str
    spans: list[tuple[int, int, str]]


class Question(NamedTuple):
    """A question, its context, the answer as it appears in the context ("": none), and the answer's first character."""

    question: str
    context: str
    answer: str
    start: int


Row = TypeVar("Row")


def open_labelled(path: str | None, reading: Reading | None = None) -> list[LabelledText]:
    """Return the labelled texts of a file, or the docstrings of the standard library (None). Raises DataError."""
    return list(_docstrings()) if path is None else _enough(path, _rows(path, _labelled, LABELLED, reading), reading)


def open_tagged(path: str | None, reading: Reading | None = None) -> list[TaggedText]:
    """Return the texts with labelled spans of a file, or code of the standard library (None). Raises DataError.

    A file without the suffix of a row format is read as CoNLL.
    """
    if path is None:
        return list(_code())
    found = _rows(path, _tagged, TAGGED, reading) if is_rows(path) else _conll(Path(path), reading or Reading())
    return _enough(path, found, reading)


def open_questions(path: str | None, reading: Reading | None = None) -> list[Question]:
    """Return the questions of a file, or (None) questions for the names of the standard library's functions.

    A .json file is read as SQuAD. Raises DataError.
    """
    if path is None:
        return list(_functions())
    is_squad = Path(path).suffix.lower() == ".json"
    found = _squad(Path(path), reading or Reading()) if is_squad else _rows(path, _question, QUESTION, reading)
    return _enough(path, found, reading)


LABELLED = 'a "text" and a "label"'
TAGGED = '"text" and "spans", or "tokens" and "tags"'
QUESTION = 'a "question", a "context" and an "answer" (or "answers")'


def _rows(path: str, read: Callable[[Any], Row], expected: str, reading: Reading | None) -> Iterator[Row]:
    return (row for _, row in read_rows(path, read, expected, reading))


def _enough(path: str, rows: Iterable[Row], reading: Reading | None) -> list[Row]:
    found = list(rows)
    if len(found) < 2:
        note = "" if reading is None else reading.note
        raise DataError(f"{path} holds {len(found)} rows: at least 2 are needed, one of them to be held out{note}")
    return found


def _labelled(fields: Any) -> LabelledText:
    label = fields["label"]
    if not isinstance(label, str | int) or label == "":
        raise ValueError(f"the label {label!r} must be a name or a whole number")
    return LabelledText(text_of(fields["text"]), str(label))


def _tagged(fields: Any) -> TaggedText:
    if "tokens" in fields:
        return from_tags(fields["tokens"], fields["tags"] if "tags" in fields else fields["ner_tags"])
    text = text_of(fields["text"])
    spans = [(int(first), int(end), str(label)) for first, end, label in fields["spans"]]
    for first, end, _ in spans:
        if not 0 <= first < end <= len(text):
            raise ValueError(f"the span {first} to {end} is not within the text of {len(text)} characters")
    return TaggedText(text, spans)


def from_tags(words: list[str], tags: list[str]) -> TaggedText:
    """Return words joined by spaces, with a span for each run of B-X, I-X, I-X. Any other tag except O is one span.

    An I-X that does not continue a span of class X begins a new one. Raises ValueError if the numbers of words and
    tags differ, or are 0.
    """
    if len(words) != len(tags) or not words:
        raise ValueError(f"{len(words)} tokens and {len(tags)} tags: there must be as many tags as tokens, at least 1")
    spans: list[tuple[int, int, str]] = []
    start, before = 0, "O"
    for word, tag in zip(map(text_of, words), map(text_of, tags), strict=True):
        prefix, kind = (tag[0], tag[2:]) if tag[:2] in ("B-", "I-") else ("", tag)
        if tag != "O":
            joins = prefix == "I" and before == kind
            first = spans.pop()[0] if joins else start
            spans.append((first, start + len(word), kind))
        before, start = kind, start + len(word) + 1
    return TaggedText(" ".join(words), spans)


def _conll(path: Path, reading: Reading) -> Iterator[TaggedText]:
    """Yield the sentences of a CoNLL file: the first column is the word, the last its tag. Skips -DOCSTART- lines."""
    sentence: list[list[str]] = []
    wrong, first = "", 1
    for number, line in enumerate([*_read(path).split(b"\n"), b""], 1):
        if line.strip():
            try:
                columns = line.decode("utf-8").split()
            except UnicodeDecodeError:
                columns = []
            if columns[:1] == ["-DOCSTART-"]:
                continue
            first = first if sentence or wrong else number
            if len(columns) < 2:
                shown = line[:60].decode(errors="replace")
                wrong = wrong or f"{path}, row {number}: must be a word and its tag in UTF-8, found {shown!r}"
            sentence.append(columns)
        elif sentence:
            if wrong:
                reading.bad(f"{wrong} (in the sentence from row {first} on)")
            else:
                yield from_tags([columns[0] for columns in sentence], [columns[-1] for columns in sentence])
            sentence, wrong = [], ""


def _squad(path: Path, reading: Reading) -> Iterator[Question]:
    """Yield the questions of a SQuAD file, version 1 or 2, each with its first answer."""
    try:
        articles = json.loads(_read(path))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        questions = [(paragraph, number) for paragraph in paragraphs for number in range(len(paragraph["qas"]))]
    except BAD as error:
        raise DataError(
            f'{path} must be a SQuAD file, {{"data": [{{"paragraphs": [{{"context": ..., "qas": [...]}}]}}]}}: '
            f"{type(error).__name__}: {error}"
        ) from error
    for row, (paragraph, number) in enumerate(questions, 1):
        try:
            answers = paragraph["qas"][number]["answers"]
            fields = {"question": paragraph["qas"][number]["question"], "context": paragraph["context"]}
            columns = {name: [each[name] for each in answers] for name in ("text", "answer_start")}
            yield _question({**fields, "answers": columns})
        except BAD as error:
            name = f"{path}, question {row} ({_id(paragraph, number)})"
            reading.bad(f"{name}: must have {QUESTION} ({type(error).__name__}: {error})", error)


def _id(paragraph: Any, number: int) -> Any:
    question = paragraph["qas"][number]
    return question.get("id", "no id") if isinstance(question, dict) else "no id"


def _question(fields: Any) -> Question:
    question, context = text_of(fields["question"]), text_of(fields["context"])
    if "answers" in fields:
        texts, starts = fields["answers"]["text"], fields["answers"]["answer_start"]
        answer, start = (texts[0], int(starts[0])) if texts else ("", 0)
    else:
        answer, start = fields["answer"], fields.get("start")
        start = context.find(answer) if start in (None, "") else int(start)
    if context[start : start + len(answer)] != answer or start < 0:
        raise ValueError(f"the answer {answer!r} does not stand at character {start} of the context")
    return Question(question, context, answer, start)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Name another file") from error


def _sources() -> Iterator[tuple[str, str]]:
    """Yield (package, source) for each file of the standard library that can be read."""
    root = Path(ast.__file__).parent
    for path in standard_library():
        try:
            yield path.relative_to(root).parts[0].removesuffix(".py"), path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue


def _docstrings() -> Iterator[LabelledText]:
    """Return the docstrings of the packages that have the most docstrings, without duplicates."""
    found: dict[str, str] = {}
    for package, source in _sources():
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text and len(text) > 30:
                    found.setdefault(text, package)
    most = {package for package, _ in Counter(found.values()).most_common(PACKAGES)}
    return (LabelledText(text, package) for text, package in found.items() if package in most)


def _code() -> Iterator[TaggedText]:
    """Yield pieces of code of a few lines, with their identifiers, keywords and numbers labelled."""
    for _, source in _sources():
        lines = source.splitlines(keepends=True)
        parts: dict[int, list[tuple[int, int, str]]] = {}
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                kind = {tokenize.NUMBER: "number", tokenize.NAME: "identifier"}.get(token.type)
                if kind is not None:
                    kind = "keyword" if keyword.iskeyword(token.string) else kind
                    parts.setdefault(token.start[0] - 1, []).append((token.start[1], token.end[1], kind))
        except (tokenize.TokenError, SyntaxError):
            continue
        for first in range(0, len(lines), 4 * LINES):
            text, spans = "", []
            for number in range(first, min(first + LINES, len(lines))):
                spans += [(len(text) + start, len(text) + end, kind) for start, end, kind in parts.get(number, ())]
                text += lines[number]
            if spans:
                yield TaggedText(text, spans)


def _functions() -> Iterator[Question]:
    """Yield pieces of code that define one function, and ask for its name. The definition is on any of their lines."""
    for _, source in _sources():
        lines = source.splitlines(keepends=True)
        defined = {n: line for n, line in enumerate(lines) if line.lstrip().startswith("def ") and "(" in line}
        for turn, (number, line) in enumerate(defined.items()):
            first = max(0, number - turn % LINES)
            around = range(first, min(first + LINES, len(lines)))
            if any(other in defined for other in around if other != number):
                continue
            name = line.split("def ", 1)[1].partition("(")[0].strip()
            before = sum(len(lines[n]) for n in around if n < number) + line.index("def ") + len("def ")
            if name.isidentifier():
                yield Question("Which function is defined here?", "".join(lines[n] for n in around), name, before)
