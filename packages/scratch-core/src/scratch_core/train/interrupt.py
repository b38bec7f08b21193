"""Ctrl-C, SIGTERM and SIGHUP during training: finish the step, save, and return, instead of losing what was learned."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from scratch_core.errors import ScratchError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(ScratchError):
    """A signal came before there was anything to save; ``signal`` is its number."""

    def __init__(self, name: str):
        super().__init__(f"stopped by {name} before the first step: there is nothing to save")
        self.signal = signal.Signals[name].value


class Interrupt:
    """While this context is open, the first SIGINT, SIGTERM or SIGHUP is only noted in ``received``; a later one acts.

    A later signal counts only after a second: a launcher such as `uv run` may repeat the terminal's Ctrl-C. With
    ``exits`` the later one ends the process at once, after ``last_words``: an exception could be lost in a callback
    of a library, or be printed by one. A signal that was ignored before, as by `nohup`, stays so. When a terminal is
    closed, what is printed to it is dropped. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, *, exits: bool = False):
        self.received: str | None = None
        self.last_words = ""
        self._exits = exits
        self._before: dict[int, object] = {}
        self._first = 0.0
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Restore the previous handlers."""
        self._put_back()

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received is not None:
            raise Stopped(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        for terminal in self._terminals:
            if not os.isatty(terminal):  # closed: writing to it would be an error from now on
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if self.received is None:
            self.received, self._first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._first > 1.0:
            if self._exits:
                cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
                os.write(2, f"{cursor}\n{self.last_words}\n".encode())
                os._exit(128 + number)
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}
