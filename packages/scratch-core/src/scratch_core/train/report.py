"""Reports the steps of a run: to metrics.jsonl, to other loggers, and to the terminal."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from scratch_core.train.evaluation import HELD_OUT
from scratch_core.train.loggers import Logger
from scratch_core.train.metrics import Progress, Throughput


class Report:
    """Reads the metrics of each step from the device and logs some steps.

    It logs the first step, every ``every``-th, the last, and each that was skipped or evaluated. ``steps`` is the
    number of the last step. ``unit`` names what the throughput counts. ``learning_rate`` is a schedule (None: not
    logged). ``utilisation`` is the share of the device's peak rate that one unit per second takes (None: not known).
    """

    def __init__(
        self,
        logs: Sequence[Logger],
        progress: Progress,
        steps: int,
        *,
        every: int,
        unit: str,
        learning_rate: Callable[[int], Any] | None,
        utilisation: float | None,
    ):
        self.logs, self.progress, self.steps, self.every, self.unit = logs, progress, steps, every, unit
        self.learning_rate, self.utilisation = learning_rate, utilisation
        self._throughput = Throughput()

    def add(
        self, step: int, metrics: Mapping[str, Any], held_out: Mapping[str, float] | None = None
    ) -> tuple[float, int]:
        """Record that ``step`` is done; return its loss and its "skipped" count.

        ``metrics`` come from `Trainer.steps`, ``held_out`` from `Trainer.evaluate` after the step.
        """
        loss, norm, skipped = (
            x.item() for x in jax.device_get([metrics[k] for k in ("loss", "gradient_norm", "skipped")])
        )
        self._throughput.add(metrics["count"])
        self.progress.advance(step)
        if step not in (1, self.steps) and step % self.every and not skipped and held_out is None:
            return loss, skipped
        rate = self._throughput.rate()
        record = {"step": step, "loss": loss, "gradient_norm": norm, "skipped": skipped}
        if self.learning_rate is not None:
            record["learning_rate"] = float(self.learning_rate(step - 1))
        if rate is not None:
            record[f"{self.unit}_per_second"] = round(rate, 1)
            if self.utilisation is not None:
                record["model_flops_utilisation"] = float(f"{self.utilisation * rate:.3g}")
        for name in ("gradient_norms", "parameter_norms"):
            if name in metrics:
                record[name] = {group: value.item() for group, value in jax.device_get(metrics[name]).items()}
        record |= {HELD_OUT + name: value for name, value in (held_out or {}).items()}
        for log in self.logs:
            log.append(record)
        self.progress.report(step, loss, rate, None if held_out is None else held_out["loss"])
        return loss, skipped

    @contextmanager
    def evaluating(self, metrics: Mapping[str, Any]) -> Generator[None]:
        """Wait for the step of these metrics, then exclude the time spent inside from the throughput."""
        jax.block_until_ready(metrics["loss"])
        with self._throughput.paused():
            yield
