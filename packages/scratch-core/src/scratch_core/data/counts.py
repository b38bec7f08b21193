r"""Unigram and bigram count models: what a language model must beat to have learned anything.

With counts $c$ over the training tokens and vocabulary size $V$,

$$ p(b) = \frac{c(b) + 1}{\sum_x c(x) + V} \tag{1} $$
$$ p(b \mid a) = \frac{c(a, b) + p(b)}{c(a) + 1} \tag{2} $$

Equation 2 backs off to the unigram with the weight of one observation, so that an unseen pair costs a finite number
of bits (Jurafsky & Martin, Speech and Language Processing, chapter 3: smoothing).
"""

import numpy as np

from scratch_core.errors import DataError


class CountModels:
    """Both models, from the ids of ``tokens`` (int [N], values in [0, vocab_size)). DataError if it is empty."""

    def __init__(self, tokens: np.ndarray, vocab_size: int):
        if len(tokens) == 0:
            raise DataError("the training data is empty: there is nothing to count")
        tokens = np.asarray(tokens).astype(np.int64)
        self.vocab_size = vocab_size
        counts_V = np.bincount(tokens, minlength=vocab_size)
        self.unigram_V = (counts_V + 1) / (len(tokens) + vocab_size)  # eq. 1
        self.firsts_V = np.bincount(tokens[:-1], minlength=vocab_size)
        # Pairs as one number each, sorted: works for any vocabulary, with no V x V table.
        self.pairs, self.pair_counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)

    def unigram_bits(self, tokens: np.ndarray) -> float:
        """Return the bits that all of ``tokens`` but the first cost."""
        return float(-np.log2(self.unigram_V[np.asarray(tokens)[1:]]).sum())

    def bigram_bits(self, tokens: np.ndarray) -> float:
        """Return the bits that each of ``tokens`` but the first costs, given the one before."""
        tokens = np.asarray(tokens).astype(np.int64)
        before, after = tokens[:-1], tokens[1:]
        pairs = before * self.vocab_size + after
        if len(self.pairs):
            where = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
            seen = np.where(self.pairs[where] == pairs, self.pair_counts[where], 0)
        else:
            seen = np.zeros(len(pairs))
        return float(-np.log2((seen + self.unigram_V[after]) / (self.firsts_V[before] + 1)).sum())  # eq. 2
