"""Reporting of a run: always a JSONL file, and a progress bar on a terminal or plain lines elsewhere."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax
import jax.numpy as jnp

from scratch_core.errors import CheckpointError
from scratch_core.folders import why_not_written


class MetricsLog:
    """``metrics.jsonl``: one JSON object per line, each with its "step". ``path`` None: nothing is written."""

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one line in a single write, so that a reader or a kill never sees half of it. Raises CheckpointError."""
        if self.path is None:
            return
        line = (json.dumps(record) + "\n").encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                before = os.fstat(file).st_size
                if os.write(file, line) < len(line):  # the disk is full
                    os.ftruncate(file, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)
        except OSError as error:
            reason = why_not_written(error, self.path.parent, len(line))
            raise CheckpointError(f"{self.path} cannot be written: {reason}") from error

    def read(self) -> list[dict[str, Any]]:
        """Return all valid lines. Lines that are incomplete (after a crash) or have no step are left out."""
        if self.path is None or not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
        return records

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, because a run that resumes at ``step`` writes them again."""
        if self.path is None or not self.path.exists():
            return
        kept = [record for record in self.read() if record["step"] <= step]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, self.path)


class Throughput:
    """Units per second between two calls of `rate`; the first step, which compiles, is not counted."""

    def __init__(self):
        self._since: float | None = None
        self._count = 0

    def add(self, count: int) -> None:
        """Record that a step over ``count`` units is done."""
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._count += count

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Exclude the time spent inside from the rate."""
        start = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - start

    def rate(self) -> float | None:
        """Return units per second since the last call; None if nothing was counted."""
        now = time.monotonic()
        if self._since is None or not self._count or now <= self._since:
            return None
        rate, self._count, self._since = self._count / (now - self._since), 0, now
        return rate


class Profile:
    """Writes a profiler's trace of three steps into a folder (None: no trace), after two steps of warming up."""

    def __init__(self, folder: Path | None):
        self.folder, self._taken, self._running = folder, 0, False

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End an unfinished trace."""
        self._stop()

    def advance(self) -> None:
        """Record that a step was taken."""
        self._taken += 1
        if self.folder is not None and self._taken == 2:
            jax.profiler.start_trace(self.folder)
            self._running = True
        elif self._taken == 5:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


@cache
def matrix_product_rate(dtype: Any) -> float:
    """Return the FLOP/s of a large matrix product on this device, the best of three."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    product, seconds = jax.jit(jnp.matmul), []
    matrix = jnp.ones((size, size), dtype)
    product(matrix, matrix).block_until_ready()
    for _ in range(3):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class Progress:
    """Shows the progress of a run: a bar on a terminal, or a plain line per logged step. A context manager.

    ``unit`` is what the rates of `report` count, such as "tokens".
    """

    def __init__(self, total: int, start: int = 0, *, unit: str = "examples", stream: TextIO | None = None):
        self.stream, self.unit = stream or sys.stderr, unit
        self.total, self.start = total, start
        self._first: tuple[int, float] | None = None  # step and time after the first step, which compiled
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start the bar where there is a terminal."""
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text = "loss {task.fields[loss]}  held-out {task.fields[held_out]}  {task.fields[rate]}"
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn(text), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(file=self.stream), expand=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.start, loss="-", held_out="-", rate="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._first = self._first or (step, time.monotonic())
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, loss: float, rate: float | None, held_out: float | None = None) -> None:
        """Show the numbers of a logged step; the bar keeps the ``held_out`` loss until there is another."""
        speed = "" if rate is None else f"{rate:,.0f} {self.unit}/s"
        if self._bar is not None:
            measured = {} if held_out is None else {"held_out": f"{held_out:.4f}"}
            self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=speed, **measured)
            return
        measured = "" if held_out is None else f"held-out loss {held_out:.4f}"
        parts = [f"step {step}/{self.total}", f"loss {loss:.4f}", measured, speed, self._left(step)]
        with contextlib.suppress(OSError):  # a closed output must not stop the run
            print("  ".join(part for part in parts if part), file=self.stream, flush=True)

    def _left(self, step: int) -> str:
        if self._first is None or step <= self._first[0]:
            return ""
        seconds = (time.monotonic() - self._first[1]) / (step - self._first[0]) * (self.total - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} left"
