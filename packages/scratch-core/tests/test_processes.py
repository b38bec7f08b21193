"""`scratch train --coordinator`: several real processes are one run, and end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scratch_core.train import Checkpoints

SERVER = Path(__file__).with_name("scratch_in_forks.py")
POINTS = """[scratch.models]
toy = scratch_toy:SPEC
"""
OPTIONS = "--data text.txt --steps 8 --batch-size 8 --sequence-length 12 --evaluation-tokens 90 --learning-rate 1e-2"
OPTIONS = [*OPTIONS.split(), "--schedule", "constant", "--save-every", "2", "--keep", "9", "--mesh", "fsdp=2"]
PATIENCE = 120.0  # seconds, for what takes one or two

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Server:
    """Starts `scratch` in a folder, in forks of one process, and ends them all with itself."""

    def __init__(self, folder, packages):
        self.folder, self.started, self.codes = folder, [], {}
        paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        settings |= {"TF_CPP_MIN_LOG_LEVEL": "4"}  # as the command sets it, but the server imports JAX before
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | settings,
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments, **settings):
        """Return the number of the process, which prints to the file NUMBER.txt of its start."""
        number = len(self.started)
        output = str(self.folder / f"{number}.txt")
        self.started.append(self.ask(arguments=["train", "toy", *arguments], output=output, **settings))
        return number

    def signal(self, number, name):
        os.kill(self.started[number], name)

    def is_held(self, number):
        """Return whether a process started with ``hold`` waits now."""
        return (self.folder / f"{number}.txt.held").exists()

    def ended(self, *numbers):
        """Wait for processes; return the exit code of each and what it printed."""
        wait_for(lambda: all(self.code(number) is not None for number in numbers))
        return [(self.codes[n], (self.folder / f"{n}.txt").read_text(errors="replace")) for n in numbers]

    def code(self, number):
        if self.codes.get(number) is None:
            self.codes[number] = self.ask(process=self.started[number])
        return self.codes[number]

    def until(self, happened, *numbers):
        """Wait until something has happened; none of the processes may end before."""
        wait_for(lambda: happened() or any(self.code(number) is not None for number in numbers))
        assert happened(), self.ended(*numbers)

    def close(self):
        for number, process in enumerate(self.started):
            if self.code(number) is None:
                os.kill(process, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE)


def wait_for(done):
    ends = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < ends, "too late"
        time.sleep(0.02)


def port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def two(at):
    return [("--coordinator", f"localhost:{at}", "--processes", "2", "--process-id", i) for i in ("0", "1")]


@pytest.fixture(scope="module")
def server(install, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text("one two three four five six seven eight nine ten eleven twelve " * 30)
    server = Server(folder, install("scratch_toy", POINTS))
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server):
    """The folder of an uninterrupted run of one process."""
    ((code, output),) = server.ended(server.start(*OPTIONS, "--out", "whole", devices=2))
    assert code == 0, output
    return server.folder / "whole"


def same_losses(logged, run, whole, steps):
    found, expected = logged(run), logged(whole)[:steps]
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    np.testing.assert_allclose([x["loss"] for x in found], [x["loss"] for x in expected], atol=1e-5)


def ends_clearly(result, message):
    """The process ended with code 2 and an error that begins with this message, without a traceback or JAX's stack."""
    code, output = result
    assert code == 2, output
    (error,) = [line for line in output.splitlines() if line.startswith("scratch: error: ")]
    assert error.startswith(f"scratch: error: {message}")
    assert not re.search(r"Traceback|stack trace|Terminating", output), output
    return error


def test_process_0_is_killed_and_one_alone_resumes(server, whole, logged):
    run, go, who = server.folder / "two", server.folder / "go-two", two(port())
    first, second = (server.start(*OPTIONS, "--out", "two", *each, hold=5, go=str(go)) for each in who)
    server.until((run / "checkpoints" / "4").is_dir, first, second)
    server.signal(first, signal.SIGKILL)
    go.touch()
    begin = time.monotonic()
    (code, _), left = server.ended(first, second)
    assert time.monotonic() - begin < 60  # JAX's heartbeat would take 100 s
    assert code == -signal.SIGKILL
    error = ends_clearly(left, "")
    assert error.endswith(f"this one with: uv run scratch train toy --resume two {' '.join(who[1])}")
    ((code, output),) = server.ended(server.start("--resume", "two", "--mesh", "fsdp=1"))
    assert code == 0, output
    assert "resumed at step 4 of 8" in output
    same_losses(logged, run, whole, 8)


