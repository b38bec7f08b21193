"""Ctrl-C and SIGTERM during training: finish the step, save, and return, instead of losing what was learned."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """While this context is open, the first SIGINT or SIGTERM is only noted in ``received``; a later one acts.

    Later means a second later: a launcher such as `uv run` may pass on a Ctrl-C that the terminal sent as well.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self):
        self.received: str | None = None
        self._before: dict[int, object] = {}
        self._first = 0.0

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put the handlers back that were there before."""
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._first > 1.0:
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}
