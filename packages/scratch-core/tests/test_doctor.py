"""`scratch doctor`: each judgement on the figures of other machines, and one run on this machine."""

import os
import re
import subprocess
import sys

import pytest
from scratch_core import compiler
from scratch_core.cli import doctor, main, probes


def put(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_quota_of_version_two(tmp_path):
    """The smallest limit of the group and of the groups above it counts; "max" is no limit."""
    put(tmp_path, "proc/self/cgroup", "0::/user/job\n")
    assert probes.cpu_quota(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
    assert probes.cpu_quota(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/user/cpu.max", "150000 100000\n")
    assert probes.cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_version_one(tmp_path, mount):
    """In a container, the group's path is that on the host, but the group itself is mounted at the root."""
    put(tmp_path, "proc/self/cgroup", f"3:memory:/host/path\n2:{mount}:/host/path\n0::/\n")
    put(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", "-1\n")
    put(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_period_us", "100000\n")
    assert probes.cpu_quota(tmp_path) is None
    put(tmp_path, f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", "200000\n")
    assert probes.cpu_quota(tmp_path) == 2


def test_no_control_groups_are_no_quota(tmp_path):
    assert probes.cpu_quota(tmp_path) is None
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    put(tmp_path, "sys/fs/cgroup/cpu.max", "nonsense\n")
    assert probes.cpu_quota(tmp_path) is None


def test_more_cores_than_the_quota_are_wrong():
    assert doctor.judge_cores(64, None).state == "ok"
    assert doctor.judge_cores(2, 1.5).state == "ok"
    found = doctor.judge_cores(64, 2.0)
    assert found.state == "wrong"
    assert "taskset -c 0-1 COMMAND" in found.advice


HIT = {"hits": 1, "seconds": 0.1}
MISS = {"hits": 0, "seconds": 2.0}


@pytest.mark.parametrize(
    ("first", "second", "files", "reason"),
    [
        (MISS, HIT, (1, 1), None),
        (MISS, MISS, (1, 2), "did not find"),
        (MISS, MISS, (1, 1), "did not find"),
        (MISS, MISS, (0, 0), "wrote nothing"),
        (MISS, {"failed": "it ended with -6 and printed: no"}, (1, 1), "a filled cache fails: it ended with -6"),
        (
            {"failed": "it ended with -6 and printed: no"},
            {"failed": "same"},
            (0, 0),
            "cannot compute with JAX: it ended",
        ),
    ],
)
def test_a_cache_that_is_not_hit_is_wrong(first, second, files, reason):
    found = doctor.judge_cache(first, second, files)
    assert found.state == ("wrong" if reason else "ok")
    assert (reason or "") in found.advice


def test_processes_without_a_cache_or_without_jax_are_noticed(monkeypatch):
    """Real processes: two with the cache switched off, and one in which JAX does not start."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    found = doctor.judge_cache(*probes.two_processes())
    assert (found.state, found.advice) == ("skipped", "JAX_ENABLE_COMPILATION_CACHE=false switches the cache off")
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    found = list(doctor.findings())
    assert [finding.state for finding in found[1:]] == ["wrong", "skipped", "skipped", "skipped", "skipped"]
    assert "nonsense" in found[1].advice


def test_wrong_products_are_wrong(monkeypatch):
    assert doctor.judge_products(1e-7).state == "ok"
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.10.2")
    found = doctor.judge_products(0.9)
    assert found.state == "wrong"
    assert compiler.SETTING in found.advice
    assert "This jaxlib has a known fault" in found.advice


def test_a_loop_that_rewrites_its_array_is_wrong():
    """The figures of jaxlib 0.12.0.1, of a GPU, where starting a step takes most of its time, and of jaxlib 0.11.1."""
    assert doctor.judge_loop(9e-9, 9e-9).state == "ok"
    assert doctor.judge_loop(15e-6, 20e-6).state == "ok"
    found = doctor.judge_loop(0.47e-6, 238e-6)
    assert found.state == "wrong"
    assert "0.11.1" in found.advice


def test_slow_bfloat16_is_reported_but_not_wrong():
    assert doctor.judge_rates(200e9, 900e9, 900e9, "cpu").state == "ok"
    assert "preferred_element_type" in doctor.judge_rates(200e9, 900e9, 150e9, "cpu").figure
    assert doctor.judge_rates(200e9, 160e9, 180e9, "cpu").state == "slow"


def test_a_probe_that_ends_in_an_error_is_a_finding():
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    found = doctor._guarded("memory", fails)
    assert (found.state, found.advice) == ("wrong", "RESOURCE_EXHAUSTED: out of memory")


def test_something_wrong_exits_with_one(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "findings", lambda: iter([doctor.judge_cores(8, 1.0), doctor.Finding("loop", "fine")]))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^cores +wrong +.*quota of 1: .*in containers.*export NPROC=1$", out, re.MULTILINE)
    assert out.endswith("wrong: 1; each such line says what to do\n")


def test_the_command():
    """On this machine: one line for each probe, no traceback, and the exit code that follows from the lines."""
    command = [sys.executable, "-m", "scratch_core.cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert re.match(r"Python 3\.\d+\.\d+, jax \S+, jaxlib \S+, flax \S+, scratch-core \S+$", lines[0])
    states = {name: state for name, state, *_ in (line.split() for line in lines[1:-1])}
    assert list(states) == ["cores", "cache", "products", "loop", "rates", "memory"]
    assert states["cache"] == states["products"] == states["loop"] == "ok"
    assert done.returncode == ("wrong" in states.values())
