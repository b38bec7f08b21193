"""Patterns of dotted parameter paths, such as ``layers.*.attention.query.kernel``."""

import re
from collections.abc import Iterable
from functools import cache


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", ".*"))


def matches(path: str, *patterns: str) -> bool:
    """Return whether a path is one of the patterns, in which ``*`` stands for any characters, dots included."""
    return any(_pattern(glob).fullmatch(path) for glob in patterns)


def unmatched(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Return the patterns that match none of the paths: most likely a typing error."""
    paths = list(paths)
    return [glob for glob in patterns if not any(matches(path, glob) for path in paths)]
