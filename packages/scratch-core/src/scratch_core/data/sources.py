"""Sources of text: files, folders, rows, or ready token ids. `text.py` splits and tokenises what is read here.

`open_documents` reads, depending on its argument:

    None                        the source of the running Python's standard library, a document for each .py file
    a folder                    a document for each text file in it or below it
    rows (see rows.py)          a document for each row, with a "text", or "input_ids" that are tokens already
    a .npy file                 one document of token ids
    any other file              one document of text
"""

import codecs
import dataclasses
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratch_core.config import size_of_file
from scratch_core.data.rows import Reading, is_rows, read_rows, text_of
from scratch_core.data.token_files import digest_path, open_tokens
from scratch_core.errors import DataError

PIECE = 1 << 22
"""Bytes of a text file that are read and tokenised at a time."""
EXPECTED = 'a "text" that is a string'


@dataclass(frozen=True)
class TextFile:
    """A text file, read piece by piece. ``lines_left_out`` are the numbers of lines to skip: they are not UTF-8."""

    path: Path
    size: int
    lines_left_out: frozenset[int] = frozenset()

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.size

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in pieces of about ``PIECE`` bytes. A piece ends with a line, unless the line is longer."""
        number = 1
        for piece in _pieces(self.path):
            lines = piece.count(b"\n")
            if not self.lines_left_out.isdisjoint(range(number, number + lines + 1)):
                kept = enumerate(piece.splitlines(keepends=True), number)
                yield b"".join(line for n, line in kept if n not in self.lines_left_out)
            else:
                yield piece
            number += lines


class Document(NamedTuple):
    """One text: its name within the source, and its content (bytes, a file, or token ids [N])."""

    name: str
    content: bytes | TextFile | np.ndarray

    def pieces(self) -> Iterator[bytes]:
        """Yield the text in pieces. A document of token ids has none."""
        if isinstance(self.content, TextFile):
            yield from self.content.pieces()
        elif isinstance(self.content, bytes):
            yield self.content


@dataclass(frozen=True)
class Documents:
    """The documents of a source: at least one, none of them empty. Each iteration reads them again.

    ``label`` names the source for people, ``unit`` its documents ("files", "rows"). ``sizes`` maps the name of each
    document to its number of bytes (or token ids). ``left_out`` counts empty and binary files. ``note`` describes the
    bad rows that were skipped.
    """

    label: str
    unit: str
    sizes: dict[str, int]
    read: Callable[[], Iterator[Document]]
    left_out: int = 0
    note: str = ""

    def __iter__(self) -> Iterator[Document]:
        """Read the documents, one after the other."""
        return self.read()

    @property
    def documents(self) -> list[Document]:
        """All documents at once."""
        return list(self.read())


def open_documents(source: str | Path | None, reading: Reading | None = None) -> Documents:
    """Return the documents of ``source``; the module's docstring lists what it may be.

    In a folder, hidden files are ignored; empty files and binary files (with a NUL byte) are left out. Raises DataError
    if ``source`` is missing, unreadable, damaged or empty. A bad row, or a line that is not UTF-8, raises DataError
    with its file and number, or is skipped, as ``reading`` says.
    """
    reading = reading or Reading()
    if source is None:
        return _files(Path(sysconfig.get_path("stdlib")), standard_library(), "the standard library's source", None)
    if str(source) == "":
        raise DataError("the name of the text is empty: name a file or a folder")
    path = Path(source)
    if is_rows(source) and not (path.suffix and path.exists() and not path.is_file()):
        return _rows(str(source), reading)
    if path.is_dir():
        names = (name for name in files_below(path) if not _hidden(name.relative_to(path)))
        return _files(path, sorted(names), str(path), reading)
    try:
        size = size_of_file(path, DataError)
    except OSError as error:
        raise DataError(f"no such file or folder: {path}" if not path.exists() else _unreadable(path, error)) from None
    if path.suffix == ".npy":
        tokens = open_tokens(path, verify=digest_path(path).exists())
        if not len(tokens):
            raise DataError(f"{path} is empty: training needs tokens")
        return Documents(str(path), "files", {path.name: len(tokens)}, lambda: iter([Document(path.name, tokens)]))
    if not size:
        raise DataError(f"{path} is empty: training needs text")
    if (place := _nul(path)) is not None:
        raise DataError(
            f"{path} holds a NUL byte, at {place:,} of {size:,}: it is no text. Name a text file, or "
            "convert it, such as UTF-16 to UTF-8"
        )
    return _files(path.parent, [path], str(path), reading)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the regular files in a folder and below it, in any order; none if the folder does not exist.

    Raises DataError for a folder without read permission, unless it is hidden.
    """

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and not _hidden(Path(error.filename).relative_to(folder)):
            raise DataError(_unreadable(Path(error.filename), error)) from error

    for place, _, names in os.walk(folder, onerror=closed):
        yield from (path for path in map(Path(place).joinpath, names) if path.is_file())


