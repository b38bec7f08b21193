"""`scratch plot RUN...`: the learning curves of runs in one picture."""

from collections.abc import Sequence

from scratch_core.train.curves import plot_runs


def plot(runs: Sequence[str], out: str) -> None:
    """Write the picture and print where it is. Raises ConfigError for a folder without metrics."""
    print(f"curves: {plot_runs(runs, out)}")
