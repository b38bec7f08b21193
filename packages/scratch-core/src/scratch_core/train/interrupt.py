"""Ctrl-C, SIGTERM and SIGHUP during training: finish the step, save, and return, instead of losing what was learned."""

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from scratch_core.errors import ScratchError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEATED_SECONDS = 1.0
"""A launcher such as `uv run` may repeat the terminal's Ctrl-C: signals this soon after the first count as the same."""


class Stopped(ScratchError):
    """A signal came before there was anything to save; ``signal`` is its number."""

    def __init__(self, name: str):
        super().__init__(f"stopped by {name} before the first step: there is nothing to save")
        self.signal = signal.Signals[name].value


class Interrupt:
    """While this context is open, the first SIGINT, SIGTERM or SIGHUP only sets ``received``; a later one acts.

    A later signal counts if it comes more than REPEATED_SECONDS after the first. It has its usual effect, such as
    KeyboardInterrupt. With ``exits``, it ends the process at once, after printing ``last_words``, because a library
    could lose an exception that is raised in its callback, or print it. A thread does this, so that it also works
    while the main thread waits in C, as in a compilation.

    A signal that was ignored before, as by `nohup`, is still ignored. When a terminal is closed, what is printed to it
    is dropped. Outside the main thread, where Python allows no handlers, the context does nothing.
    """

    def __init__(self, *, exits: bool = False):
        self.received: str | None = None
        self.last_words = ""
        self._exits = exits
        self._before: dict[int, object] = {}
        self._first = 0.0
        self._terminals: list[int] = []
        self._wakeup: socket.socket | None = None
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
            if self._exits:
                received, self._wakeup = socket.socketpair()
                self._wakeup.setblocking(False)  # as signal.set_wakeup_fd demands
                threading.Thread(target=self._exit_at_second, args=(received,), daemon=True).start()
                self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
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
        elif not self._exits and time.monotonic() - self._first > REPEATED_SECONDS:
            self._put_back()
            signal.raise_signal(number)

    def _exit_at_second(self, received: socket.socket) -> None:
        """Read the number of each signal, which Python's handler in C sends, until `_put_back` closes the other end."""
        first = None
        with received:
            while number := received.recv(1):
                if number[0] not in SIGNALS:
                    continue
                first = first or time.monotonic()
                if time.monotonic() - first > REPEATED_SECONDS:
                    with contextlib.suppress(OSError):  # the terminal may be closed
                        cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
                        os.write(2, f"{cursor}\n{self.last_words}\n".encode())
                    os._exit(128 + number[0])

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup.close()
            self._wakeup = None
