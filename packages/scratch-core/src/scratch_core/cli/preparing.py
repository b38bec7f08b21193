"""What `scratch train` prepares before its run starts: optimizer, job of the task, evaluation, trainer."""

import dataclasses
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from scratch_core.errors import ConfigError
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Job, RunOptions, Task
from scratch_core.tasks.options import flag
from scratch_core.train import distributed

if TYPE_CHECKING:
    from scratch_core.train import Evaluation, Optimizer, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that a run needs except its folder. ``horizon`` is the length of its schedule in steps."""

    spec: ModelSpec
    task: Task
    options: RunOptions
    horizon: int
    optimizer: "Optimizer"
    job: Job
    evaluation: "Evaluation"


def prepare(spec: ModelSpec, task: Task, options: RunOptions, horizon: int) -> Prepared:
    """Return what a run needs. Raises ConfigError or DataError if its parts do not fit each other or the memory."""
    optimizer = _optimizer_that_fits(spec, options)
    job = task.prepare(spec, options)
    _check_batch(job, options)
    evaluation = _evaluation(job, options, horizon)
    return Prepared(
        spec=spec, task=task, options=options, horizon=horizon, optimizer=optimizer, job=job, evaluation=evaluation
    )


def make_trainer(run: Prepared, folder: Path) -> "Trainer":
    """Return the trainer of a run, which writes into ``folder``."""
    from scratch_core.train import Trainer
    from scratch_core.train.loggers import open_loggers
    from scratch_core.train.optimizers import SCHEDULES
    from scratch_core.train.precision import compute_in

    options, job, optimizer = run.options, run.job, run.optimizer
    schedule = SCHEDULES[options.schedule or optimizer.schedule](options.learning_rate, run.horizon)
    if options.dtype != "float32":
        compute_in(job.model, getattr(jnp, options.dtype))
    return Trainer(
        job.model,
        optimizer.build(schedule, weight_decay=options.weight_decay, decayed=job.model.decayed),
        job.loss,
        handling=run.task,
        trainable=job.trainable,
        accumulate=options.accumulate,
        mesh=options.device_mesh(),
        folder=folder,
        save_every=options.save_every,
        keep=options.keep,
        keep_best=options.keep_best,
        learning_rate=schedule,
        evaluation_parameters=optimizer.evaluation_parameters,
        norms=options.norms,
        profile=options.profile,
        loggers=open_loggers(options.log, folder) if distributed.is_first() else (),
    )


def _evaluation(job: Job, options: RunOptions, horizon: int) -> "Evaluation":
    """Return the evaluation during the run. Raises ConfigError if there is none, but the options need one.

    By default, evaluations take at most about a twentieth of the time: a forward pass takes a third of a step, and
    there are at least 7 steps for each batch of held-out data.
    """
    from scratch_core.train import Evaluation

    every = options.evaluate_every
    if every is None:
        size = len(job.held_out) if isinstance(job.held_out, Sized) else horizon
        every = max(horizon // 10, 7 * size)
        every = every if every < horizon else 0
    for name in ("patience", "keep_best"):
        if getattr(options, name) and not every:
            raise ConfigError(
                f"{flag(name)} {getattr(options, name)} needs evaluations before the last of {horizon} steps, and the "
                "held-out data is too large for one by default: give --evaluate-every N"
            )
    return Evaluation(job.held_out, job.metrics, every, options.patience)


def _optimizer_that_fits(spec: ModelSpec, options: RunOptions) -> "Optimizer":
    """Return the optimizer. Raises ConfigError if it does not exist, or if the model does not fit in memory."""
    from scratch_core.train import find_optimizer, keep_memory  # slow to import; report wrong arguments first
    from scratch_core.train.memory import check_memory, state_bytes

    optimizer = find_optimizer(options.optimizer, options.average)
    keep_memory()
    if options.checkpoint is None:
        built = optimizer.build(options.learning_rate, weight_decay=options.weight_decay, decayed=())
        needed = state_bytes(built, spec.presets.get(options.preset, 0) // jax.process_count())
        check_memory(needed, f"choose a smaller preset than {options.preset}, or a machine with more memory")
    return optimizer


def _check_batch(job: Job, options: RunOptions) -> None:
    """Raise ConfigError if a step does not fit in memory beside the model."""
    from scratch_core.train.memory import batch_bytes, check_memory

    if job.example is not None:
        size, parts = options.batch_size, options.accumulate
        share = max(parts, size // jax.process_count())
        needed = batch_bytes(job.model, job.loss, job.trainable, job.example, share, parts)
        remedy = f"choose a smaller --batch-size than {size}, or split it with --accumulate"
        check_memory({f"a batch of {size:,}": needed}, remedy)
