"""Checks of settings and of parameters that every optimizer of this package makes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from scratch_core.errors import ConfigError


def check_learning_rate(learning_rate: optax.ScalarOrSchedule) -> None:
    """Raise ConfigError unless it is a positive number, or a schedule."""
    if not callable(learning_rate):
        check_range("learning_rate", float(learning_rate), 0.0, float("inf"), low_included=False)


def check_range(name: str, value: float, low: float, high: float, *, low_included: bool = True) -> None:
    """Raise ConfigError unless low <= value < high, or low < value < high where ``low_included`` is False."""
    if not ((low <= value if low_included else low < value) and value < high):
        least = "at least" if low_included else "above"
        most = "" if high == float("inf") else f" and below {high:g}"
        raise ConfigError(f"{name}={value} must be {least} {low:g}{most}")


def check_count(name: str, value: int, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer of at least {least}")


def check_real(parameters: Any) -> None:
    """Raise ConfigError with the path of the first leaf that is not a real floating-point array."""
    for path, x in jax.tree_util.tree_leaves_with_path(parameters):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ConfigError(
                f"the parameter {name} has dtype {jnp.result_type(x)}, and only real floating-point numbers can be "
                "trained: leave it out, for example with optax.masked or the trainable= filter of Trainer"
            )


def decay_coefficients(parameters: Any, weight_decay: float, mask: Any) -> Any:
    """Return the tree of each parameter's weight decay: ``weight_decay`` where ``mask`` is True, else 0.

    ``mask`` is a tree of booleans, a function from the parameters to one, or None: True everywhere.
    """
    if callable(mask):
        mask = mask(parameters)
    if mask is None:
        return jax.tree.map(lambda _: weight_decay, parameters)
    return jax.tree.map(lambda _, decays: weight_decay if decays else 0.0, parameters, mask)
