"""WordPiece: words cut into pieces of a vocabulary, as BERT reads them.

Source: Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 4.1. A word is cut greedily: the longest piece of the
vocabulary from its start, then the longest that continues it (##), and so on. Hugging Face ``tokenizers`` (the extra
``scratch-core[tokenizers]``) cuts the words. This file keeps the position of each piece in the text, and joins texts as
[CLS] first [SEP] second [SEP].
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from scratch_core.data.tokenizers import open_fast, read_settings
from scratch_core.errors import ConfigError, DataError, MissingExtraError

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUES = "##"


class Pieces(NamedTuple):
    """A text in pieces: ids int32 [T], spans [T, 2] (first character, end), and the number of each piece's word [T].

    A special token that is written in the text is a word of its own.
    """

    ids: np.ndarray
    spans: np.ndarray
    words: np.ndarray

    def begins_word(self) -> np.ndarray:
        """Return which pieces are the first of a word, bool [T]."""
        return np.concatenate([[True], self.words[1:] != self.words[:-1]])[: len(self.words)]

    def word_spans(self) -> np.ndarray:
        """Return for each piece the span of its whole word, [T, 2]."""
        first = self.begins_word()
        last, word = np.roll(first, -1), np.cumsum(first) - 1
        return np.stack([self.spans[first, 0][word], self.spans[last, 1][word]], axis=1)


class WordPiece:
    """The tokenizer of a folder with tokenizer.json, or with vocab.txt.

    tokenizer_config.json names the special tokens. With vocab.txt, it also says whether letters become lower case,
    accents are removed, and Chinese characters are separate words. Raises MissingExtraError without the extra,
    DataError for a file that is missing or cannot be read.
    """

    bos_id = None

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        settings = read_settings(folder / "tokenizer_config.json")
        names = {name: _content(settings.get(f"{name}_token"), default) for name, default in SPECIAL.items()}
        if (folder / "tokenizer.json").is_file():
            fast = open_fast(folder / "tokenizer.json")
        elif (folder / "vocab.txt").is_file():
            fast = _from_vocabulary(folder / "vocab.txt", settings, list(names.values()))
        else:
            raise DataError(f"{folder} holds no tokenizer: expected tokenizer.json or vocab.txt")
        self._set(fast, names, str(folder))

    def _set(self, fast: Any, names: dict[str, str], origin: str) -> None:
        fast.no_truncation()
        fast.no_padding()
        missing = [token for token in names.values() if fast.token_to_id(token) is None]
        if missing:
            raise DataError(f"the vocabulary of {origin} lacks {', '.join(missing)}, which BERT needs")
        if fast.post_processor is None:  # only for other programs that read the saved file; here, `join` does it
            cls, sep = names["cls"], names["sep"]
            fast.post_processor = _library(origin).processors.TemplateProcessing(
                single=f"{cls} $A {sep}",
                pair=f"{cls} $A {sep} $B:1 {sep}:1",
                special_tokens=[(token, fast.token_to_id(token)) for token in (cls, sep)],
            )
        self._fast, self.names = fast, names
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(fast.token_to_id, names.values())
        self.eos_id = self.sep_id
        self.vocab_size = fast.get_vocab_size(with_added_tokens=True)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, lower_case: bool = False) -> Self:
        """Return a tokenizer with a vocabulary of at most ``vocab_size`` pieces learned from texts."""
        library = _library("training a tokenizer")
        settings = {"do_lower_case": lower_case}
        fast = _wordpiece(library, {SPECIAL["unk"]: 0}, settings, SPECIAL["unk"])
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL.values()),
            show_progress=False,
            continuing_subword_prefix=CONTINUES,
        )
        fast.train_from_iterator(texts, trainer)
        tokenizer = cls.__new__(cls)
        tokenizer._set(fast, dict(SPECIAL), "the trained tokenizer")
        return tokenizer

    def pieces(self, text: str) -> Pieces:
        """Return the pieces of one text."""
        return next(self.all_pieces([text]))

    def all_pieces(self, texts: Sequence[str]) -> Iterator[Pieces]:
        """Yield the pieces of each text; the library cuts them on all cores. Raises DataError for what is no text."""
        texts = list(texts)
        for text in texts:
            try:
                text.encode()
            except (AttributeError, UnicodeEncodeError) as error:
                raise DataError(f"{text!r:.60} is no text in Unicode ({error}): give a valid string") from error
        for found in self._fast.encode_batch(texts, add_special_tokens=False):
            words = np.array([-1 if word is None else word for word in found.word_ids], np.int32)
            yield Pieces(np.array(found.ids, np.int32), np.array(found.offsets, np.int32).reshape(-1, 2), words)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the int32 ids [T] of ``text``, without [CLS] and [SEP]; bytes are read as UTF-8."""
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        return np.array(self._fast.encode(text, add_special_tokens=False).ids, np.int32)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the int32 ids and token types [T] of [CLS] first [SEP], or of [CLS] first [SEP] second [SEP]."""
        ids = [[self.cls_id], first, [self.sep_id]]
        types = np.zeros(len(first) + 2, np.int32)
        if second is not None:
            ids += [second, [self.sep_id]]
            types = np.concatenate([types, np.ones(len(second) + 1, np.int32)])
        return np.concatenate(ids).astype(np.int32), types

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None if the vocabulary lacks it."""
        return self._fast.token_to_id(token)

    def token(self, number: int) -> str:
        """Return the token of an id, "" for an id beyond the vocabulary."""
        return self._fast.id_to_token(int(number)) or ""

    def continues(self) -> np.ndarray:
        """Return for each id whether it continues a word, bool [vocab_size]."""
        return np.array([self.token(number).startswith(CONTINUES) for number in range(self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids`` without special tokens. Spaces are put where they usually stand."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, vocab.txt and tokenizer_config.json into ``folder``."""
        folder, vocabulary = Path(folder), self._fast.get_vocab(with_added_tokens=True)
        self._fast.save(str(folder / "tokenizer.json"))
        words = sorted(vocabulary, key=lambda word: vocabulary[word])
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        normalizer = json.loads(self._fast.to_str()).get("normalizer") or {}
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": bool(normalizer.get("lowercase", False)),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": bool(normalizer.get("handle_chinese_chars", True)),
            **{f"{name}_token": token for name, token in self.names.items()},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int, width: int) -> dict[str, np.ndarray]:
    """Return joined texts (ids and token types) as a batch, int32 [B, width], padded on the right.

    Raises ConfigError for a text that is longer than ``width``.
    """
    B, longest = len(rows), max(len(ids) for ids, _ in rows)
    if longest > width:
        raise ConfigError(f"a text of {longest} tokens does not fit into width={width}")
    batch = {
        "input_ids": np.full((B, width), pad_id, np.int32),
        "attention_mask": np.zeros((B, width), np.int32),
        "token_type_ids": np.zeros((B, width), np.int32),
    }
    for i, (ids, types) in enumerate(rows):
        T = len(ids)
        batch["input_ids"][i, :T], batch["attention_mask"][i, :T], batch["token_type_ids"][i, :T] = ids, 1, types
    return batch


def padded_row(row: tuple[np.ndarray, np.ndarray], pad_id: int, width: int) -> dict[str, Any]:
    """Return one joined text as an example, int32 [width]; otherwise as :func:`padded`."""
    return {name: value[0] for name, value in padded([row], pad_id, width).items()}


def _from_vocabulary(path: Path, settings: dict[str, Any], special: list[str]) -> Any:
    """Return the tokenizer of a vocab.txt, a piece on each line. Raises DataError if it cannot be read."""
    library = _library(str(path))
    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of word pieces: {error}") from error
    if words and not words[-1]:
        words.pop()
    fast = _wordpiece(library, {word.rstrip("\r"): number for number, word in enumerate(words)}, settings, special[1])
    fast.add_special_tokens([token for token in special if fast.token_to_id(token) is not None])
    return fast


def _wordpiece(library: Any, vocabulary: dict[str, int], settings: dict[str, Any], unknown: str) -> Any:
    lower = settings.get("do_lower_case", True)
    fast = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    fast.normalizer = library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),  # None: as do_lower_case
        lowercase=lower,
    )
    fast.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    fast.decoder = library.decoders.WordPiece(prefix=CONTINUES)
    return fast


def _library(purpose: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError("tokenizers", purpose) from None
    return tokenizers


def _content(token: Any, default: str) -> str:
    """Return the text of a token in tokenizer_config.json, which is a string or an AddedToken."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else default
