"""Probabilities of a support vector machine from its scores.

One sigmoid per pair of classes, $p = 1 / (1 + e^{A s + B})$ (Platt 2000, by the method of Lin, Lin and Weng 2007),
and one distribution over the classes from the probabilities of all pairs (Wu, Lin and Weng 2004, second method).

Shapes: I and J samples, K classes.
"""

from typing import NamedTuple

import numpy as np


class Sigmoid(NamedTuple):
    """The parameters of $p = 1 / (1 + e^{A s + B})$."""

    A: float
    B: float


def fit_sigmoid(scores_I: np.ndarray, positive_I: np.ndarray) -> Sigmoid:
    """Fit the probability of the positive class by Newton's method (Lin, Lin and Weng 2007, on Platt 2000)."""
    num_positive, num_negative = positive_I.sum(), (~positive_I).sum()
    target = np.where(positive_I, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))

    def loss(a: float, b: float) -> float:
        z = a * scores_I + b
        return float((target * z + np.logaddexp(0, -z)).sum())

    a, b = 0.0, float(np.log((num_negative + 1) / (num_positive + 1)))
    value = loss(a, b)
    for _ in range(100):
        p = 1 / (1 + np.exp(np.clip(a * scores_I + b, -500, 500)))
        error, curvature = target - p, p * (1 - p)
        gradient = np.array([error @ scores_I, error.sum()])
        if np.abs(gradient).max() < 1e-5:
            break
        mixed = curvature @ scores_I
        hessian = np.array([[curvature @ scores_I**2, mixed], [mixed, curvature.sum()]]) + 1e-12 * np.eye(2)
        step, t = -np.linalg.solve(hessian, gradient), 1.0
        while t > 1e-10 and (tried := loss(a + t * step[0], b + t * step[1])) >= value + 1e-4 * t * (gradient @ step):
            t *= 0.5
        if t <= 1e-10:
            break
        a, b, value = a + t * step[0], b + t * step[1], tried
    return Sigmoid(float(a), float(b))


def couple(pairwise_JKK: np.ndarray) -> np.ndarray:
    r"""Return class probabilities [J, K] from r_kl = P(k | k or l) (Wu, Lin and Weng 2004, second method).

    The probabilities minimise $\sum_{k \ne l} (r_{lk} p_k - r_{kl} p_l)^2$ with $\sum_k p_k = 1$, a linear system.
    """
    J, K, _ = pairwise_JKK.shape
    Q = -np.swapaxes(pairwise_JKK, 1, 2) * pairwise_JKK
    columns = np.swapaxes(pairwise_JKK, 1, 2) ** 2
    off = ~np.eye(K, dtype=bool)
    Q[:, np.arange(K), np.arange(K)] = (columns * off).sum(2)
    system = np.zeros((J, K + 1, K + 1))
    system[:, :K, :K] = Q
    system[:, :K, K] = system[:, K, :K] = 1
    right = np.zeros((J, K + 1, 1))
    right[:, K] = 1
    p = np.clip(np.linalg.solve(system, right)[:, :K, 0], 0, None)
    return p / p.sum(1, keepdims=True)
