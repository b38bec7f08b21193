"""Training: `Trainer` with its loop, checkpoints that are verified, metrics, optimizers, schedules.

Names are imported when first used: optax alone takes seconds.
"""

from typing import TYPE_CHECKING

from scratch_core.lazy import lazy

if TYPE_CHECKING:
    from scratch_core.train.batches import BatchHandling
    from scratch_core.train.checkpoints import Checkpoints
    from scratch_core.train.evaluation import Best, Evaluation
    from scratch_core.train.lora import add_lora, merge_lora
    from scratch_core.train.lora_files import load_lora, save_lora
    from scratch_core.train.memory import keep_memory
    from scratch_core.train.metrics import MetricsLog
    from scratch_core.train.optimizers import Optimizer, adamw, find_optimizer, warmup_cosine
    from scratch_core.train.statistics import recompute_statistics
    from scratch_core.train.trainer import Outcome, Trainer

__all__ = [
    "BatchHandling",
    "Best",
    "Checkpoints",
    "Evaluation",
    "MetricsLog",
    "Optimizer",
    "Outcome",
    "Trainer",
    "adamw",
    "add_lora",
    "find_optimizer",
    "keep_memory",
    "load_lora",
    "merge_lora",
    "recompute_statistics",
    "save_lora",
    "warmup_cosine",
]

__getattr__ = lazy(
    __name__,
    BatchHandling="batches",
    Best="evaluation",
    Checkpoints="checkpoints",
    Evaluation="evaluation",
    MetricsLog="metrics",
    Optimizer="optimizers",
    Outcome="trainer",
    Trainer="trainer",
    adamw="optimizers",
    add_lora="lora",
    find_optimizer="optimizers",
    keep_memory="memory",
    load_lora="lora_files",
    merge_lora="lora",
    recompute_statistics="statistics",
    save_lora="lora_files",
    warmup_cosine="optimizers",
)
