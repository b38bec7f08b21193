"""Sizes of images and patches: one number for a square, or rows and columns."""

from collections.abc import Mapping
from typing import Any

from scratch_core.config import field
from scratch_core.errors import ConfigError


def read_size(fields: Mapping[str, Any], name: str, default: int) -> int | tuple[int, int]:
    """Return a size of a config.json: one number, or (rows, columns) where it is a list of two. Raises ConfigError."""
    value = field(fields, name, (int, list), default)
    if isinstance(value, list):
        if len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
            raise ConfigError(f"config.json: {name}={value!r} must be a positive number or two: rows, columns")
        return value[0], value[1]
    if value < 1:
        raise ConfigError(f"config.json: {name}={value} must be at least 1")
    return value


def size_to_hf(size: int | tuple[int, int]) -> int | list[int]:
    """Return a size as config.json writes it."""
    return size if isinstance(size, int) else list(size)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size as (rows, columns)."""
    return (size, size) if isinstance(size, int) else size
