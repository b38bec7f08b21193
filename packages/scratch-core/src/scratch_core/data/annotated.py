"""Annotated texts: with a class, with classes of their parts, or with a question and its answer.

They come from a .jsonl file with an object in each row:

    {"text": "...", "label": "..."}                                          a class
    {"text": "...", "spans": [[0, 5, "person"], ...]}                        parts: first character, end, class
    {"question": "...", "context": "...", "answer": "...", "start": 17}      "answer": "" where there is none

Without a file, the source of Python's standard library gives all three: which package a docstring comes from; the
identifiers, keywords and numbers of code; the name of the function that a piece of code defines.
"""

import ast
import io
import json
import keyword
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scratch_core.data.sources import standard_library
from scratch_core.errors import DataError

PACKAGES = 12
"""How many packages the default data of text classification has: those with the most docstrings."""
LINES = 5
"""How many lines of code an example of the default data holds: about 60 word pieces."""


class LabelledText(NamedTuple):
    """A text and its class."""

    text: str
    label: str


class TaggedText(NamedTuple):
    """A text, and (first character, end, class) of its parts that have one."""

    text: str
    spans: list[tuple[int, int, str]]


class Question(NamedTuple):
    """A question, the text that answers it, the answer as it stands there ("": there is none), its first character."""

    question: str
    context: str
    answer: str
    start: int


Row = TypeVar("Row")


def open_labelled(path: str | None) -> list[LabelledText]:
    """Return labelled texts of a file, or the docstrings of the standard library. Raises DataError."""
    return list(_docstrings()) if path is None else _rows(path, _labelled, '"text" and a "label"')


def open_tagged(path: str | None) -> list[TaggedText]:
    """Return texts with labelled parts of a file, or code of the standard library. Raises DataError."""
    return list(_code()) if path is None else _rows(path, _tagged, '"text" and "spans"')


def open_questions(path: str | None) -> list[Question]:
    """Return questions of a file, or for the names of functions of the standard library. Raises DataError."""
    return list(_functions()) if path is None else _rows(path, _question, '"question", a "context" and an "answer"')


def _rows(path: str, read: Callable[[Any], Row], expected: str) -> list[Row]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    found = []
    for number, row in enumerate(data.split(b"\n"), 1):
        if not row.strip():
            continue
        try:
            found.append(read(json.loads(row)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, row {number}: must be a JSON object with a {expected}, found "
                f"{row[:60].decode(errors='replace')!r} ({type(error).__name__}: {error})"
            ) from error
    if len(found) < 2:
        raise DataError(f"{path} holds {len(found)} rows: at least 2 are needed, one of them to be held out")
    return found


def _labelled(fields: Any) -> LabelledText:
    return LabelledText(_text(fields["text"]), str(fields["label"]))


def _tagged(fields: Any) -> TaggedText:
    text = _text(fields["text"])
    spans = [(int(first), int(end), str(label)) for first, end, label in fields["spans"]]
    for first, end, _ in spans:
        if not 0 <= first < end <= len(text):
            raise ValueError(f"the span {first} to {end} is not within the text of {len(text)} characters")
    return TaggedText(text, spans)


def _question(fields: Any) -> Question:
    question, context, answer = _text(fields["question"]), _text(fields["context"]), fields["answer"]
    start = int(fields.get("start", context.find(answer)))
    if context[start : start + len(answer)] != answer or start < 0:
        raise ValueError(f"the answer {answer!r} does not stand at character {start} of the context")
    return Question(question, context, answer, start)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} must be a text with at least one character")
    return value


def _sources() -> Iterator[tuple[str, str]]:
    """Return the package and the source of each file of the standard library that can be parsed."""
    root = Path(ast.__file__).parent
    for path in standard_library():
        try:
            yield path.relative_to(root).parts[0].removesuffix(".py"), path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue


def _docstrings() -> Iterator[LabelledText]:
    """Return the docstrings of the packages that have the most, each text once."""
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
    """Return pieces of code of a few lines, their identifiers, keywords and numbers labelled."""
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
    """Return pieces of code that define one function, and ask for its name; it stands on any of their lines."""
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
