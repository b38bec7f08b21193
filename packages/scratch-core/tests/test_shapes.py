"""The check of array names, on a module made here. conftest.py turns the check on for every test."""

import importlib
import sys

import numpy as np
import pytest

NAME = "scratch_fake"
SOURCE = '''"""A docstring."""


def swap(x_BTD, B=None):
    """Return what the name says, or not."""
    y_TBD = x_BTD.swapaxes(0, 1)
    inner = lambda z_D: z_D.sum()
    return y_TBD if inner(x_BTD[0, 0]) < 100 else None


def unnamed(x):
    return x
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


def test_true_names_pass(module):
    assert module.swap(np.ones((2, 3, 4))).shape == (3, 2, 4)
    assert module.swap.__doc__ == "Return what the name says, or not."
    assert module.unnamed(5) == 5


def test_a_wrong_number_of_axes_is_an_error(module):
    with pytest.raises(AssertionError, match=r"scratch_fake.py:swap: x_BTD has shape \(2, 3\)"):
        module.swap(np.ones((2, 3)))


def test_one_letter_is_one_size(module):
    with pytest.raises(AssertionError, match=r"x_BTD has shape \(2, 3, 4\), but B=5"):
        module.swap(np.ones((2, 3, 4)), B=5)
