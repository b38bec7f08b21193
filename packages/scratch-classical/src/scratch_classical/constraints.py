"""The values that each parameter of an estimator may have, in the form that scikit-learn validates.

``fit`` starts with ``self._validate_params()``, which raises scikit-learn's InvalidParameterError, a ValueError that
names the parameter, its allowed values and the value that was given.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import get_scorer_names
from sklearn.utils import check_scalar
from sklearn.utils._param_validation import Hidden, Interval, StrOptions

Constraints: TypeAlias = Mapping[str, Sequence[object]]

FLAG = ["boolean"]
COUNT = [Interval(Integral, 1, None, closed="left")]
COUNT_OR_ZERO = [Interval(Integral, 0, None, closed="left")]
NOT_NEGATIVE = [Interval(Real, 0, None, closed="left")]
POSITIVE = [Interval(Real, 0, None, closed="neither")]
POSITIVE_OR_INFINITE = [Interval(Real, 0, None, closed="right")]
SHARE = [Interval(Real, 0, 1, closed="both")]
JOBS = [Integral, None]
SEED = ["random_state"]
VERBOSE = ["verbose"]
FOLDS = ["cv_object"]
SCORING = [StrOptions(set(get_scorer_names())), callable, None]
CLASS_WEIGHT = [dict, StrOptions({"balanced"}), None]
SELECTION = [StrOptions({"cyclic", "random"})]


def one_of(*names: str) -> StrOptions:
    """Return the constraint that a parameter is one of these names."""
    return StrOptions(set(names))


def unset(name: str) -> Hidden:
    """Return the constraint that admits ``name``, the default that stands for "not given", without listing it."""
    return Hidden(StrOptions({name}))


def check_each(name: str, values: ArrayLike, boundaries: str, largest: float | None = None) -> None:
    """Raise ValueError or TypeError unless all ``values`` are numbers, not NaN, from 0 to ``largest`` (None: no limit).

    ``boundaries`` says which of the two ends are allowed: "neither", "left", "right" or "both".
    """
    for index, value in enumerate(np.atleast_1d(np.asarray(values, object))):
        check_scalar(value, f"{name}[{index}]", Real, min_val=0.0, max_val=largest, include_boundaries=boundaries)
        if np.isnan(value):
            raise ValueError(f"{name}[{index}] == nan, must be a number.")
