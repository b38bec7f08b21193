"""The pairs of classes of one-against-one classification.

Shapes: I samples, J queries, K classes, P = K (K - 1) / 2 pairs, S support vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two classes by their indices; ``positive`` is the one whose samples have positive coefficients and scores."""

    first: int
    second: int
    positive: int

    def contains(self, indices_I: np.ndarray) -> np.ndarray:
        """Return the mask of the samples of either class, from the classes' indices."""
        return (indices_I == self.first) | (indices_I == self.second)


@dataclass(frozen=True)
class Pairs:
    """All pairs of ``num_classes`` classes, in the order (0, 1), (0, 2), ..., (1, 2), ... of libsvm.

    The first class of a pair is the positive one, but of two classes it is the second, as in all of scikit-learn.
    """

    num_classes: int

    def __len__(self) -> int:
        return self.num_classes * (self.num_classes - 1) // 2

    def __iter__(self) -> Iterator[Pair]:
        for first, second in combinations(range(self.num_classes), 2):
            yield Pair(first, second, second if self.num_classes == 2 else first)

    def votes(self, won_JP: np.ndarray) -> np.ndarray:
        """Return how many pairs each class won [J, K]; ``won_JP`` is True where the first class of the pair won."""
        votes_JK = np.zeros((len(won_JP), self.num_classes), int)
        for pair, won_J in zip(self, won_JP.T):
            votes_JK[won_J, pair.first] += 1
            votes_JK[~won_J, pair.second] += 1
        return votes_JK

    def one_against_rest(self, scores_JP: np.ndarray) -> np.ndarray:
        """Return votes plus sums of scores [J, K]; the sums are scaled into (-1/3, 1/3), so they only break ties."""
        sums_JK = np.zeros((len(scores_JP), self.num_classes))
        for pair, score_J in zip(self, scores_JP.T):
            sums_JK[:, pair.first] += score_J
            sums_JK[:, pair.second] -= score_J
        return self.votes(scores_JP >= 0) + sums_JK / (3 * (np.abs(sums_JK) + 1))

    def matrix(self, first_JP: np.ndarray) -> np.ndarray:
        """Return r[j, k, l] = P(k | k or l) [J, K, K] from the probabilities of the first class of each pair."""
        matrix_JKK = np.zeros((len(first_JP), self.num_classes, self.num_classes))
        for pair, first_J in zip(self, first_JP.T):
            matrix_JKK[:, pair.first, pair.second], matrix_JKK[:, pair.second, pair.first] = first_J, 1 - first_J
        return matrix_JKK

    def dual_rows(self, pair: Pair, own: np.ndarray) -> np.ndarray:
        """Return the row of libsvm's dual coefficients for samples of the classes ``own`` in ``pair``.

        Row k holds a sample's coefficient against the k-th of the other classes, in their order.
        """
        return np.where(own == pair.first, pair.second - 1, pair.first)

    def coefficients(self, dual_coef: np.ndarray, num_support: np.ndarray) -> np.ndarray:
        """Return the coefficients of every pair's decision function [S, P] from libsvm's dual coefficients [K - 1, S].

        The support vectors are ordered by class; ``num_support`` [K] counts them.
        """
        if self.num_classes == 2:
            return dual_coef.T
        edges = np.concatenate([[0], np.cumsum(num_support)])
        coef_SP = np.zeros((dual_coef.shape[1], len(self)), dual_coef.dtype)
        for p, (first, second, _) in enumerate(self):
            of_first, of_second = slice(edges[first], edges[first + 1]), slice(edges[second], edges[second + 1])
            coef_SP[of_first, p] = dual_coef[second - 1, of_first]
            coef_SP[of_second, p] = dual_coef[first, of_second]
        return coef_SP