def standard_library() -> list[Path]:
    """Return the .py files of the running Python's library, without tests and installed packages, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _files(root: Path, paths: list[Path], label: str, reading: Reading | None) -> Documents:
    """Return a document for each text file. With ``reading`` None, their encoding is not checked."""
    kept: dict[str, TextFile] = {}
    for path in paths:
        if (size := _size(path)) and _nul(path) is None:
            bad = frozenset() if reading is None else _bad_lines(path, reading)
            kept[path.relative_to(root).as_posix()] = TextFile(path, size, bad)
    left_out = len(paths) - len(kept)
    if not kept:
        raise DataError(f"{label} holds no text: {len(paths)} files found, all empty or binary")
    sizes = {name: len(file) for name, file in kept.items()}
    note = "" if reading is None else reading.note

    def read() -> Iterator[Document]:
        for name, file in kept.items():
            yield Document(name, b"".join(file.pieces()) if file.size <= PIECE else file)

    return Documents(label, "files", sizes, read, left_out, note)


def _rows(source: str, reading: Reading) -> Documents:
    def read(fields: Any) -> bytes | np.ndarray:
        if isinstance(fields, dict) and "input_ids" in fields and "text" not in fields:
            ids = np.array(fields["input_ids"])
            if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
                raise ValueError("input_ids must be a list of at least one whole number, none of them negative")
            return ids
        text = text_of(fields["text"])
        if "\0" in text:
            raise ValueError("the text holds a NUL character")
        return text.encode()

    if Path(source).is_file() and not _size(Path(source)):
        raise DataError(f"{source} is empty: training needs text")
    sizes = {where: len(content) for where, content in read_rows(source, read, EXPECTED, reading)}
    if not sizes:
        raise DataError(f"{source} holds no text: 0 rows found{reading.note}")

    def read_again() -> Iterator[Document]:
        silent = dataclasses.replace(reading)  # a copy, because the skipped rows were counted above
        return (Document(*each) for each in read_rows(source, read, EXPECTED, silent))

    return Documents(source, "rows", sizes, read_again, note=reading.note)


def _bad_lines(path: Path, reading: Reading) -> frozenset[int]:
    """Return the numbers of the lines that are not UTF-8. Raises DataError if ``reading`` does not skip bad ones."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in _pieces(path):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        found = []
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    reading.bad(f"{path}, row {number}: must be UTF-8, found {line[:40]!r} ({error.reason})", error)
                    found.append(number)
        return frozenset(found)
    return frozenset()


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces of about ``PIECE`` bytes. A piece ends with a line, unless the line is longer."""
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece + file.readline(PIECE)
    except OSError as error:
        raise DataError(_unreadable(path, error)) from error


def _nul(path: Path) -> int | None:
    """Return the offset of the first NUL byte of a file, None if it has none."""
    before = 0
    for piece in _pieces(path):
        if (place := piece.find(b"\0")) >= 0:
            return before + place
        before += len(piece)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(_unreadable(path, error)) from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror}. Give yourself permission to read it, or name other data"
