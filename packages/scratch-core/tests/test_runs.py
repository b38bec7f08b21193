"""Runs beside other processes, on full disks, with signals and with damaged files: no run is lost or damaged."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core import weights
from scratch_core.cli import main, runs
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.folders import FolderLock, remove_abandoned, working_folder
from scratch_core.registry import find
from scratch_core.tasks.causal_lm import CausalLMTask
from scratch_core.train import Checkpoints, MetricsLog
from scratch_core.train.interrupt import Interrupt, Stopped
from scratch_core.train.memory import batch_bytes, check_memory, free_memory

ENTRY_POINTS = """
[scratch.models]
toy = scratch_toy:SPEC

[scratch.architectures]
ToyForCausalLM = scratch_toy:Toy
"""
TRAIN = ["train", "toy", "--steps", "4", "--batch-size", "4", "--sequence-length", "16", "--evaluation-tokens", "200"]


@pytest.fixture(scope="module")
def toy_path(install):
    return install("scratch_toy", ENTRY_POINTS)


@pytest.fixture(scope="module")
def trained(toy_path, tmp_path_factory):
    """A folder with ``book.txt``, ``run``, and ``tuned``, which started from ``run``."""
    place = tmp_path_factory.mktemp("trained")
    (place / "book.txt").write_text("the cat sat on the mat. " * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_path))
        patch.chdir(place)
        assert main([*TRAIN, "--data", "book.txt", "--out", "run"]) == 0
        assert main([*TRAIN, "--data", "book.txt", "--out", "tuned", "--start", "run"]) == 0
    return place


@pytest.fixture
def place(toy_path, trained, tmp_path, monkeypatch):
    """The working directory, with copies of the files of ``trained``."""
    monkeypatch.syspath_prepend(str(toy_path))
    monkeypatch.chdir(tmp_path)
    for name in ("run", "tuned"):
        shutil.copytree(trained / name, name)
    shutil.copy(trained / "book.txt", "book.txt")
    return tmp_path


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system in memory of the given number of bytes, and returns its folder."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"this process may not mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no command mount")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------------------------------------- other processes

HOLD = """
import sys
from pathlib import Path
from scratch_core.folders import FolderLock, working_folder

lock = FolderLock(sys.argv[1])
with working_folder(Path(sys.argv[1]), ".saving-") as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_the_second_run_in_a_folder_is_refused_and_a_dead_one_holds_nothing(place, fails):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        name = holder.stdout.readline().strip()
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        owner = f"is in use by process {holder.pid} on {socket.gethostname()}: wait until it ends"
        assert owner in fails("train", "toy", "--resume", "run", "--steps", "8")
        assert "run holds another run" in fails(*TRAIN, "--data", "book.txt", "--out", "run")
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
            FolderLock("run")
        remove_abandoned(Path("run"), ".saving-")  # not abandoned yet
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    finally:
        holder.kill()
        holder.communicate()
    assert Path("run", "run.lock").exists()
    assert Path("run", name).is_dir()
    with working_folder(Path("run"), ".saving-") as folder:
        assert [path.name for path in Path("run").glob(".saving-*")] == [folder.name]
    assert list(Path("run").glob(".saving-*")) == []
    Path("run", ".saving-old").mkdir()  # made by a version that stored no owner
    assert main(["train", "toy", "--resume", "run", "--steps", "5"]) == 0
    assert not Path("run", ".saving-old").exists()
    assert not Path("run", "run.lock").exists()


def test_a_killed_conversion_leaves_nothing_after_the_next(place):
    Path(".there-mine").mkdir()  # not ours: it holds no owner
    code = HOLD.replace("lock = FolderLock(sys.argv[1])\n", "").replace('".saving-"', '".there-"')
    holder = subprocess.Popen(
        [sys.executable, "-c", code, "."], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = Path(holder.stdout.readline().strip())
    holder.kill()
    holder.communicate()
    assert left.is_dir()
    assert main(["convert", "run", "there"]) == 0
    assert not left.exists()
    assert Path(".there-mine").exists()


def test_a_lock_is_of_the_process_and_a_new_run_takes_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = runs.create(None, "toy"), runs.create(None, "toy")
    assert [folder.as_posix() for folder, _ in (first, second)] == ["runs/toy", "runs/toy-2"]
    again = FolderLock("runs/toy")
    first[1].release()
    assert Path("runs/toy/run.lock").exists()
    again.release()
    second[1].release()
    assert list(Path("runs").rglob("run.lock")) == []


# ---------------------------------------------------------------------------------------------------- full disks


def last_line(capsys, *arguments):
    """Run the command, which must fail after its first steps; return the error, which is one line."""
    assert main(list(arguments)) == 2
    *steps, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("step ") for line in steps)
    return error


