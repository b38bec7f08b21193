"""1,797 handwritten digits of 8 x 8 pixels, included in the package: the smallest real image dataset.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; the repository's test part, as scikit-learn ships it. 32 x 32
bitmaps were divided into blocks of 4 x 4, and a pixel is the number of set points in its block, 0 to 16.

The split is ours and fixed: every fifth image of each class, in the order of the source, is for testing.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Images uint8 [N, 8, 8] with values 0..16, labels uint8 [N] with values 0..9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """Return 1,442 images for training and 355 for testing (all classes in both)."""
    with (files("scratch_core.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[4::5]] = True
    return Digits(images[~test], labels[~test], images[test], labels[test])
