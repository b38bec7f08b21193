"""What several test files of this package share."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_quickly():
    """For tests that fit many tiny problems of many shapes, where nearly all of the time is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
