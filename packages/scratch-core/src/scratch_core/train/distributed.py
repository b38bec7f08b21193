"""Several processes as one run, on JAX's own runtime: starting, printing and stopping together.

Every process runs the same program on its own devices. Only process 0 writes metrics, prints, and saves the model; all
processes write checkpoints together.

When one process ends for any reason, the others end too, with exit code 2. They end at once if the system closes its
connections, as after a kill. They end within 100 s, JAX's heartbeat timeout, if a machine or its network is gone.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scratch_core.errors import ConfigError, TrainingError

MEETING_SECONDS = 300.0
"""How long `start` waits for the other processes."""
PREPARING_SECONDS = 3600.0
"""How long `wait_for_all` waits. It is long because one process may read a large text more slowly than another."""
STATUS = re.compile(r"[A-Z_]{5,}: ")
"""Matches the start of a JAX runtime error, such as "UNAVAILABLE: "."""

_kept: list[Any] = []  # keeps the C callback for SIGABRT alive
_started = _lost = False
_remedy = "look at what the others print, and start all of them again"


def start(
    coordinator: str | None,
    processes: int | None = None,
    process_id: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Join the other processes at ``coordinator``: HOST:PORT of process 0, or "auto" under SLURM or Kubernetes.

    Does nothing if ``coordinator`` is None. Must run before JAX computes anything. Waits up to MEETING_SECONDS and
    calls ``check``, which may raise, meanwhile. Raises ConfigError if the processes cannot meet.
    """
    global _started
    if coordinator is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from Interrupt
    if coordinator != "auto":
        _check_address(coordinator, processes, process_id)
    _started = True
    _end_when_aborted()
    sys.excepthook = _then_leave(sys.excepthook)
    errors: list[Exception] = []

    def meet() -> None:
        try:  # JAX's own timeout aborts the process, so it must be longer than ours
            address = None if coordinator == "auto" else coordinator
            jax.distributed.initialize(address, processes, process_id, initialization_timeout=int(2 * MEETING_SECONDS))
        except Exception as error:
            errors.append(error)

    meeting = threading.Thread(target=meet, daemon=True)
    meeting.start()
    ends = time.monotonic() + MEETING_SECONDS
    while meeting.is_alive() and time.monotonic() < ends:
        meeting.join(0.1)
        check()
    if meeting.is_alive() or errors:
        reason = (str(errors[0]).splitlines() or [""])[0][:200] if errors else f"waited {MEETING_SECONDS:.0f} s"
        remedy = (
            "start them with srun, or in a Kubernetes job with jax[k8s] installed, or give --coordinator HOST:PORT"
            if coordinator == "auto"
            else "give each the same --coordinator HOST:PORT, where process 0 runs, the same --processes N, and every "
            "--process-id from 0 to N - 1 once"
        )
        raise ConfigError(f"--coordinator {coordinator}: the processes cannot meet ({reason}): {remedy}") from (
            errors[0] if errors else None
        )


def _check_address(coordinator: str, processes: int | None, process_id: int | None) -> None:
    """Raise ConfigError for arguments on which JAX would abort, or raise an error that does not name the cause."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator {coordinator} must be HOST:PORT with a port in 1 .. 65535")
    if processes is None or process_id is None or not 0 <= process_id < processes:
        raise ConfigError(f"--process-id {process_id} must be in 0 .. N - 1 with --processes N, here {processes}")
    if process_id == 0:
        with socket.socket() as probe:  # JAX would share the port with another run that listens there
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise ConfigError(
                    f"--coordinator {coordinator}: process 0 cannot listen at port {port} ({error.strerror}): give "
                    "another port to all processes"
                ) from error


def _end_when_aborted() -> None:
    """When JAX aborts, print what to do and exit with code 2.

    JAX aborts when process 0 has gone, or when two processes have the same id. It prints its own stack before, unless
    TF_CPP_MIN_LOG_LEVEL is 4, and offers no other way to handle this. Python's own signal handlers do not run then, so
    this handler is called from C.
    """
    if os.name != "posix":
        return

    def end(number: int) -> None:
        if _lost:  # the main thread has noticed too: let it print its more exact error, and exit
            time.sleep(10)
        reason = "another process has gone, or two have the same --process-id"
        os.write(2, f"\nscratch: error: {reason}: {_remedy}\n".encode())
        os._exit(2)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _kept[-1])


def _then_leave(hook: Any) -> Any:
    def leaving_hook(*error: Any) -> None:
        hook(*error)
        leave(1)

    return leaving_hook


def leave(code: int) -> None:
    """End this process at once if it is one of several, so that the others notice that it has failed.

    At a normal exit, it would wait for the others, while they wait for it in their next step.
    """
    if _started:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def set_resume_command(command: str) -> None:
    """Set the command that the error about a lost process names, once there is a run to resume."""
    global _remedy
    _remedy = f"look at what the others print, and start all of them again, this one with: {command}"


def has_lost_process() -> bool:
    """Return whether another process has gone. Then no collective operation can finish, so do not wait for one."""
    return _lost


def is_first() -> bool:
    """Return whether this is process 0, which writes the files that only one process may write."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait up to PREPARING_SECONDS until every process has reached this point. Each ``what`` may be used only once.

    The first collective operation must follow at once, because Gloo (the CPU backend) waits only 30 s for the others.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=what, timeout_ms=int(1000 * PREPARING_SECONDS))


def from_first(numbers: np.ndarray) -> np.ndarray:
    """Return the ``numbers`` (float64) of process 0, bit for bit, in every process."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(numbers.view(np.uint8))).view(np.float64)


def any_signal(received: str | None) -> str | None:
    """Return the name of a signal that any process has ``received``, None if none has. All processes get the same."""
    if jax.process_count() == 1:
        return received
    from jax.experimental import multihost_utils

    number = np.int32(0 if received is None else signal.Signals[received].value)
    largest = int(np.max(multihost_utils.process_allgather(number)))
    return signal.Signals(largest).name if largest else None


@contextlib.contextmanager
def only_first_prints() -> Generator[None]:
    """Silence the stdout of all processes except process 0."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def written_by_first(folder: Path) -> Generator[Path]:
    """Yield ``folder`` in process 0, and a temporary folder in the others, whose files are deleted afterwards.

    All processes must save a sharded model together, but only one may keep the files.
    """
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory() as unused:
            yield Path(unused)


@contextlib.contextmanager
def lost_process() -> Generator[None]:
    """Turn the error that JAX raises when another process has gone into a TrainingError that says what to do."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the type depends on where JAX notices
        if jax.process_count() == 1 or not STATUS.match(str(error)):
            raise
        global _lost
        _lost = True
        reason = (str(error).splitlines() or [""])[0][:200]
        raise TrainingError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}): {_remedy}"
        ) from error
