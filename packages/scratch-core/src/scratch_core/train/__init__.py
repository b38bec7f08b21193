"""Training: `Trainer` with its loop, checkpoints that are verified, metrics, and the usual optimizer."""

from scratch_core.train.checkpoints import Checkpoints
from scratch_core.train.memory import keep_memory
from scratch_core.train.metrics import MetricsLog
from scratch_core.train.optimizers import adamw, warmup_cosine
from scratch_core.train.trainer import Outcome, Trainer

__all__ = ["Checkpoints", "MetricsLog", "Outcome", "Trainer", "adamw", "keep_memory", "warmup_cosine"]
