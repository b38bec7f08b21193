"""Sums over the folds of a cross-validation: every sample is multiplied once.

The sums of :mod:`.moments` add up, so where the test folds part the samples, a training fold's are the total minus
its test fold's.
"""

from typing import Any

import jax
import numpy as np

from .arrays import bucket, lay_out, pad
from .moments import Sums, sums

Folds = list[tuple[np.ndarray, np.ndarray]]  # (training indices, test indices) of each

_sums = jax.jit(sums)


def fold_sums(
    X: np.ndarray, y_IK: np.ndarray, sample_weight: Any, folds: Folds, shift_x: np.ndarray, shift_y: np.ndarray
) -> tuple[Sums, list[Sums], list[Sums]]:
    """Return the sums over all samples, over each training fold and over each test fold, around one given shift."""

    def over(picked: np.ndarray) -> Sums:
        part: Any = picked
        if picked[-1] - picked[0] == len(picked) - 1 and (np.diff(picked) == 1).all():
            part = slice(picked[0], picked[-1] + 1)  # a view, not a copy
        weights = None if sample_weight is None else sample_weight[part]
        return _host_sums(X[part], y_IK[part], weights, shift_x, shift_y)

    if sample_weight is not None:
        for f, fold in enumerate(folds):
            for name, picked in zip(("training", "test"), fold):
                if not sample_weight[picked].any():
                    raise ValueError(
                        f"Sample weights must contain at least one non-zero number: the {name} samples of fold {f} "
                        "all have weight zero"
                    )
    tests = [over(test) for _, test in folds]
    covered = np.sort(np.concatenate([test for _, test in folds]))
    if np.array_equal(covered, np.arange(len(X))) and all(_parts(fold, len(X)) for fold in folds):
        total = Sums(*(sum(parts) for parts in zip(*tests)))
        return total, [Sums(*(whole - part for whole, part in zip(total, test))) for test in tests], tests
    return over(np.arange(len(X))), [over(train) for train, _ in folds], tests


def _parts(fold: tuple[np.ndarray, np.ndarray], num_samples: int) -> bool:
    """Tell whether every sample occurs once, either in the training or in the test set."""
    seen = np.zeros(num_samples, bool)
    for picked in fold:
        seen[picked] = True
    return sum(map(len, fold)) == num_samples and bool(seen.all())


def _host_sums(X: np.ndarray, y_IK: np.ndarray, sample_weight: Any, shift_x: np.ndarray, shift_y: np.ndarray) -> Sums:
    """Return the sums as numpy arrays, the features padded to their bucket."""
    num_features = X.shape[1]
    layout = lay_out(X)
    width, padded = layout.rows.tail.shape[1], bucket(num_features)
    weight = np.ones(len(X), X.dtype) if sample_weight is None else sample_weight
    s = _sums(layout.rows, layout.arrange(y_IK), layout.arrange(weight), pad(shift_x, width), shift_y)
    gram, cross, target, x, total_y, total = (np.asarray(v) for v in s)
    gram, cross, x = gram[:num_features, :num_features], cross[:num_features], x[:num_features]
    return Sums(pad(gram, padded, padded), pad(cross, padded, cross.shape[1]), target, pad(x, padded), total_y, total)
