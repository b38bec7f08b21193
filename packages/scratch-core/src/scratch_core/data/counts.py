r"""Unigram and bigram count models: the baselines that a language model must beat to have learned anything.

With counts $c$ over the training tokens and vocabulary size $V$,

$$ p(b) = \frac{c(b) + 1}{\sum_x c(x) + V} \tag{1} $$
$$ p(b \mid a) = \frac{c(a, b) + p(b)}{c(a) + 1} \tag{2} $$

Equation 2 backs off to the unigram with the weight of one observation, so that an unseen pair costs a finite number
of bits (Jurafsky & Martin, Speech and Language Processing, chapter 3: smoothing).
"""

import numpy as np

from scratch_core.errors import DataError

PIECE, MOST = 1 << 22, 1 << 26
"""Tokens that are counted at a time, and at most. These are enough, and the memory stays small."""


class CountModels:
    """Both models, from the ids of ``tokens`` (int [N], values in [0, vocab_size)). Raises DataError if N is 0.

    Only the first 67 million tokens are counted.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int):
        if len(tokens) == 0:
            raise DataError("the training data is empty: there is nothing to count")
        tokens = tokens[:MOST]
        self.vocab_size = vocab_size
        counts_V, self.firsts_V = np.zeros(vocab_size, np.int64), np.zeros(vocab_size, np.int64)
        # Each pair is one number, sorted: this works for any vocabulary, without a V x V table.
        self.pairs, self.pair_counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for start in range(0, len(tokens), PIECE):
            piece = np.asarray(tokens[start : start + PIECE + 1]).astype(np.int64)  # with the next one's first token
            counts_V += np.bincount(piece[:PIECE], minlength=vocab_size)
            self.firsts_V += np.bincount(piece[:-1], minlength=vocab_size)
            self._add(*np.unique(piece[:-1] * vocab_size + piece[1:], return_counts=True))
        self.unigram_V = (counts_V + 1) / (len(tokens) + vocab_size)  # eq. 1

    def _add(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        """Add the counts of ``pairs``, which are sorted and unique, to the earlier counts."""
        merged = np.union1d(self.pairs, pairs)
        total = np.zeros(len(merged), np.int64)
        for some, count in ((self.pairs, self.pair_counts), (pairs, counts)):
            total[np.searchsorted(merged, some)] += count
        self.pairs, self.pair_counts = merged, total

    def unigram_bits(self, tokens: np.ndarray, counted: np.ndarray | None = None) -> float:
        """Return the total bits of ``tokens`` except the first. ``counted`` (bool) selects which of them to add."""
        each = -np.log2(self.unigram_V[np.asarray(tokens)[1:]])
        return float(each.sum() if counted is None else each[counted].sum())

    def bigram_bits(self, tokens: np.ndarray, counted: np.ndarray | None = None) -> float:
        """Return the total bits of ``tokens`` except the first, each given the one before; ``counted`` as above."""
        tokens = np.asarray(tokens).astype(np.int64)
        before, after = tokens[:-1], tokens[1:]
        pairs = before * self.vocab_size + after
        if len(self.pairs):
            where = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
            seen = np.where(self.pairs[where] == pairs, self.pair_counts[where], 0)
        else:
            seen = np.zeros(len(pairs))
        each = -np.log2((seen + self.unigram_V[after]) / (self.firsts_V[before] + 1))  # eq. 2
        return float(each.sum() if counted is None else each[counted].sum())
