"""Several processes as one run, on JAX's own runtime: who starts, who speaks, who stops when.

Every process runs the same program on its own devices. Process 0 alone writes metrics, prints, and saves the model; all
of them write checkpoints together.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import jax
import numpy as np

from scratch_core.errors import ConfigError, TrainingError


def start(coordinator: str | None, processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes: ``coordinator`` is HOST:PORT of process 0, "auto" what SLURM or Kubernetes set.

    Does nothing if it is None. Must run before JAX computes anything. Raises ConfigError if the processes cannot meet.
    """
    if coordinator is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from Interrupt
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(address, processes, process_id)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ConfigError(
            f"--coordinator {coordinator}: the processes cannot meet ({reason}): give --coordinator HOST:PORT, "
            "--processes N and --process-id I, the same address to each and every id from 0 to N - 1 once"
        ) from error


def is_first() -> bool:
    """Return whether this is process 0, which writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has come to this point; ``what`` names it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def from_first(numbers: np.ndarray) -> np.ndarray:
    """Return the ``numbers`` (float64) of process 0, bit for bit, in every process."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(numbers.view(np.uint8))).view(np.float64)


def any_signal(received: str | None) -> str | None:
    """Return the name of a signal that any process has ``received``, the same one in all; None if none has."""
    if jax.process_count() == 1:
        return received
    from jax.experimental import multihost_utils

    number = np.int32(0 if received is None else signal.Signals[received].value)
    largest = int(np.max(multihost_utils.process_allgather(number)))
    return signal.Signals(largest).name if largest else None


@contextlib.contextmanager
def one_voice() -> Generator[None]:
    """Within it, the processes other than 0 print nothing to stdout."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def written_by_first(folder: Path) -> Generator[Path]:
    """Yield ``folder`` in process 0, and in the others a folder that is removed: all take part, one keeps the files."""
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory() as unused:
            yield Path(unused)


@contextlib.contextmanager
def lost_process() -> Generator[None]:
    """Within it, what JAX raises when another process has gone becomes a TrainingError that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise TrainingError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}): look at what the "
            "others print, and start all of them again with --resume"
        ) from error
