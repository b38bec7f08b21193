r"""Masked language modelling: some tokens of a text are hidden, and the model predicts them from the others.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1 and appendix A.1. 15 % of the tokens are to be
predicted. Of these, 80 % become [MASK], 10 % become a random token and 10 % stay unchanged. With whole words (a later
option of the authors' code), a word is chosen with all its pieces.
"""

from collections.abc import Sequence

import numpy as np

from scratch_core.data.batches import MaskedLMBatch
from scratch_core.data.wordpiece import WordPiece
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED

SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1
COPIES = 10
"""Copies of each window in the training data, each with different tokens hidden, as in the paper's code."""


class MaskedWindows:
    """Windows of T tokens, including [CLS] and [SEP], with hidden tokens.

    Item i: "input_ids" and "labels" int32 [T]; labels are -100 where nothing is to be predicted. Windows are cut from
    ``tokens``, the concatenated documents, int [N]. Each window occurs ``copies`` times, with different tokens hidden.
    Raises DataError for fewer tokens than a window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        tokenizer: WordPiece,
        *,
        whole_words: bool = False,
        copies: int = 1,
        seed: int = 0,
    ):
        if len(tokens) < length - 2:
            raise DataError(
                f"{len(tokens)} tokens are fewer than one window of {length}: give more text or a shorter window"
            )
        self.tokens, self.length, self.copies, self.seed = tokens, length - 2, copies, seed
        self.whole_words, self.tokenizer = whole_words, tokenizer
        self.continues = tokenizer.continues()
        special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self.ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special)

    def __len__(self) -> int:
        """Return the number of examples. A remainder shorter than a window is dropped."""
        return len(self.tokens) // self.length * self.copies

    def __getitem__(self, index: int) -> MaskedLMBatch:
        """Return example ``index``."""
        rng = np.random.default_rng([self.seed, int(index)])
        start = int(index) % (len(self.tokens) // self.length) * self.length
        window = self.tokens[start : start + self.length].astype(np.int32)
        chosen = self.choose(window, rng)
        draw = rng.random(len(window))
        hidden = np.where(draw < MASKED, self.tokenizer.mask_id, window)
        other = rng.choice(self.ordinary, len(window))
        hidden = np.where((draw >= MASKED) & (draw < MASKED + RANDOM), other, hidden)
        ids, _ = self.tokenizer.join(np.where(chosen, hidden, window))
        labels = np.where(chosen, window, IGNORED).astype(np.int32)
        return {"input_ids": ids, "labels": np.concatenate([[IGNORED], labels, [IGNORED]]).astype(np.int32)}

    def choose(self, window: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return which tokens are to be predicted, bool [T - 2]: about 15 %, never [SEP]; whole words if set."""
        starts = ~self.continues[window] if self.whole_words else np.ones(len(window), bool)
        starts[0] = True
        word = np.cumsum(starts) - 1
        allowed = window != self.tokenizer.sep_id
        wanted = max(1, round(SHARE * len(window)))
        sizes = np.bincount(word)
        order = rng.permutation(len(sizes))
        taken = order[np.cumsum(sizes[order]) <= max(wanted, sizes[order[0]])]
        return np.isin(word, taken) & allowed


def laid_end_to_end(texts: Sequence[str], tokenizer: WordPiece) -> np.ndarray:
    """Return the tokens of all texts, with [SEP] after each, int [N]."""
    parts = [part for found in tokenizer.all_pieces(texts) for part in (found.ids, [tokenizer.sep_id])]
    return np.concatenate(parts).astype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
