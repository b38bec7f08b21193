"""Ctrl-C and SIGTERM during training: finish the step, save, and return, instead of losing what was learnt."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """While this context is open, the first SIGINT or SIGTERM is only noted in ``received``; a second one acts.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self):
        self.received: str | None = None
        self._before: dict[int, object] = {}

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
        self.received = signal.Signals(number).name
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}
