"""Training: `Trainer` with its loop, checkpoints that are verified, metrics, optimizers, schedules.

Names are imported when first used: optax alone takes seconds.
"""

from typing import TYPE_CHECKING

from scratch_core.lazy import lazy

if TYPE_CHECKING:
    from scratch_core.train.batches import BatchHandling
    from scratch_core.train.checkpoints import Checkpoints
    from scratch_core.train.memory import keep_memory
    from scratch_core.train.metrics import MetricsLog
    from scratch_core.train.optimizers import Optimizer, adamw, find_optimizer, warmup_cosine
    from scratch_core.train.trainer import Outcome, Trainer

__all__ = [
    "BatchHandling",
    "Checkpoints",
    "MetricsLog",
    "Optimizer",
    "Outcome",
    "Trainer",
    "adamw",
    "find_optimizer",
    "keep_memory",
    "warmup_cosine",
]

__getattr__ = lazy(
    __name__,
    BatchHandling="batches",
    Checkpoints="checkpoints",
    MetricsLog="metrics",
    Optimizer="optimizers",
    Outcome="trainer",
    Trainer="trainer",
    adamw="optimizers",
    find_optimizer="optimizers",
    keep_memory="memory",
    warmup_cosine="optimizers",
)