def test_two_resume_what_one_began_and_stop_together(server, whole, logged):
    run = server.folder / "grown"
    shutil.copytree(whole, run)
    for step in ("4", "6", "8"):
        shutil.rmtree(run / "checkpoints" / step)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    arguments = ("--resume", "grown", "--coordinator", "auto", "--steps", "9")
    for step, name, receivers in ((2, "SIGINT", (0, 1)), (4, "SIGINT", (1,)), (6, "SIGTERM", (0,))):
        go, slurm["JAX_COORDINATOR_PORT"] = server.folder / f"go-grown-{step}", str(port())
        pair = [
            server.start(*arguments, environment=slurm | {"SLURM_PROCID": number}, hold=1, go=str(go))
            for number in ("0", "1")
        ]
        server.until(lambda pair=pair: all(map(server.is_held, pair)), *pair)
        for number in receivers:
            server.signal(pair[number], signal.Signals[name])
        go.touch()
        (code, output), (other, silent) = server.ended(*pair)
        assert (code, other) == (128 + signal.Signals[name],) * 2, output + silent
        assert f"resumed at step {step} of 9" in output
        assert f"stopped by {name} after step {step + 2} of 9" in output
        assert "to resume: uv run scratch train toy --resume grown --coordinator auto\n" in output
        assert "step" not in silent
        assert (run / "checkpoints" / str(step + 2)).is_dir()
    same_losses(logged, run, whole, 8)


def test_a_second_ctrl_c_to_one_ends_all_at_once(server):
    go = server.folder / "go-twice"
    first, second = (server.start(*OPTIONS, "--out", "twice", *who, hold=3, go=str(go)) for who in two(port()))
    server.until(lambda: server.is_held(first) and server.is_held(second), first, second)
    server.signal(second, signal.SIGINT)
    time.sleep(1.1)
    server.signal(second, signal.SIGINT)
    ((code, output),) = server.ended(second)
    assert code == 128 + signal.SIGINT
    assert "to resume: uv run scratch train toy --resume twice --coordinator localhost:" in output
    go.touch()
    (left,) = server.ended(first)
    ends_clearly(left, "process 0 of 2 lost another one")
    restored = Checkpoints(server.folder / "twice" / "checkpoints")
    assert restored.steps() == [2]
    restored.close()


def test_processes_that_never_meet_say_so(server):
    alone = server.start(*OPTIONS, "--out", "alone", *two(port())[0], meeting_seconds=1)
    lost = server.start(*OPTIONS, "--out", "lost", *two(port())[1], meeting_seconds=1)
    auto = server.start(*OPTIONS, "--out", "auto", "--coordinator", "auto", meeting_seconds=1)
    one, other, third = server.ended(alone, lost, auto)
    for result in (one, other):
        ends_clearly(result, "--coordinator localhost:")
        assert "the processes cannot meet (waited 1 s): give each the same --coordinator" in result[1]
    ends_clearly(third, "--coordinator auto: the processes cannot meet (")
    assert not any((server.folder / name).exists() for name in ("alone", "lost", "auto"))


def test_addresses_and_numbers_that_are_wrong(install, monkeypatch, fails):
    monkeypatch.syspath_prepend(str(install("scratch_toy", POINTS)))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")  # so that its value is restored after the test
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")

    def refused(coordinator, process_id):
        who = ("--coordinator", coordinator, "--processes", "2", "--process-id", process_id)
        return fails("train", "toy", "--out", "none", "--mesh", "fsdp=2", *who)

    assert "--process-id 2 must be in 0 .. N - 1 with --processes N, here 2" in refused("localhost:1234", "2")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "4"  # JAX's own fatal messages are hidden
    assert "--coordinator localhost must be HOST:PORT" in refused("localhost", "0")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        at = other.getsockname()[1]
        assert f"process 0 cannot listen at port {at} (Address already in use)" in refused(f"localhost:{at}", "0")
