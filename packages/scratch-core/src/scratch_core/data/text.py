"""Text files to arrays of tokens, split into what is trained on and what is held out.

Every file becomes bos, its tokens, eos; the files are laid end to end in one integer array, which `save_tokens` can
write and memory-map. A folder is split by file, so that no held-out sentence has its neighbour in the training part;
a single file is split by position.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratch_core.data.tokenizers import Tokenizer
from scratch_core.errors import DataError


@dataclass(frozen=True)
class TokenSplit:
    """Tokens to train on and tokens held out, both int [N] (uint16 where the vocabulary allows)."""

    train: np.ndarray
    validation: np.ndarray
    description: str  # one line for people: which files, how many

    def fingerprint(self) -> str:
        """Return a sha256 over both parts, by which a resumed run knows that its data is still the same."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            digest.update(str((part.dtype.str, part.shape)).encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def standard_library() -> list[Path]:
    """Return the running Python's own library, every .py file but tests and installed packages, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def load_text(source: str | Path | None, tokenizer: Tokenizer, *, validation_fraction: float = 0.05) -> TokenSplit:
    """Read ``source`` (a text file, a folder of text files, or None: the standard library) as tokens.

    Of a folder, hidden files and files that hold a NUL byte (no text) are left out; ``validation_fraction`` of the
    bytes, in whole files picked by the hash of their name, are held out. Of a single file the end is held out.
    Raises DataError if ``source`` is missing, unreadable or empty.
    """
    if source is None:
        root, names = Path(sysconfig.get_path("stdlib")), standard_library()
        label = "the standard library's source"
    elif str(source) == "":
        raise DataError("the name of the text is empty: name a file or a folder")
    elif Path(source).is_dir():
        root = Path(source)
        names = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root)))
        label = str(source)
    elif Path(source).is_file():
        return _split_file(Path(source), tokenizer, validation_fraction)
    else:
        raise DataError(f"no such file or folder: {source}")

    texts = {path.relative_to(root).as_posix(): data for path in names if (data := _read(path)) and b"\0" not in data}
    if not texts:
        raise DataError(f"{label} holds no text: {len(names)} files found, all empty or binary")
    if len(texts) == 1:  # nothing to hold out by file
        return _split_file(root / next(iter(texts)), tokenizer, validation_fraction)
    held_out = split_by_file({name: len(data) for name, data in texts.items()}, validation_fraction)
    train = _concatenate([data for name, data in texts.items() if name not in held_out], tokenizer)
    validation = _concatenate([texts[name] for name in texts if name in held_out], tokenizer)
    size = sum(map(len, texts.values()))
    left_out = f", {len(names) - len(texts)} empty or binary left out" if len(names) > len(texts) else ""
    description = f"{label}: {len(texts)} files, {size:,} bytes, {len(held_out)} files held out{left_out}"
    return TokenSplit(train, validation, description)


def split_by_file(sizes: dict[str, int], fraction: float) -> set[str]:
    """Return the names to hold out: about ``fraction`` of the bytes, at least one file and never all.

    Names are taken in the order of their sha256, which mixes folders and topics and changes little when a file is
    added; a file too large for what is left of the budget is passed over.
    """
    budget, chosen = fraction * sum(sizes.values()), set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()):
        if sizes[name] <= budget:
            budget -= sizes[name]
            chosen.add(name)
    return chosen or {min(sizes, key=lambda name: (sizes[name], name))}


def save_tokens(tokens: np.ndarray, path: str | Path) -> None:
    """Write ``tokens`` as .npy with a sha256 beside it (.npy.sha256): numpy itself notices no flipped bit."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.save(file, np.ascontiguousarray(tokens))
    path.with_name(path.name + ".sha256").write_text(_sha256(partial) + "\n")
    os.replace(partial, path)


def open_tokens(path: str | Path, *, verify: bool = True) -> np.ndarray:
    """Memory-map what `save_tokens` wrote. Raises DataError if it is missing, no .npy, or (``verify``) damaged."""
    path = Path(path)
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = path.with_name(path.name + ".sha256").read_text().strip() if verify else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as tokens: {error}") from error
    if verify and (found := _sha256(path)) != expected:
        raise DataError(f"{path} is damaged: sha256 {found[:12]}..., expected {str(expected)[:12]}...; make it again")
    return tokens


def _split_file(path: Path, tokenizer: Tokenizer, fraction: float) -> TokenSplit:
    data = _read(path)
    if not data:
        raise DataError(f"{path} is empty: training needs text")
    if b"\0" in data:
        raise DataError(f"{path} holds a NUL byte: it is no text")
    tokens = _concatenate([data], tokenizer)
    cut = len(tokens) - max(1, round(fraction * len(tokens)))
    description = f"{path}: {len(data):,} bytes, the last {len(tokens) - cut:,} of {len(tokens):,} tokens held out"
    return TokenSplit(tokens[:cut], tokens[cut:], description)


def _concatenate(texts: Sequence[bytes], tokenizer: Tokenizer) -> np.ndarray:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32

    def parts() -> Iterator[np.ndarray]:
        for text in texts:
            yield from (np.array([i], dtype) for i in [tokenizer.bos_id] if i is not None)
            yield tokenizer.encode(text).astype(dtype)
            yield from (np.array([i], dtype) for i in [tokenizer.eos_id] if i is not None)

    return np.concatenate(list(parts()))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
