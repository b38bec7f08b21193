"""Where text comes from: files, folders, rows, or token ids that are ready; read here, split and tokenised elsewhere.

`open_documents` decides by what it is given:

    None                the source of the running Python's standard library, a document for each .py file
    a folder            a document for each text file in it or below it
    a .jsonl file       a document for each row, a JSON object with a "text"
    a .npy file         one document of token ids
    any other file      one document of text
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratch_core.config import size_of_file
from scratch_core.errors import DataError


class Document(NamedTuple):
    """One text: its name within the source, and its bytes, or the ids [N] of its tokens."""

    name: str
    content: bytes | np.ndarray


@dataclass(frozen=True)
class Documents:
    """The documents of a source, at least one and none of them empty.

    ``label`` names the source for people; ``unit`` says what a document is there ("files", "rows"); ``left_out``
    counts those that were empty or binary.
    """

    label: str
    unit: str
    documents: list[Document]
    left_out: int = 0


def open_documents(source: str | Path | None) -> Documents:
    """Return the documents of ``source``; see the module for what it may be.

    Of a folder, hidden files are ignored, and files that are empty or hold a NUL byte (no text) are left out. Raises
    DataError if ``source`` is missing, unreadable, damaged or empty; for a bad row it names the file and the row.
    """
    if source is None:
        return _files(Path(sysconfig.get_path("stdlib")), standard_library(), "the standard library's source")
    if str(source) == "":
        raise DataError("the name of the text is empty: name a file or a folder")
    path = Path(source)
    if path.is_dir():
        names = (name for name in files_below(path) if not _hidden(name.relative_to(path)))
        return _files(path, sorted(names), str(path))
    try:
        size_of_file(path, DataError)
    except OSError as error:
        raise DataError(f"no such file or folder: {path}" if not path.exists() else _unreadable(path, error)) from None
    if path.suffix == ".npy":
        tokens = open_tokens(path, verify=_digest_path(path).exists())
        if not len(tokens):
            raise DataError(f"{path} is empty: training needs tokens")
        return Documents(str(path), "files", [Document(path.name, tokens)])
    data = _read(path)
    if not data:
        raise DataError(f"{path} is empty: training needs text")
    if b"\0" in data:
        raise DataError(
            f"{path} holds a NUL byte, at {data.index(0):,} of {len(data):,}: it is no text. Name a text file, or "
            "convert it, such as UTF-16 to UTF-8"
        )
    if path.suffix == ".jsonl":
        return _rows(path, data)
    return Documents(str(path), "files", [Document(path.name, data)])


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the regular files in a folder and below it, in any order; none if it is not there.

    Raises DataError for a folder that may not be read, unless it is hidden.
    """

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and not _hidden(Path(error.filename).relative_to(folder)):
            raise DataError(_unreadable(Path(error.filename), error)) from error

    for place, _, names in os.walk(folder, onerror=closed):
        yield from (path for path in map(Path(place).joinpath, names) if path.is_file())


def standard_library() -> list[Path]:
    """Return the running Python's own library, every .py file but tests and installed packages, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def save_tokens(tokens: np.ndarray, path: str | Path) -> None:
    """Write ``tokens`` as .npy with a sha256 beside it (.npy.sha256): numpy itself notices no flipped bit."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.save(file, np.ascontiguousarray(tokens))
    _digest_path(path).write_text(_sha256(partial) + "\n")
    os.replace(partial, path)


def open_tokens(path: str | Path, *, verify: bool = True) -> np.ndarray:
    """Memory-map token ids [N], such as `save_tokens` writes.

    Raises DataError if the file is missing, is no .npy of integers in one axis, or (``verify``) is damaged.
    """
    path = Path(path)
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = _digest_path(path).read_text().strip() if verify else None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as tokens: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else "several arrays"
        raise DataError(f"{path} cannot be read as tokens: it must hold integers in one axis, found {found}")
    if verify and (digest := _sha256(path)) != expected:
        raise DataError(f"{path} is damaged: sha256 {digest[:12]}..., expected {str(expected)[:12]}...; make it again")
    return tokens


def _files(root: Path, paths: list[Path], label: str) -> Documents:
    return _documents(label, "files", {path.relative_to(root).as_posix(): _read(path) for path in paths})


def _rows(path: Path, data: bytes) -> Documents:
    texts = {}
    for number, row in enumerate(data.split(b"\n"), 1):
        if not row.strip():
            continue
        try:
            texts[f"row {number}"] = json.loads(row)["text"].encode()
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f'{path}, row {number}: must be a JSON object with a "text" that is a string, found '
                f"{row[:40].decode(errors='replace')!r} ({type(error).__name__}: {error})"
            ) from error
    return _documents(str(path), "rows", texts)


def _documents(label: str, unit: str, texts: dict[str, bytes]) -> Documents:
    """Leave out what is empty or binary. Raises DataError if nothing is left."""
    kept = [Document(name, data) for name, data in texts.items() if data and b"\0" not in data]
    if not kept:
        raise DataError(f"{label} holds no text: {len(texts)} {unit} found, all empty or binary")
    return Documents(label, unit, kept, len(texts) - len(kept))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror}. Give yourself the right to read it, or name other data"


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
