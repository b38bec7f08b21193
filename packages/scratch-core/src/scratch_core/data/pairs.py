"""Sources and targets for sequence-to-sequence models: pairs of texts from rows, or texts with gaps.

Span corruption (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4) cuts spans out of a text. The
source has a different sentinel in the place of each span. The target is each sentinel followed by its span:

    source  Thank you <X> me to your party <Y> week .
    target  <X> for inviting <Y> last

The number of tokens cut out of a window and the number of spans are fixed, so that all sources have one length and all
targets another.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratch_core.data.batches import SequenceToSequenceBatch
from scratch_core.data.rows import Reading, read_rows
from scratch_core.data.tokenizers import Tokenizer
from scratch_core.errors import ConfigError, DataError

IGNORED = -100


class Pair(NamedTuple):
    """A source text, and the target text that the model learns to write for it."""

    source: str
    target: str


def open_pairs(path: str | Path, reading: Reading | None = None) -> list[Pair]:
    """Return the rows of a file, each with a "source" and a "target"; rows.py lists the formats.

    Raises DataError, naming file and row, if the file is missing or unreadable, or a row is malformed or empty.
    """

    def read(fields: Any) -> Pair:
        pair = Pair(fields["source"], fields["target"])
        for name, text in pair._asdict().items():
            if not isinstance(text, str) or not text:
                raise ValueError(f"{name}={text!r} must be a text with at least one character")
        return pair

    pairs = [pair for _, pair in read_rows(path, read, 'a "source" and a "target"', reading)]
    if len(pairs) < 2:
        note = "" if reading is None else reading.note
        raise DataError(f"{path} holds {len(pairs)} rows: at least 2 are needed, one of them to be held out{note}")
    return pairs


class Pairs:
    """Tokenised pairs. Item i: "input_ids" and "attention_mask" int32 [S], "labels" int32 [T], -100 after the end.

    Each text ends with eos. A text that is longer than S or T is cut at its end.
    """

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer, source_length: int, target_length: int):
        self.pairs, self.tokenizer = pairs, tokenizer
        self.source_length, self.target_length = source_length, target_length

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> SequenceToSequenceBatch:
        """Return pair ``index``."""
        source, target = self.pairs[int(index)]
        ids, labels = self._ids(source, self.source_length), self._ids(target, self.target_length)
        missing = self.source_length - len(ids)
        pad = 0 if self.tokenizer.pad_id is None else self.tokenizer.pad_id
        return {
            "input_ids": np.pad(ids, (0, missing), constant_values=pad),
            "attention_mask": np.pad(np.ones_like(ids), (0, missing)),
            "labels": np.pad(labels, (0, self.target_length - len(labels)), constant_values=IGNORED),
        }

    def _ids(self, text: str, length: int) -> np.ndarray:
        end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        return np.concatenate([self.tokenizer.encode(text)[: length - len(end)], end]).astype(np.int32)


class SpanCorruption:
    """Windows of T tokens with spans cut out. Item i: "input_ids" int32 [S] and "labels" int32 [U].

    ``sentinels`` are the tokens that replace the spans, in order. Source and target end with ``end`` (None: no end
    token). ``density`` is the share of tokens that is cut, ``mean_length`` the mean length of a span. Item i always has
    the same gaps, drawn from ``seed`` and i. Training draws new gaps in each epoch: it takes ``windows`` and calls
    ``corrupt`` on each. Raises DataError for too few tokens, ConfigError for too few sentinels.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        sentinels: Sequence[int],
        *,
        end: int | None,
        density: float = 0.15,
        mean_length: float = 3.0,
        seed: int = 0,
    ):
        if len(tokens) < length:
            raise DataError(
                f"{len(tokens)} tokens are fewer than one window of {length}: give more text or a shorter window"
            )
        self.windows, self.length, self.seed = Pieces(tokens, length), length, seed
        self.end = [] if end is None else [end]
        self.cut = min(max(round(length * density), 1), length - 1)
        self.spans = min(max(round(self.cut / mean_length), 1), self.cut, length - self.cut)
        if len(sentinels) < self.spans:
            raise ConfigError(
                f"windows of {length} tokens have {self.spans} gaps, the vocabulary has {len(sentinels)} sentinels: "
                "make the windows shorter"
            )
        self.sentinels = np.asarray(sentinels[: self.spans], np.int32)

    @property
    def lengths(self) -> tuple[int, int]:
        """S and U: the number of tokens of every source and of every target."""
        return self.length - self.cut + self.spans + len(self.end), self.cut + self.spans + len(self.end)

    def __len__(self) -> int:
        """Return the number of windows; a rest shorter than T is left out."""
        return len(self.windows)

    def __getitem__(self, index: int) -> SequenceToSequenceBatch:
        """Return window ``index``, always with the same gaps."""
        return self.corrupt(self.windows[index], np.random.default_rng([self.seed, int(index)]))

    def corrupt(self, window: np.ndarray, rng: np.random.Generator) -> SequenceToSequenceBatch:
        """Return a window, int32 [T], with gaps drawn from ``rng``."""
        kept, cut = _lengths(rng, self.length - self.cut, self.spans), _lengths(rng, self.cut, self.spans)
        source: list[Any] = []
        target: list[Any] = []
        start = 0
        for sentinel, before, gap in zip(self.sentinels, kept, cut, strict=True):
            source += [window[start : start + before], [sentinel]]
            target += [[sentinel], window[start + before : start + before + gap]]
            start += before + gap
        return {
            "input_ids": np.concatenate([*source, self.end]).astype(np.int32),
            "labels": np.concatenate([*target, self.end]).astype(np.int32),
        }


class Pieces:
    """Windows of T tokens, side by side. Item i: int32 [T]."""

    def __init__(self, tokens: np.ndarray, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        """Return the number of windows; a rest shorter than T is left out."""
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> np.ndarray:
        """Return window ``index``."""
        return self.tokens[int(index) * self.length : (int(index) + 1) * self.length].astype(np.int32)


def _lengths(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """Return ``parts`` random lengths of at least 1 that add up to ``total``; all compositions are equally likely."""
    ends = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], ends, [total]]))
