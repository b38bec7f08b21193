"""Text to token ids and back: plain bytes, or the tokenizer of a checkpoint.

A tokenizer is any object with the members of :class:`Tokenizer`. There are two: ByteTokenizer and HuggingFaceTokenizer.
"""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scratch_core.errors import DataError, MissingExtraError

NOTE = "scratch_tokenizer.json"


class TextStream(Protocol):
    """Turns tokens into text, one at a time."""

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes: often one character, sometimes none."""
        ...

    def finish(self) -> str:
        """Return the text that was held back. An unfinished character becomes U+FFFD."""
        ...


class Tokenizer(Protocol):
    """The interface of both tokenizers."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if there is one."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The token that fills up a batch, if there is one."""
        ...

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the int32 ids [T] of ``text``, with no special tokens added."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of a token such as "<extra_id_0>", None if the vocabulary lacks it."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        ...

    def stream(self) -> TextStream:
        """Return a fresh incremental decoder."""
        ...

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return how many bytes of UTF-8 text ``ids`` stand for. Bits per byte divides by this number."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the files that ``load_tokenizer`` needs into ``folder``."""
        ...


class ByteTokenizer:
    """The 256 bytes and three special tokens. It needs no vocabulary, and can encode any text."""

    bos_id, eos_id, pad_id = 256, 257, 258
    vocab_size = 259

    def token_id(self, token: str) -> int | None:
        """Return None: the tokens have no names."""
        return None

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the int32 ids [T] of the UTF-8 bytes of ``text``."""
        data = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``. Bytes that are not UTF-8 and ids beyond the vocabulary become U+FFFD."""
        stream = self.stream()
        return "".join([stream.push(int(i)) for i in ids]) + stream.finish()

    def stream(self) -> "ByteStream":
        """Return a decoder that holds back the bytes of an unfinished character."""
        return ByteStream()

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return the number of ids that are bytes."""
        return int((np.asarray(ids) < 256).sum())

    def save(self, folder: str | Path) -> None:
        """Write the note ``scratch_tokenizer.json`` into ``folder``."""
        note = {"type": "bytes", "bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}
        _write(Path(folder) / NOTE, (json.dumps(note) + "\n").encode())


class ByteStream:
    """Incremental UTF-8: a character split over several tokens is returned with its last byte."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the text completed by ``token``. Special tokens give no text.

        A model's output may be wider than the vocabulary: ids beyond it become U+FFFD.
        """
        if 0 <= token < 256:
            return self._decoder.decode(bytes([token]))
        return "" if token in (ByteTokenizer.bos_id, ByteTokenizer.eos_id, ByteTokenizer.pad_id) else "\ufffd"

    def finish(self) -> str:
        """Return U+FFFD if a character was left unfinished."""
        return self._decoder.decode(b"", final=True)


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` read by Hugging Face ``tokenizers`` (the extra ``scratch-core[tokenizers]``).

    bos, eos and pad are the tokens named in ``tokenizer_config.json``, None if it does not name one. Raises
    MissingExtraError without the extra, DataError if the file cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._fast = open_fast(self.folder / "tokenizer.json")
        self._settings = read_settings(self.folder / "tokenizer_config.json")
        ids = self._fast.get_vocab(with_added_tokens=True)
        last = max(ids, key=ids.__getitem__, default="")
        self.vocab_size = ids[last] + 1 if ids else 0  # ids may have gaps
        if self.vocab_size >= 2**31:
            raise DataError(
                f"{self.folder / 'tokenizer.json'} gives the token {last!r} the id {ids[last]}, which must be less "
                "than 2**31 - 1: correct it, or take the file that belongs to the weights"
            )
        self.bos_id, self.eos_id, self.pad_id = (self._special(name) for name in ("bos", "eos", "pad"))

    def _special(self, name: str) -> int | None:
        token = self._settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token  # AddedToken, or a plain string
        return self._fast.token_to_id(content) if isinstance(content, str) else None

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None if the vocabulary lacks it."""
        return self._fast.token_to_id(token)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the int32 ids [T] of ``text``. Bytes are decoded as UTF-8; invalid ones become U+FFFD."""
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        try:
            return np.asarray(self._fast.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:  # the library raises a bare Exception, as for a text that needs a missing [UNK]
            raise DataError(
                f"{self.folder / 'tokenizer.json'} cannot encode the text: {error}. Add the token that it lacks, or "
                "take the file that belongs to the weights"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream(self) -> "HuggingFaceStream":
        """Return an incremental decoder."""
        return HuggingFaceStream(self)

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return the length in UTF-8 of the decoded text."""
        return len(self.decode(ids).encode("utf-8"))

    def save(self, folder: str | Path) -> None:
        """Copy ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (self.folder / name).exists() and self.folder.resolve() != Path(folder).resolve():
                _write(Path(folder) / name, (self.folder / name).read_bytes())


class HuggingFaceStream:
    """Decodes the last emitted tokens with and without the new ones, and returns the difference.

    The last emitted tokens are needed as context, because a word piece decoded alone may lose its leading space. Text
    that ends in U+FFFD is held back, because a character may be split over several tokens.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._shown = 0  # ids[start:shown] give the context, ids[shown:] are not shown yet

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes."""
        self._ids.append(int(token))
        text = self._pending()
        if not text or text.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def finish(self) -> str:
        """Return the rest, with U+FFFD for an unfinished character."""
        text, self._ids, self._start, self._shown = self._pending(), [], 0, 0
        return text

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]


def open_fast(path: Path) -> Any:
    """Return the ``tokenizers.Tokenizer`` of a tokenizer.json. Raises MissingExtraError, or DataError."""
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise MissingExtraError("tokenizers", f"{path}") from None
    try:
        return Fast.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every error
        raise DataError(f"{path} cannot be read as a tokenizer: {error}") from error


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer in ``folder``: ``scratch_tokenizer.json`` (bytes) or Hugging Face's ``tokenizer.json``.

    Raises DataError if there is neither, or if the file cannot be read.
    """
    folder = Path(folder)
    if (folder / NOTE).is_file():
        note = read_settings(folder / NOTE)
        if note.get("type") != "bytes":
            raise DataError(f"{folder / NOTE}: type={note.get('type')!r} is not a known tokenizer; expected 'bytes'")
        return ByteTokenizer()
    if (folder / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that holds tokenizer.json or {NOTE}")
    hint = "; tokenizer.model (SentencePiece) must be converted first" if (folder / "tokenizer.model").exists() else ""
    raise DataError(f"{folder} holds no tokenizer: expected tokenizer.json or {NOTE}{hint}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:  # the error of a full disk does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in ``path``, {} if there is no such file; DataError if it is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value
