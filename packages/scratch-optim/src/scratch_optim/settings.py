"""Checks of settings and of parameters that every optimizer of this package makes."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from scratch_core.errors import ConfigError


def check_learning_rate(learning_rate: optax.ScalarOrSchedule) -> None:
    """Raise ConfigError unless it is a positive number, or a schedule."""
    if not callable(learning_rate):
        check_range("learning_rate", learning_rate, 0.0, float("inf"), low_included=False)


def check_range(name: str, value: Any, low: float, high: float, *, low_included: bool = True) -> None:
    """Raise ConfigError unless low <= value < high, or low < value < high where ``low_included`` is False.

    A traced number, as optax.inject_hyperparams passes it, has no value and is not checked.
    """
    if isinstance(value, Tracer):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray | jax.Array):
        raise ConfigError(f"{name}={value!r} must be a number, not of type {type(value).__name__}")
    if not ((low <= value if low_included else low < value) and value < high):
        least = "at least" if low_included else "above"
        most = "finite" if high == float("inf") else f"below {high:g}"
        raise ConfigError(f"{name}={value} must be {least} {low:g} and {most}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, jax.Array):
        raise ConfigError(
            f"{name}={value!r} must be a Python integer, because it decides what is compiled: "
            f"with optax.inject_hyperparams, name it in static_args=({name!r}, ...)"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer of at least {least}")


def check_b2(value: Any) -> None:
    """Raise ConfigError unless 0 < value <= 1."""
    if isinstance(value, numbers.Real | jax.Array) and not isinstance(value, Tracer) and not 0 < value <= 1:
        raise ConfigError(
            f"b2={value} must be above 0 and at most 1: 1 sums the statistics, a smaller number averages them"
        )
    check_range("b2", value, 0.0, 2.0)  # for the check of the type


def weight_of_new(b2: Any) -> jax.Array:
    """Return the weight of a new term: 1 if b2 is 1 (a sum), else 1 - b2 (a running mean)."""
    return jnp.where(jnp.equal(b2, 1), 1.0, 1 - b2)


def is_zero(value: Any) -> bool:
    """Return whether a setting is the number 0; an array of 0, which may be traced, is not."""
    return isinstance(value, numbers.Real) and value == 0


def check_real(parameters: Any) -> None:
    """Raise ConfigError with the path of the first leaf that is not a real floating-point array, or that is empty."""
    for path, x in jax.tree_util.tree_leaves_with_path(parameters):
        what = "the parameter " + (jax.tree_util.keystr(path, simple=True, separator=".") or "given")
        leave_out = "leave it out, for example with optax.masked or the trainable= filter of Trainer"
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ConfigError(
                f"{what} has dtype {jnp.result_type(x)}, and only real floating-point numbers can be trained: "
                + leave_out
            )
        if jnp.size(x) == 0:
            raise ConfigError(f"{what} has shape {jnp.shape(x)} and nothing to train: {leave_out}")


def decay_coefficients(parameters: Any, weight_decay: float, mask: Any) -> Any:
    """Return the tree of each parameter's weight decay: ``weight_decay`` where ``mask`` is True, else 0.

    ``mask`` is a tree of booleans, a function from the parameters to one, or None: True everywhere.
    """
    if callable(mask):
        mask = mask(parameters)
    if mask is None:
        return jax.tree.map(lambda _: weight_decay, parameters)
    return jax.tree.map(lambda _, decays: weight_decay if decays else 0.0, parameters, mask)
