"""What the tests share: files of this folder become installed packages, and a test that hangs is ended."""

import json
import signal
from pathlib import Path

import pytest
from scratch_core.cli import main

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """A function that makes a file of this folder an installed package; it returns the folder to put on sys.path."""

    def install(module, entry_points):
        folder, name = tmp_path_factory.mktemp(module), module.replace("_", "-")
        about = folder / f"{module}-0.1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (about / "entry_points.txt").write_text(entry_points)
        (folder / f"{module}.py").write_text((HERE / f"{module}.py").read_text())
        return folder

    return install


@pytest.fixture
def fails(capsys):
    """A function that runs the command, which must fail with one line; it returns the line."""

    def fails(*arguments):
        capsys.readouterr()
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("scratch: error: ")
        return error

    return fails


@pytest.fixture(scope="session")
def logged():
    """A function that returns the lines of a run's metrics.jsonl."""
    return lambda run: [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def deadline():
    """End a test after 20 seconds, because one that waits for a FIFO would never end."""

    def late(number, frame):
        raise TimeoutError("still reading after 20 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
