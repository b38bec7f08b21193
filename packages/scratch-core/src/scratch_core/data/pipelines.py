"""Batches by number: batch k is a pure function of the data, the seed and k, so a resumed run needs only its step.

Training batches come from a Grain `MapDataset` (shuffled in each epoch, endless, random access): a run that resumes at
step k reads ``batches[k]`` and needs no other state. Evaluation batches are a finite sequence in fixed order.
With n processes, each batch is cut into n equal blocks of consecutive rows, and process i reads block i.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from scratch_core.data.batches import CausalLMBatch, ImageClassificationBatch
from scratch_core.errors import ConfigError, DataError
from scratch_core.layers.masks import MAX_DOCUMENTS

if TYPE_CHECKING:
    import grain


class Windows:
    """Windows of T tokens that overlap by one token, so that each token is predicted once per epoch.

    Item i is {"input_ids": int32 [T]}; a remainder shorter than T is dropped. ``starts`` (int [documents], increasing)
    gives the first token of each document; None: all tokens are one document. With ``starts``, an item also has
    "document_ids" int32 [T], and no document attends to another. A document that a window cuts continues in the next
    window as a new document. Raises DataError if there are fewer than T tokens, or if a window may hold more documents
    than a model can tell apart; ConfigError if T < 2.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int, starts: np.ndarray | None = None):
        if sequence_length < 2:
            raise ConfigError(f"sequence_length={sequence_length} must be at least 2: a token and the next one")
        if len(tokens) < sequence_length:
            raise DataError(
                f"{len(tokens)} tokens are fewer than one window of sequence_length={sequence_length}: "
                "give more text or a shorter sequence_length"
            )
        most = MAX_DOCUMENTS - 1
        if starts is not None and len(starts) > most and (starts[most:] - starts[:-most]).min() < sequence_length:
            raise DataError(
                f"a window of sequence_length={sequence_length} would hold more than {most} documents: "
                "give a shorter sequence_length, or train on them as one text"
            )
        self.tokens, self.length, self.starts = tokens, sequence_length, starts

    def __len__(self) -> int:
        """Return the number of full windows."""
        return (len(self.tokens) - 1) // (self.length - 1)

    def __getitem__(self, index: int) -> CausalLMBatch:
        """Return window ``index``."""
        start = int(index) * (self.length - 1)
        batch: CausalLMBatch = {"input_ids": self.tokens[start : start + self.length].astype(np.int32)}
        if self.starts is not None:
            batch["document_ids"] = _documents(self.starts, start + np.arange(self.length))
        return batch


def training_batches(
    source: Any,
    batch_size: int,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    change: Callable[[Any, np.random.Generator], Any] | None = None,
) -> "grain.MapDataset":
    """Return the endless, shuffled batches of ``source`` (anything with len and ``source[i]``): ``batches[k]``.

    Each epoch has its own order, drawn from ``seed``. A batch may hold the end of one epoch and the start of the next.
    ``change(example, rng)`` changes examples at random, differently in each epoch. Raises ConfigError if
    ``process_count`` does not divide ``batch_size``, DataError for an empty source.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} must be positive and a multiple of {process_count} processes")
    if len(source) == 0:
        raise DataError("the training data is empty")
    import grain  # 3 s of import: only when training starts

    order = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if change is not None:
        order = order.random_map(change, seed=(seed + 1) % 2**32)
    return order.batch(batch_size // process_count)[process_index::process_count]


class TextEvaluation:
    """All of ``tokens`` in order, in batches of one shape. Every token except the first is a target exactly once.

    Batch k is {"input_ids": int32 [B, T], "labels": int32 [B, T]}. The last windows are padded with token 0 and label
    -100, which no loss counts. With ``starts`` (see :class:`Windows`), a batch also has "document_ids", and the first
    token of each document is not a target. Raises DataError if there are fewer than two tokens.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, sequence_length: int, starts: np.ndarray | None = None):
        if len(tokens) < 2:
            raise DataError(f"{len(tokens)} held-out tokens: at least 2 are needed")
        if batch_size < 1 or sequence_length < 2:
            raise ConfigError(f"batch_size={batch_size} must be >= 1 and sequence_length={sequence_length} >= 2")
        self.tokens, self.batch_size, self.length, self.starts = tokens, batch_size, sequence_length, starts
        self.num_windows = -(-(len(tokens) - 1) // (sequence_length - 1))

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.num_windows // self.batch_size)

    def __iter__(self) -> Iterator[CausalLMBatch]:
        """Return all batches, one after another."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> CausalLMBatch:
        """Return batch ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        B, T = self.batch_size, self.length
        where_BT = (np.arange(B)[:, None] + index * B) * (T - 1) + np.arange(T)
        real_BT = where_BT < len(self.tokens)
        ids_BT = self.tokens[np.minimum(where_BT, len(self.tokens) - 1)].astype(np.int32)
        batch: CausalLMBatch = {
            "input_ids": np.where(real_BT, ids_BT, 0),
            "labels": np.where(real_BT, ids_BT, -100),
        }
        if self.starts is not None:
            batch["document_ids"] = _documents(self.starts, where_BT)
        return batch

    @property
    def counted(self) -> np.ndarray:
        """True where a token is a target, for all ``tokens`` except the first, bool [N - 1]."""
        counted = np.ones(len(self.tokens), bool)
        counted[self.starts if self.starts is not None else []] = False
        return counted[1:]


def _documents(starts: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the number of the document that each token is in, int32 of the same shape."""
    return np.searchsorted(starts, where, side="right").astype(np.int32)


class ImageEvaluation:
    """All images in order, in batches of one shape. The last batch is padded with zeros and the label -100.

    ``source`` has a len, and ``source[i:j]`` is a batch. Labels of -100 are not counted by any loss.
    """

    def __init__(self, source: Any, batch_size: int):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        self.source, self.batch_size = source, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[ImageClassificationBatch]:
        """Return all batches, one after another."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> ImageClassificationBatch:
        """Return batch ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = self.source[index * self.batch_size : (index + 1) * self.batch_size]
        missing = self.batch_size - len(batch["labels"])
        if not missing:
            return batch
        return {
            "images": np.pad(batch["images"], ((0, missing), (0, 0), (0, 0), (0, 0))),
            "labels": np.pad(batch["labels"], (0, missing), constant_values=-100),
        }
