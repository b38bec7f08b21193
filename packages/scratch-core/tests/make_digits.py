# /// script
# dependencies = ["numpy>=2.0", "scikit-learn>=1.6"]
# ///
"""Rebuild scratch_core/data/digits.npz from the copy that scikit-learn ships: `uv run make_digits.py OUT.npz`."""

import sys

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
np.savez_compressed(sys.argv[1], images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
