"""Random configurations for ``shared/tools/differential.py``: one small file per family, and what they share.

A family defines ``ARCHITECTURE``, transformers' name of the class, and ``random_config(rng)``, the fields of a small
config.json. It draws odd values too, and some that the package refuses. ``LOGITS`` is the tolerance of its logits if
DESIGN.md sets a separate one for the model. To add a family, copy a file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def pick(rng: np.random.Generator, *values: Any) -> Any:
    """Return one of the values; a value that is given twice is twice as likely."""
    return values[rng.integers(len(values))]


def some(rng: np.random.Generator, fields: Mapping[str, Any], share: float = 0.5) -> dict[str, Any]:
    """Return a random part of the fields; each is kept with probability ``share``."""
    return {name: value for name, value in fields.items() if rng.random() < share}