def test_a_full_disk_is_one_line_and_harms_no_checkpoint(place, small_disk, fails, capsys):
    disk = small_disk(6_000_000)
    state = lambda seed: {"kernel": jax.random.uniform(jax.random.key(seed), (1000, 1000))}  # noqa: E731, 4 MB
    checkpoints = Checkpoints(disk / "checkpoints")
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.close()
    assert "step 2 could not be saved: the disk is full: 4.0 MB are needed, " in str(caught.value)
    assert " are free; free some space" in str(caught.value)
    assert "\n" not in str(caught.value)
    checkpoints = Checkpoints(disk / "checkpoints")
    found = checkpoints.restore(state(0))
    checkpoints.close()
    assert (found.step, found.damaged) == (1, [])
    np.testing.assert_array_equal(found.state["kernel"], state(1)["kernel"])

    small = small_disk(48_000)
    message = last_line(capsys, *TRAIN, "--data", "book.txt", "--out", str(small / "run"))
    assert "step 4 could not be saved: the disk is full" in message
    (small / "full").write_bytes(bytes(shutil.disk_usage(small).free - 8000))
    assert f"{small}/model: the model cannot be saved: the disk is full: 34" in save_model(small / "model")
    assert "the disk is full" in fails("convert", "run", str(small / "orbax"))
    assert [path.name for path in small.glob(".*")] == []
    log = MetricsLog(small / "metrics.jsonl")
    (small / "full").write_bytes(bytes(shutil.disk_usage(small).free + (small / "full").stat().st_size - 4096))
    log.append({"step": 1, "text": "x" * 100})
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written: the disk is full"):
        log.append({"step": 2, "text": "x" * 5000})
    assert log.path.read_text().count("\n") == len(log.read()) == 1  # no half of the second line


def save_model(folder):
    model = find("toy").model().from_pretrained("run")
    with pytest.raises(CheckpointError) as caught:
        weights.save(model, folder)
    return str(caught.value)


def test_a_read_only_folder_is_one_line(place, small_disk, fails):
    disk = small_disk("16k,ro")
    message = fails(*TRAIN, "--data", "book.txt", "--out", str(disk / "run"))
    assert "run cannot be written: Read-only file system; choose another folder" in message


def test_a_folder_that_vanishes_is_one_line(place, capsys, monkeypatch):
    append = MetricsLog.append

    def vanishing(self, record):
        if record["step"] == 4:
            shutil.rmtree("gone")
        append(self, record)

    monkeypatch.setattr(MetricsLog, "append", vanishing)
    message = last_line(capsys, *TRAIN, "--data", "book.txt", "--out", "gone")
    assert "gone/metrics.jsonl cannot be written: FileNotFoundError: No such file or directory" in message


# ------------------------------------------------------------------------------------------------------- signals


def test_a_signal_before_the_first_step_leaves_no_run(place, monkeypatch, capsys):
    prepare = CausalLMTask.prepare

    def interrupted(self, spec, options):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(self, spec, options)

    monkeypatch.setattr(CausalLMTask, "prepare", interrupted)
    assert main([*TRAIN, "--data", "book.txt"]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM before the first step: there is nothing to save" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_sighup_is_noted_unless_it_is_ignored():
    before = signal.getsignal(signal.SIGHUP)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.received == "SIGHUP"
        with pytest.raises(Stopped, match="SIGHUP"):
            interrupt.check()
    assert signal.getsignal(signal.SIGHUP) is before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


SECOND = """
import hashlib
from scratch_core.train.interrupt import Interrupt

with Interrupt(exits=True) as interrupt:
    interrupt.last_words = "to resume: x"
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # stays in C for a minute, as a compilation does
"""
AT_EXIT = """
import atexit, sys, time
from scratch_core.cli import command

atexit.register(time.sleep, 60)
atexit.register(print, "ready", flush=True)
sys.argv = ["scratch", "fly"]
command()
"""


@pytest.mark.parametrize(
    ("code", "signals", "end", "words"), [(SECOND, 2, 130, "to resume: x"), (AT_EXIT, 1, -2, "fly")]
)
def test_the_last_ctrl_c_ends_the_process_without_a_trace(code, signals, end, words):
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "ready\n"
    for _ in range(signals):
        time.sleep(1.2)
        running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=20)
    assert running.returncode == end
    assert words in error
    assert "Traceback" not in error


