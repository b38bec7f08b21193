"""Array names carry their shape, and this checks that they tell the truth: ``x_BTD`` has three axes.

Needs no JAX: a test session imports it first.
"""

import contextlib
import os
import re
import sys
from collections.abc import Generator
from types import CodeType, FrameType
from typing import Any

SUFFIX = re.compile(r"[a-z0-9]_([A-Z]+)$")


def _check_return(frame: FrameType, event: str, _: Any) -> Any:
    """A local tracing function: when a function returns, check the names of its arrays."""
    if event != "return":
        return _check_return
    local = frame.f_locals
    size = {k: v for k, v in local.items() if len(k) == 1 and k.isupper() and isinstance(v, int)}
    for name, value in local.items():
        if (found := SUFFIX.search(name)) and hasattr(value, "shape"):
            where = f"{frame.f_code.co_filename}:{frame.f_code.co_name}: {name} has shape {value.shape}"
            assert len(value.shape) == len(found[1]), where
            for letter, n in zip(found[1], value.shape, strict=True):
                assert size.setdefault(letter, n) == n, f"{where}, but {letter}={size[letter]}"
    return _check_return


class _Tracers(dict):
    """The local tracing function of each code object: none outside of ``scratch_*`` packages."""

    def __missing__(self, code: CodeType) -> Any:
        names = code.co_varnames + code.co_cellvars + code.co_freevars
        ours = f"{os.sep}scratch_" in code.co_filename and any(map(SUFFIX.search, names))
        self[code] = _check_return if ours else None
        return self[code]


_TRACERS = _Tracers()


def _on_call(frame: FrameType, event: str, _: Any) -> Any:
    """The global tracing function, which runs at every call of a Python function: it has to be quick."""
    tracer = _TRACERS[frame.f_code]
    if tracer is not None:
        frame.f_trace_lines = False
    return tracer


@contextlib.contextmanager
def shapes_checked() -> Generator[None]:
    """Check the suffix of every array name within ``scratch_*`` code, tracers too, when its function returns.

    ``x_BTD`` must have three axes, and one letter means one size throughout a call. Nothing is checked under
    a debugger or coverage, which need the same hook.
    """
    if sys.gettrace() is not None:
        yield
        return
    sys.settrace(_on_call)
    try:
        yield
    finally:
        sys.settrace(None)
