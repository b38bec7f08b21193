"""Sums over the folds of a cross-validation, in one pass over the samples.

The sums of :mod:`.moments` can be added. If every sample is in exactly one test fold, the sums of a training fold are
therefore the total minus those of its test fold.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import bucket, lay_out, pad
from .moments import Samples, Sums, sums, typical_row, typical_target

Folds: TypeAlias = list[tuple[np.ndarray, np.ndarray]]  # (training indices, test indices) of each

_sums = jax.jit(sums)


class FoldSums(NamedTuple):
    """The sums over all samples, over each training fold and over each test fold, all around one shift.

    The features, and with them ``shift_x``, are padded to their bucket.
    """

    total: Sums
    trains: list[Sums]
    tests: list[Sums]
    shift_x: np.ndarray
    shift_y: np.ndarray


def fold_sums(
    X: np.ndarray, y_IK: np.ndarray, sample_weight: np.ndarray | None, folds: Folds, fit_intercept: bool
) -> FoldSums:
    """Return the sums that cross-validation needs, as numpy arrays. Without an intercept the shift is zero.

    Raises ValueError if all samples of a training or test fold have weight zero.
    """
    shift_x, shift_y = np.asarray(typical_row(X, fit_intercept)), typical_target(y_IK, fit_intercept)
    padded_shift_x = pad(shift_x, bucket(X.shape[1]))

    def over(picked: np.ndarray) -> Sums:
        part: slice | np.ndarray = picked
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
    if np.array_equal(covered, np.arange(len(X))) and all(_is_partition(fold, len(X)) for fold in folds):
        with np.errstate(over="ignore", invalid="ignore"):  # the callers refuse sums that are not finite
            total = Sums(*(sum(parts) for parts in zip(*tests)))
            trains = [Sums(*(whole - part for whole, part in zip(total, test))) for test in tests]
    else:
        total, trains = over(np.arange(len(X))), [over(train) for train, _ in folds]
    return FoldSums(total, trains, tests, padded_shift_x, shift_y)


def _is_partition(fold: tuple[np.ndarray, np.ndarray], num_samples: int) -> bool:
    """Return whether every sample occurs once, either in the training or in the test set."""
    seen = np.zeros(num_samples, bool)
    for picked in fold:
        seen[picked] = True
    return sum(map(len, fold)) == num_samples and bool(seen.all())


def _host_sums(
    X: np.ndarray, y_IK: np.ndarray, sample_weight: np.ndarray | None, shift_x: np.ndarray, shift_y: np.ndarray
) -> Sums:
    """Return the sums as numpy arrays, with the features padded to their bucket."""
    num_features = X.shape[1]
    layout = lay_out(X)
    width, padded = layout.rows.tail.shape[1], bucket(num_features)
    weight = np.ones(len(X), X.dtype) if sample_weight is None else sample_weight
    parts = layout.arrange(y_IK), layout.arrange(weight), pad(shift_x, width), shift_y
    samples = Samples(layout.rows, *map(jnp.asarray, parts))
    gram, cross, target, x, total_y, total = (np.asarray(v) for v in _sums(samples))
    gram, cross, x = gram[:num_features, :num_features], cross[:num_features], x[:num_features]
    return Sums(pad(gram, padded, padded), pad(cross, padded, cross.shape[1]), target, pad(x, padded), total_y, total)