# ------------------------------------------------------------------------------------------------ damaged files


def test_a_flipped_bit_in_the_metadata_is_damage_and_the_step_before_it_is_taken(tmp_path):
    state = lambda step: {"kernel": jnp.full((4, 4), float(step)), "bias": jnp.arange(3) * step}  # noqa: E731
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.close()
    path = tmp_path / "2" / "_CHECKPOINT_METADATA"
    whole = path.read_bytes()
    for word in (b"kernel", b'4, 4], "', b"float32", b'"sha256": "', b"digest", b"arrays", b"commit_timestamp", b"{"):
        damaged = bytearray(whole)
        damaged[whole.index(word) + (len(word) - 1 if word.startswith(b'"') else 0)] ^= 1
        path.write_bytes(damaged)
        checkpoints = Checkpoints(tmp_path)
        found = checkpoints.restore(state(0))
        checkpoints.close()
        assert found.step == 1, word
        assert len(found.damaged) == 1
        assert "step 2 is" in found.damaged[0]
        np.testing.assert_array_equal(found.state["kernel"], state(1)["kernel"])
        if (tmp_path / "damaged-2").exists():  # Orbax would have opened no step at all
            (tmp_path / "damaged-2").rename(tmp_path / "2")
        path.write_bytes(whole)
    shutil.rmtree(tmp_path / "1")
    (tmp_path / "2").rename(tmp_path / "damaged-2")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"no step is intact: .*damaged-2"):
        checkpoints.restore(state(0))
    checkpoints.close()


def test_the_best_steps_are_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    for step, score in enumerate((5.0, 2.0, 4.0, 3.0, None, float("nan")), 1):
        checkpoints.save(step, {"x": jnp.float32(step)}, score)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 6]
    assert checkpoints.restore({"x": jnp.float32(0)}, best=True).step == 2
    assert checkpoints.restore({"x": jnp.float32(0)}).step == 6
    checkpoints.close()


@pytest.mark.parametrize(
    "name", ["model", "task", "options", "horizon", "data", "fingerprint", "versions", "device", "cores", "start"]
)
def test_a_record_without_a_field_is_refused(place, fails, name):
    record = json.loads(Path("run/run.json").read_text())
    del record[name]
    Path("run/run.json").write_text(json.dumps(record))
    message = fails("train", "toy", "--resume", "run")
    assert f"run.json is damaged, or of another version: it has no {name}. Restore it, or start a new run" in message


def test_fewer_steps_than_the_run_has_made_are_refused(place, fails):
    before = Path("run/run.json").read_text()
    message = fails("train", "toy", "--resume", "run", "--steps", "3")
    assert "--steps 3 is the total number of updates, and run has already made 4: choose a larger one" in message
    assert Path("run/run.json").read_text() == before


def test_a_record_of_another_version_or_machine_gives_a_warning(place, fails, capsys):
    record = json.loads(Path("run/run.json").read_text())
    del record["options"]["save_every"]
    Path("run/run.json").write_text(json.dumps(record))
    assert "it has no save_every" in fails("train", "toy", "--resume", "run")
    record["versions"] |= {"scratch-core": "0.0.1", "jax": "0.0.2"}
    record |= {"device": "abacus", "cores": 1000}
    Path("run/run.json").write_text(json.dumps(record))
    assert main(["train", "toy", "--resume", "run"]) == 0
    out = capsys.readouterr().out
    assert "warning: the run began with scratch-core 0.0.1, this is " in out
    assert "--save-every is new and takes its default" in out
    assert f"warning: the run began with jax 0.0.2, this is {jax.__version__}: results may differ\n" in out
    assert "warning: the run began on abacus, this is cpu: sums are rounded differently" in out
    assert f"warning: the run began on 1000 cores, now there are {runs.cores()}: sums are rounded differently" in out


