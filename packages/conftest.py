"""Every test of a package runs with the shapes of arrays checked against their names."""

import pytest

try:
    from scratch_core.testing import shapes_checked
except ImportError:  # a package that stands on its own, tested alone
    from contextlib import nullcontext as shapes_checked


@pytest.fixture(autouse=True)
def _check_shapes():
    with shapes_checked():
        yield
