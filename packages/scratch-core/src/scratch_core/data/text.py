"""Turns documents into arrays of tokens, split into a training part and a held-out part.

Every document becomes bos, its tokens, eos. The documents are concatenated in one integer array, with a second array of
their starts. Several documents are split by document, so that neighbouring sentences never fall into different parts. A
single document is split by position.

A text of 4 MB or more is tokenised once, piece by piece, into files in the user's cache folder. Later runs memory-map
these files, so that a text may be larger than memory. The files are found by a digest of the text's files and of the
tokenizer. Each has a sha256 beside it; a damaged file is noticed and made again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratch_core.data.fingerprints import cache_folder, fingerprint
from scratch_core.data.rows import HUB, Reading
from scratch_core.data.sources import Document, Documents, files_below, open_documents, standard_library
from scratch_core.data.token_files import HEADER, TokenWriter, open_tokens, save_tokens
from scratch_core.data.tokenizers import Tokenizer
from scratch_core.errors import DataError

KEPT_FROM = 1 << 22
"""Cache the tokens of at least this many bytes of text. Fewer are tokenised again in a second or two."""
NEEDS_FILES = 1 << 28
"""For at least this many bytes of text, failing to write the cache is an error. Fewer are kept in memory instead."""
FORMAT = 1
PARTS = ("train", "validation")
AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class TokenSplit:
    """Training tokens and held-out tokens, both int [N] (uint16 where the vocabulary allows).

    ``train_starts`` and ``validation_starts`` (int64 [documents]) give the first token of each document; None: the
    part is one document.
    """

    train: np.ndarray
    validation: np.ndarray
    description: str  # one line for people: which files, how many
    train_starts: np.ndarray | None = None
    validation_starts: np.ndarray | None = None
    digests: tuple[str, ...] = ()  # sha256 of the tokens, where they are known

    def fingerprint(self) -> str:
        """Return a sha256 of both parts. A resumed run compares it to check that its data has not changed."""
        digests = self.digests or tuple(map(_digest, (self.train, self.validation)))
        return hashlib.sha256(" ".join([*digests, str(len(self.train)), self.train.dtype.str]).encode()).hexdigest()


def load_text(
    source: str | Path | None,
    tokenizer: Tokenizer,
    *,
    validation_fraction: float = 0.05,
    reading: Reading | None = None,
) -> TokenSplit:
    """Return the tokens of a source that :func:`open_documents` reads, in two parts.

    With several documents, whole documents are held out, about ``validation_fraction`` of the bytes, chosen by the
    hash of their name. With a single document, its end is held out. Token ids are used unchanged, without bos and eos
    added. Raises DataError like `open_documents`, and for token ids beyond the tokenizer's vocabulary.
    """
    reading = reading or Reading()
    root, paths = _files_of(source)
    size = sum(path.stat().st_size for path in paths)
    if size < KEPT_FROM or str(source).endswith(".npy"):
        return _in_memory(open_documents(source, reading), tokenizer, validation_fraction, reading)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save(saved)
        made_by = fingerprint(Path(saved), Path(saved).iterdir())
    rules = [FORMAT, validation_fraction, reading.on_error, dict(reading.columns), Path(str(source)).suffix]
    key = json.dumps([fingerprint(root, paths), made_by, rules])
    folder = cache_folder() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]
    label = "the standard library's source" if source is None else str(source)
    if (folder / "about.json").is_file():
        try:
            return _open(folder, label)
        except (DataError, OSError, ValueError, KeyError) as error:
            warnings.warn(f"the text is tokenised again: {error}", stacklevel=2)
            shutil.rmtree(folder, ignore_errors=True)
    found = open_documents(source, reading)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, found, tokenizer, validation_fraction, reading)
    except OSError as error:
        if size < NEEDS_FILES:
            return _in_memory(found, tokenizer, validation_fraction, reading)
        raise DataError(
            f"the tokens of {label} cannot be written to {folder}: {error.strerror}. Make room for twice the size of "
            "the text, or set XDG_CACHE_HOME to a folder that has it"
        ) from error
    return _open(folder, label)


def split_by_file(sizes: dict[str, int], fraction: float) -> set[str]:
    """Return the names to hold out: about ``fraction`` of the bytes, at least one file, but never all.

    Names are taken in the order of their sha256. This mixes folders and topics, and adding a file changes little. A
    file that is larger than the rest of the budget is skipped.
    """
    budget, chosen = fraction * sum(sizes.values()), set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()):
        if sizes[name] <= budget:
            budget -= sizes[name]
            chosen.add(name)
    return chosen or {min(sizes, key=lambda name: (sizes[name], name))}


def with_bos(ids: np.ndarray, bos_id: int | None) -> np.ndarray:
    """Return token ids [T] that begin with bos, which is added only if missing. ``bos_id`` None: ids are unchanged."""
    return ids if bos_id is None or ids[:1].tolist() == [bos_id] else np.concatenate([[bos_id], ids]).astype(np.int32)


def _files_of(source: str | Path | None) -> tuple[Path, list[Path]]:
    """Return the folder of a source, and its files. A data set of the Hub and an empty name have no files."""
    if source is None:
        paths = standard_library()
        return Path(os.path.commonpath(paths)), paths
    path = Path(source)
    if str(source).startswith(HUB) or str(source) == "":
        return path, []
    return (path, list(files_below(path))) if path.is_dir() else (path.parent, [path] if path.is_file() else [])


def _in_memory(found: Documents, tokenizer: Tokenizer, fraction: float, reading: Reading) -> TokenSplit:
    sinks = [_Memory(_dtype(tokenizer)), _Memory(_dtype(tokenizer))]
    starts = _tokenise(found, tokenizer, fraction, reading, sinks)
    train, validation = (sink.whole() for sink in sinks)
    if len(found.sizes) == 1:
        train, validation = train[: (cut := _cut(len(train), fraction))], train[cut:]
        return TokenSplit(train, validation, f"{found.label}: {_about(found, fraction, reading, len(validation), cut)}")
    description = f"{found.label}: {_about(found, fraction, reading)}"
    train_starts, validation_starts = (np.array(each, np.int64) for each in starts)
    return TokenSplit(train, validation, description, train_starts, validation_starts)


def _write(folder: Path, found: Documents, tokenizer: Tokenizer, fraction: float, reading: Reading) -> None:
    with ExitStack() as stack:
        sinks = [stack.enter_context(TokenWriter(folder / f"{part}.npy", _dtype(tokenizer))) for part in PARTS]
        starts = _tokenise(found, tokenizer, fraction, reading, sinks)
    for part, each in zip(PARTS, starts, strict=True):
        save_tokens(np.array(each, np.int64), folder / f"{part}_starts.npy")
    total, held_out = (sink.count for sink in sinks)
    if len(found.sizes) == 1:
        cut = _cut(total, fraction)
        about, places = _about(found, fraction, reading, total - cut, cut), [(0, 0, cut), (0, cut, total)]
    else:
        cut = None
        about, places = _about(found, fraction, reading), [(0, 0, total), (1, 0, held_out)]
    files = [folder / f"{part}.npy" for part in PARTS]
    digests = [_digest_of_file(files[file], first, end, sinks[0].dtype) for file, first, end in places]
    note = {"about": about, "cut": cut, "digests": digests}
    partial = folder / f"about.json.{os.getpid()}"
    partial.write_text(json.dumps(note))
    os.replace(partial, folder / "about.json")  # written last: its presence means that the tokens are complete


def _open(folder: Path, label: str) -> TokenSplit:
    """Return the split that :func:`_write` wrote. Raises DataError that names a damaged file."""
    note = json.loads((folder / "about.json").read_text())
    train, validation = (open_tokens(folder / f"{part}.npy") for part in PARTS)
    description, digests = f"{label}: {note['about']}", tuple(note["digests"])
    if note["cut"] is not None:
        return TokenSplit(train[: note["cut"]], train[note["cut"] :], description, digests=digests)
    train_starts, validation_starts = (np.array(open_tokens(folder / f"{part}_starts.npy")) for part in PARTS)
    return TokenSplit(train, validation, description, train_starts, validation_starts, digests)


def _tokenise(
    found: Documents, tokenizer: Tokenizer, fraction: float, reading: Reading, sinks: Sequence[Any]
) -> tuple[list[int], list[int]]:
    """Write the tokens of each document to the sink of its part. Return the starts of the documents in both parts."""
    held_out = set() if len(found.sizes) == 1 else split_by_file(found.sizes, fraction)
    starts: tuple[list[int], list[int]] = [], []
    for document in found:
        part = document.name in held_out
        if isinstance(document.content, np.ndarray):
            pieces = _checked(document, tokenizer, found.label, reading)
        else:
            pieces = _encoded(document, tokenizer)
        begin = sinks[part].count
        for ids in pieces:
            sinks[part].append(ids)
        if sinks[part].count > begin:
            starts[part].append(begin)
    return starts


def _encoded(document: Document, tokenizer: Tokenizer) -> Any:
    """Yield bos, the tokens of a text, and eos. A large file is tokenised in pieces that end with a line."""
    for number, piece in enumerate(document.pieces()):
        ids = tokenizer.encode(piece)
        yield ids if number else with_bos(ids, tokenizer.bos_id)
    if tokenizer.eos_id is not None:
        yield np.array([tokenizer.eos_id], np.int32)


def _checked(document: Document, tokenizer: Tokenizer, label: str, reading: Reading) -> list[np.ndarray]:
    """Return token ids unchanged. A row with ids beyond the vocabulary is an error, or skipped, as ``reading`` says."""
    ids: Any = document.content
    least, most = int(ids.min()), int(ids.max())
    if least >= 0 and most < tokenizer.vocab_size:
        return [ids]
    where = int(np.argmax((ids < 0) | (ids >= tokenizer.vocab_size)))
    whole = not document.name.startswith("row ")
    message = (
        f"{label if whole else f'{label}, {document.name}'} holds token ids from {least} to {most}, the tokenizer has "
        f"{tokenizer.vocab_size} (the first beyond them is {int(ids[where])}, at {where:,}): name the --tokenizer that "
        "made them"
    )
    if whole:
        raise DataError(message)
    reading.bad(message)
    return []


class _Memory:
    """Collects token ids in memory, with the interface of TokenWriter."""

    def __init__(self, dtype: Any):
        self.parts: list[np.ndarray] = []
        self.count, self.dtype = 0, dtype

    def append(self, ids: np.ndarray) -> None:
        """Keep some more ids."""
        self.parts.append(ids if isinstance(ids, np.memmap) else ids.astype(self.dtype))
        self.count += len(ids)

    def whole(self) -> np.ndarray:
        """Return all ids. A single memory-mapped file stays mapped."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *self.parts])


