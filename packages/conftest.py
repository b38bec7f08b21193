"""Every test of a package runs with the shapes of arrays checked against their names, and with its own randomness."""

import numpy as np
import pytest

try:
    from scratch_core.testing import shapes_checked
except ImportError:  # a package that stands on its own, tested alone
    from contextlib import nullcontext as shapes_checked


@pytest.fixture(autouse=True)
def _check_shapes():
    with shapes_checked():
        yield


@pytest.fixture
def random() -> np.random.Generator:
    """Numbers for one test alone: what it draws does not depend on which tests ran before it in its process."""
    return np.random.default_rng(0)
