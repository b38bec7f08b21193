"""Documents to arrays of tokens, split into what is trained on and what is held out.

Every document becomes bos, its tokens, eos; the documents are laid end to end in one integer array. Several documents
are split by document, so that no held-out sentence has its neighbour in the training part; a single one is split by
position.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratch_core.data.sources import Document, Documents, open_documents
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


def load_text(source: str | Path | None, tokenizer: Tokenizer, *, validation_fraction: float = 0.05) -> TokenSplit:
    """Return the tokens of a source that :func:`open_documents` knows, in two parts.

    Of several documents ``validation_fraction`` of the bytes are held out, in whole documents picked by the hash of
    their name; of a single one the end is held out. Token ids are taken as they are, without bos and eos. Raises
    DataError as `open_documents` does, and for token ids that the tokenizer does not have.
    """
    found = open_documents(source)
    if len(found.documents) == 1:
        return _split_by_position(found, tokenizer, validation_fraction)
    sizes = {name: len(content) for name, content in found.documents}
    held_out = split_by_file(sizes, validation_fraction)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for document in found.documents:
        parts[document.name in held_out].append(_tokens(document, tokenizer))
    train, validation = map(np.concatenate, parts)
    left_out = f", {found.left_out} empty or binary left out" if found.left_out else ""
    description = (
        f"{found.label}: {len(sizes)} {found.unit}, {sum(sizes.values()):,} bytes, "
        f"{len(held_out)} {found.unit} held out{left_out}"
    )
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


def _split_by_position(found: Documents, tokenizer: Tokenizer, fraction: float) -> TokenSplit:
    (document,) = found.documents
    tokens = _tokens(document, tokenizer)
    cut = len(tokens) - max(1, round(fraction * len(tokens)))
    size = f"{len(document.content):,} {'bytes' if isinstance(document.content, bytes) else 'token ids'}"
    description = f"{found.label}: {size}, the last {len(tokens) - cut:,} of {len(tokens):,} tokens held out"
    return TokenSplit(tokens[:cut], tokens[cut:], description)


def with_bos(ids: np.ndarray, bos_id: int | None) -> np.ndarray:
    """Return token ids [T] that begin with bos exactly once; a text may have it already. None: there is no bos."""
    return ids if bos_id is None or ids[:1].tolist() == [bos_id] else np.concatenate([[bos_id], ids]).astype(np.int32)


def _tokens(document: Document, tokenizer: Tokenizer) -> np.ndarray:
    """Return bos, the tokens of a text, eos; token ids as they are. Raises DataError for ids beyond the vocabulary."""
    ids = document.content
    if isinstance(ids, bytes):
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        last = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return np.concatenate([with_bos(tokenizer.encode(ids), tokenizer.bos_id), last]).astype(dtype)
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
        raise DataError(
            f"{document.name} holds token ids from {ids.min()} to {ids.max()}, the tokenizer has "
            f"{tokenizer.vocab_size}: name the --tokenizer that made them"
        )
    return ids
