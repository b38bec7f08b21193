"""Evaluation on held-out data during training, and early stopping."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from scratch_core.errors import ConfigError
from scratch_core.train.distributed import from_first
from scratch_core.train.step import LossFunction

HELD_OUT = "held_out_"
"""The prefix of held-out metrics in metrics.jsonl."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The held-out evaluation during `Trainer.fit`: `Trainer.evaluate` with ``dataset`` and ``metrics``.

    It runs after every ``every`` steps and after the last one (0: only after the last). The run stops early after
    ``patience`` evaluations in a row without a lower loss (0: never). Raises ConfigError for a number below 0.
    """

    dataset: Iterable[Any]
    metrics: Mapping[str, LossFunction] = dataclasses.field(default_factory=dict)
    every: int = 0
    patience: int = 0

    def __post_init__(self):
        for name in ("every", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to evaluate after ``step`` of ``steps``."""
        return step == steps or (self.every > 0 and step % self.every == 0)

    def is_hopeless(self, best: "Best") -> bool:
        """Return whether the patience has run out."""
        return 0 < self.patience <= best.since


@dataclasses.dataclass
class Best:
    """The lowest held-out loss of a run so far, its step, and the number of evaluations since then."""

    loss: float = math.inf
    step: int = 0
    since: int = 0

    @classmethod
    def logged(cls, records: Iterable[Mapping[str, Any]]) -> Self:
        """Return the best of the lines of a metrics.jsonl. Only process 0 reads them; all processes get its result."""
        best = cls()
        for record in records:
            if isinstance(loss := record.get(HELD_OUT + "loss"), float):
                best.add(record["step"], loss)
        loss, step, since = from_first(np.array([best.loss, best.step, best.since]))
        return cls(float(loss), int(step), int(since))

    def add(self, step: int, loss: float) -> None:
        """Record an evaluation. A NaN loss is not an improvement."""
        if loss < self.loss:
            self.loss, self.step, self.since = loss, step, 0
        else:
            self.since += 1
