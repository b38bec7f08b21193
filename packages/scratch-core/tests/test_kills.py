"""A run that is killed at random moments, and resumed each time, equals an uninterrupted run bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

SERVER = Path(__file__).with_name("train_in_forks.py")
STEPS, KILLS = 24, 3


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts or resumes the run of a model in a folder, and returns the number of its process."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache"))),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )

    def start(model, folder):
        server.stdin.write(f"{model} {folder}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    yield start
    server.stdin.close()
    server.wait(timeout=20)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def final(folder):
    """The state in the last checkpoint, and the logged lines."""
    from orbax.checkpoint import v1 as ocp

    errors = folder.with_suffix(".err").read_text()
    assert (folder / "checkpoints" / str(STEPS)).is_dir(), errors
    state = ocp.load_checkpointables(folder / "checkpoints" / str(STEPS))["state"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return state, [(line["step"], line["loss"], line["gradient_norm"], line["skipped"]) for line in lines]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("model", ["language", "images"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(start, tmp_path, model):
    moments = random.Random(time.time_ns())
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(model, whole)
    while alive(process):
        time.sleep(0.02)
    kills = []
    while len(kills) < KILLS:
        before = steps_logged(killed)
        process = start(model, killed)
        if moments.random() < 0.8:  # otherwise it is killed at its start, while it imports, restores or compiles
            while alive(process) and steps_logged(killed) in (0, before):
                time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        if not alive(process):
            break
        os.kill(process, signal.SIGKILL)
        kills.append(steps_logged(killed))
        while alive(process):
            time.sleep(0.005)
    process = start(model, killed)
    while alive(process):
        time.sleep(0.02)
    (state, log), (expected, expected_log) = final(killed), final(whole)
    assert len(kills) >= 2, kills
    assert [line[0] for line in log] == list(range(1, STEPS + 1))
    assert log == expected_log, kills
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert {"parameters", "optimizer", "rest"} <= state.keys()
    jax.tree.map(np.testing.assert_array_equal, state, expected)