def test_the_copy_of_the_start_is_checked(place, fails):
    path = Path("tuned/start/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    message = fails("train", "toy", "--resume", "tuned", "--steps", "8")
    assert "tuned/start/model.safetensors is damaged: its digest differs: copy it again from " in message
    path.unlink()
    assert "tuned/start/model.safetensors is missing" in fails("train", "toy", "--resume", "tuned")


def test_checkpoints_that_are_a_file_and_metrics_that_are_odd(place, fails, capsys):
    shutil.move("run/checkpoints", "kept")
    Path("run/checkpoints").write_text("")
    Path("run/config.json").rename("config.json")
    assert "run/checkpoints is a file, but must be the folder of the checkpoints" in fails(
        "train", "toy", "--resume", "run"
    )
    Path("run/checkpoints").unlink()
    shutil.move("kept", "run/checkpoints")
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": "x"}\n{"step": null}\n[1]\n{"step": 2.5}\n' + "[" * 100_000 + "\n")
    assert main(["train", "toy", "--resume", "run", "--steps", "5"]) == 0
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 4, 5]


def test_weights_without_read_permission_are_an_error_that_says_so(trained):
    with tempfile.TemporaryDirectory() as name:  # not below pytest's folders, which only their owner may enter
        os.chmod(name, 0o755)
        path = Path(name, "model.safetensors")
        shutil.copy(trained / "run" / "model.safetensors", path)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with (
                pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: Permission denied"),
                weights.open_folder(Path(name)),
            ):
                pass
        finally:
            if root:
                os.seteuid(0)


# ------------------------------------------------------------------------------------------------------- memory


def test_what_cannot_fit_is_refused_before_it_is_taken(place, fails, monkeypatch):
    train = [*TRAIN, "--data", "book.txt"]
    message = fails(*train, "--batch-size", str(2**40))
    assert "training needs at least " in message
    assert "for a batch of 1,099,511,627,776), but " in message
    assert "are free: choose a smaller --batch-size" in message
    record = json.loads(Path("run/run.json").read_text())
    record["options"]["batch_size"] = 10**12
    Path("run/run.json").write_text(json.dumps(record))
    assert "for a batch of 1,000,000,000,000), but " in fails("train", "toy", "--resume", "run", "--steps", "8")
    monkeypatch.setitem(find("toy").presets, "tiny", 70_000_000_000)
    message = fails(*train)
    assert "training needs at least 1.1 TB (280.0 GB for parameters, 280.0 GB for gradients, " in message
    assert "choose a smaller preset than tiny" in message
    assert not Path("runs").exists()


def test_the_estimate_of_a_batch_is_below_what_the_compiler_takes_and_not_far(monkeypatch):
    layers = [nnx.Linear(256, 256, rngs=nnx.Rngs(i)) for i in range(4)]

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = nnx.List(layers)
            self.norm = nnx.BatchNorm(256, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return self.dropout(self.norm(x))

    def loss(model, batch):
        return jnp.square(model(batch["x"])).sum(), batch["x"].shape[0]

    monkeypatch.setattr("scratch_core.train.memory.free_memory", lambda: 10**8)
    model, size = Stack(), 4096
    estimate = batch_bytes(model, loss, nnx.Param, {"x": np.zeros(256, np.float32)}, size, 1)
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    step = jax.jit(jax.grad(lambda p, rest, x: loss(nnx.merge(graphdef, p, rest), {"x": x})[0]))
    analysis = step.lower(parameters, rest, jnp.zeros((size, 256))).compile().memory_analysis()
    taken = analysis.temp_size_in_bytes + size * 256 * 4
    assert 0.3 < estimate / taken < 1.1, (estimate, taken)


def test_free_memory_is_known_on_linux():
    free = free_memory()
    if free is None:
        pytest.skip("this system does not tell how much memory is free")
    assert 10**7 < free < 10**15
    check_memory({"nothing": 0}, "")


def test_a_text_too_short_to_measure_on_is_refused(place, fails):
    Path("short.txt").write_text("x" * 40)
    assert "these hold no text to measure the loss on; give more text" in fails(*TRAIN, "--data", "short.txt")
