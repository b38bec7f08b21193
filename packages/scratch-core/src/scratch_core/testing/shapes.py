"""Array names carry their shape, and this checks that they tell the truth: ``x_BTD`` has three axes.

Needs no JAX: a test session imports it first.
"""

import contextlib
import os
import re
import sys
from collections.abc import Generator
from typing import Any

SUFFIX = re.compile(r"[a-z0-9]_([A-Z]+)$")


def _check_frame(frame: Any, event: str, _: Any) -> Any:
    """A tracing function: on the call of a ``scratch_*`` function return itself, on its return check the names."""
    if event == "call":
        frame.f_trace_lines = False
        return _check_frame if f"{os.sep}scratch_" in frame.f_code.co_filename else None
    if event != "return":
        return _check_frame
    local = frame.f_locals
    size = {k: v for k, v in local.items() if len(k) == 1 and k.isupper() and isinstance(v, int)}
    for name, value in local.items():
        if (found := SUFFIX.search(name)) and hasattr(value, "shape"):
            where = f"{frame.f_code.co_filename}:{frame.f_code.co_name}: {name} has shape {value.shape}"
            assert len(value.shape) == len(found[1]), where
            for letter, n in zip(found[1], value.shape, strict=True):
                assert size.setdefault(letter, n) == n, f"{where}, but {letter}={size[letter]}"
    return _check_frame


@contextlib.contextmanager
def shapes_checked() -> Generator[None]:
    """Check the suffix of every array name within ``scratch_*`` code, tracers too, when its function returns.

    ``x_BTD`` must have three axes, and one letter means one size throughout a call. Nothing is checked under
    a debugger or coverage, which need the same hook.
    """
    if sys.gettrace() is not None:
        yield
        return
    sys.settrace(_check_frame)
    try:
        yield
    finally:
        sys.settrace(None)
