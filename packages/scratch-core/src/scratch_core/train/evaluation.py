"""What a run measures on held-out data while it trains, and when that tells it to stop."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from scratch_core.errors import ConfigError
from scratch_core.train.distributed import from_first
from scratch_core.train.step import LossFunction

HELD_OUT = "held_out_"
"""What the names of held-out numbers begin with in metrics.jsonl."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What `Trainer.fit` measures as it goes: `Trainer.evaluate` with ``dataset`` and ``metrics``.

    It does so after every ``every`` steps and after the last one; 0: only after the last. ``patience`` ends the run
    after this many evaluations in a row without a lower loss; 0: never. Raises ConfigError for a number below 0.
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
    """The lowest held-out loss of a run so far, after which step it was, and how many evaluations came since."""

    loss: float = math.inf
    step: int = 0
    since: int = 0

    @classmethod
    def logged(cls, records: Iterable[Mapping[str, Any]]) -> Self:
        """Return that of the lines of a metrics.jsonl, which process 0 alone reads: the same one in all processes."""
        best = cls()
        for record in records:
            if isinstance(loss := record.get(HELD_OUT + "loss"), float):
                best.add(record["step"], loss)
        loss, step, since = from_first(np.array([best.loss, best.step, best.since]))
        return cls(float(loss), int(step), int(since))

    def add(self, step: int, loss: float) -> None:
        """Note an evaluation. A loss that is not a number is no improvement."""
        if loss < self.loss:
            self.loss, self.step, self.since = loss, step, 0
        else:
            self.since += 1