def _dtype(tokenizer: Tokenizer) -> Any:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32


def _cut(count: int, fraction: float) -> int:
    return count - max(1, round(fraction * count))


def _about(found: Documents, fraction: float, reading: Reading, held_out: int = 0, kept: int = 0) -> str:
    """Return a description of the data. For a single document, it has the numbers of tokens held out and kept."""
    total = sum(found.sizes.values())
    if len(found.sizes) == 1:
        (document,) = found
        size = f"{total:,} {'token ids' if isinstance(document.content, np.ndarray) else 'bytes'}"
        return f"{size}, the last {held_out:,} of {held_out + kept:,} tokens held out{reading.note}"
    left_out = f", {found.left_out} empty or binary left out" if found.left_out else ""
    out = len(split_by_file(found.sizes, fraction))
    return f"{len(found.sizes)} {found.unit}, {total:,} bytes, {out} {found.unit} held out{left_out}{reading.note}"


def _digest(tokens: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(tokens), AT_A_TIME):
        digest.update(np.ascontiguousarray(tokens[start : start + AT_A_TIME]).data)
    return digest.hexdigest()


def _digest_of_file(path: Path, first: int, end: int, dtype: np.dtype) -> str:
    """Return the digest of tokens ``first`` to ``end``. The file is not mapped, because its pages count as memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER + first * dtype.itemsize)
        left = (end - first) * dtype.itemsize
        while left:
            digest.update(piece := file.read(min(left, AT_A_TIME)))
            left -= len(piece)
    return digest.hexdigest()
