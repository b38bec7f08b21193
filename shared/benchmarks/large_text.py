"""Memory and time of training on a text that need not fit in memory.

    uv run --all-packages python shared/benchmarks/large_text.py [--gigabytes 1]

A text of random words is written into a temporary folder. `scratch train llama` runs a few steps on it twice, each time
in a process of its own, whose largest resident memory the system reports. The first run tokenises the text into files;
the second finds these files. The same run on a text of a megabyte shows what the program needs by itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS = 3


def write_text(path: Path, size: int) -> None:
    """Write about ``size`` bytes of random words, in lines."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(5000)])
    block = "\n".join(" ".join(rng.choice(words, 12)) for _ in range(14_000)) + "\n"
    with path.open("w") as file:
        for number in range(max(1, size // len(block))):
            file.write(f"part {number}\n{block}")


def measure(folder: Path, text: Path, name: str) -> None:
    """Train on ``text`` and print seconds and largest resident memory."""
    command = [sys.executable, "-m", "scratch_core.cli", "train", "llama", "--data", str(text), "--steps", str(STEPS)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(folder / name)],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"the run ended with status {status}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"{name:12} {text.stat().st_size / 1e9:6.3f} GB of text {peak / 1e9:6.2f} GB resident {seconds:6.1f} s",
        flush=True,
    )


def main() -> None:
    """Measure a small text, a large one, and the large one again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    size = int(parser.parse_args().gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "small.txt", 10**6)
        write_text(folder / "large.txt", size)
        measure(folder, folder / "small.txt", "small")
        measure(folder, folder / "large.txt", "first")
        measure(folder, folder / "large.txt", "again")


if __name__ == "__main__":
    main()
