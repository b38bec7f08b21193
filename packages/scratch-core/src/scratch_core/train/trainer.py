"""The training loop: one jitted step (step.py) over a pure state, with logging, evaluation, checkpoints and resuming.

Batches are addressed by step (``dataset[k]``), so the step is the only position in the data. A run that restores
parameters, optimizer state, RNG and step continues as if it had never stopped: bit for bit on the same machine with the
same versions and the same number of cores. With another number of cores, sums have another order and round differently.
"""

import io
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scratch_core.errors import ConfigError, TrainingError
from scratch_core.folders import FolderLock
from scratch_core.parallel import process_part, shard_model
from scratch_core.train.batches import BatchHandling
from scratch_core.train.checkpoints import Checkpoints
from scratch_core.train.distributed import any_signal, has_lost_process, is_first, lost_process
from scratch_core.train.evaluation import Best, Evaluation
from scratch_core.train.evaluator import Evaluator
from scratch_core.train.interrupt import Interrupt
from scratch_core.train.loggers import Logger
from scratch_core.train.metrics import MetricsLog, Profile, Progress, matrix_product_rate
from scratch_core.train.report import Report
from scratch_core.train.step import LossFunction, TrainingStep, model_loss


def trained_parameters(optimizer_state: Any, parameters: Any) -> Any:
    """Return the trained parameters; with most optimizers, these are evaluated."""
    return parameters


@dataclass(frozen=True)
class Outcome:
    """The result of `Trainer.fit`: the last step, its loss, and the signal that interrupted the run (None: no signal).

    ``held_out`` holds the evaluation after the last step, None if there was none. ``best`` is the lowest held-out loss
    of the run so far, with step 0 if there is none. ``hopeless`` is True if the patience ran out.
    """

    step: int
    loss: float
    interrupted: str | None
    held_out: dict[str, float] | None = None
    best: Best = field(default_factory=Best)
    hopeless: bool = False


class Trainer:
    """Trains ``model`` with an optax ``optimizer`` on ``loss_fn(model, batch) -> (sum, weight)``.

    ``loss_fn`` None is the model's own loss. ``handling`` counts, places and splits batches; a task can be one.
    ``trainable`` is the nnx filter of the parameters to learn; everything else (frozen parameters, running statistics,
    RNG) is carried along. ``accumulate`` splits each batch into this many micro-batches.

    With a ``mesh``, the model is sharded by the table in parallel.py, and batches over its data axes. With several
    processes, each provides its part of a batch (`parallel.process_part`), and only process 0 logs.

    With a ``folder``, metrics.jsonl and checkpoints/ are written there: a checkpoint every ``save_every`` steps and at
    the end, of which the newest ``keep`` are kept. ``keep_best`` also saves after every evaluation of `fit`, and keeps
    this many checkpoints with the lowest held-out loss; `load_best` reads the best. ``profile`` writes a profiler's
    trace of three steps into the folder.

    ``learning_rate`` (a schedule) is only for the log. ``norms`` logs the norms of gradients and parameters of each
    part of the model. ``loggers`` get the same records as metrics.jsonl. `fit` raises after ``max_skipped`` updates in
    a row that were not finite.

    ``evaluation_parameters(optimizer_state, parameters)`` returns the parameters that are evaluated and put into the
    model at the end, for optimizers that keep a second set. Running statistics belong to the trained parameters, so
    they are then computed again over the first batches of the training data.

    Steps donate the model's arrays. Afterwards, also after an exception, the model holds the trained arrays, in
    evaluation mode. Raises ConfigError for a number out of range.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        loss_fn: LossFunction | None = None,
        *,
        handling: BatchHandling | None = None,
        trainable: Any = nnx.Param,
        accumulate: int = 1,
        mesh: jax.sharding.Mesh | None = None,
        folder: str | Path | None = None,
        save_every: int = 500,
        keep: int = 3,
        keep_best: int = 0,
        log_every: int = 10,
        max_skipped: int = 10,
        learning_rate: Callable[[int], Any] | None = None,
        evaluation_parameters: Callable[[Any, Any], Any] = trained_parameters,
        norms: bool = False,
        profile: bool = False,
        loggers: Sequence[Logger] = (),
    ):
        numbers = {"accumulate": accumulate, "save_every": save_every, "keep": keep, "log_every": log_every}
        for name, value in (numbers | {"max_skipped": max_skipped}).items():
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if keep_best < 0:
            raise ConfigError(f"keep_best={keep_best} must be at least 0")
        self.model, self.loss_fn = model, loss_fn or model_loss
        self.handling, self.mesh, self.learning_rate = handling or BatchHandling(), mesh, learning_rate
        self.save_every, self.log_every, self.max_skipped = save_every, log_every, max_skipped
        self.profile, self.loggers, self.keep_best = profile, loggers, keep_best
        self.folder = None if folder is None else Path(folder)
        own = self.folder if jax.process_index() == 0 else None
        # Process 0 alone writes; a second run in this folder would clear what this one is saving.
        self._lock = FolderLock(own) if own is not None else None
        self.metrics = MetricsLog(None if own is None else own / "metrics.jsonl")
        self.checkpoints = None if self.folder is None else Checkpoints(self.folder / "checkpoints", keep, keep_best)

        if mesh is not None:
            shard_model(model, mesh)
        self._flops = self.handling.flops_per_unit(model)
        model.train()
        step = TrainingStep(
            nnx.graphdef(model), optimizer, self.loss_fn, self.handling, trainable, accumulate=accumulate, norms=norms
        )
        model.eval()
        self._evaluator = Evaluator(model, trainable, self.loss_fn, self.handling, evaluation_parameters, mesh)
        self.state, shardings = step.initial_state(model), None
        if mesh is not None:
            places = step.shardings(model, self.state, mesh)
            self.state, shardings = jax.device_put(self.state, places), (places, None)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=shardings)

    @property
    def step(self) -> int:
        """The number of steps taken so far."""
        return int(self.state["step"])

    def fit(
        self, dataset: Any, steps: int, interrupt: Interrupt | None = None, *, evaluation: Evaluation | None = None
    ) -> Outcome:
        """Train on ``dataset[k]`` for k from the present step up to ``steps`` (a total, not an addition).

        ``evaluation`` describes the evaluations during and after training. Their results go to metrics.jsonl and can
        end the run early. The first SIGINT, SIGTERM or SIGHUP ends the run with a checkpoint, after the current step
        and its evaluation, if one is due. Pass ``interrupt`` if you have been recording signals already. Raises
        TrainingError when the loss is not finite ``max_skipped`` times in a row; these updates were skipped, so the
        model is still sound.
        """
        first, step, loss, waiting, received, held_out = is_first(), self.step, float("nan"), None, None, None
        best = Best() if evaluation is None else Best.logged(self.metrics.read())
        hopeless = evaluation is not None and evaluation.is_hopeless(best)
        utilisation = self._utilisation()
        with (
            lost_process(),
            nullcontext(interrupt) if interrupt is not None else Interrupt() as interrupt,
            Progress(steps, step, unit=self.handling.unit, stream=None if first else io.StringIO()) as progress,
            Profile(self.folder / "profile" if self.folder and self.profile and first else None) as profile,
            closing(self.steps(dataset, step if hopeless else steps)) as taken,
        ):
            report = Report(
                (self.metrics, *self.loggers),
                progress,
                steps,
                every=self.log_every,
                unit=self.handling.unit,
                learning_rate=self.learning_rate,
                utilisation=utilisation,
            )
            for step, metrics in taken:
                profile.advance()
                if waiting is not None:  # read a step late, so that the device never waits for Python
                    loss = self._read(report, *waiting)
                waiting, held_out = (step, metrics), None
                received = any_signal(interrupt.received)
                ending = step == steps or received is not None
                evaluating = evaluation is not None and evaluation.is_due(step, steps)
                saving = step % self.save_every == 0 or (evaluating and self.keep_best > 0)
                if evaluation is not None and evaluating:
                    with report.evaluating(metrics):
                        held_out = self.evaluate(evaluation.dataset, evaluation.metrics)
                    best.add(step, held_out["loss"])
                    hopeless = evaluation.is_hopeless(best)
                if ending or evaluating or saving:
                    loss, waiting = self._read(report, *waiting, held_out), None
                if ending or saving or hopeless:
                    self.save(None if held_out is None else held_out["loss"])
                if ending or hopeless:
                    break
        with lost_process():
            self.update_model()
            if self.checkpoints is not None:
                self.checkpoints.wait()
        return Outcome(step, loss, received if step < steps else None, held_out, best, hopeless)

    def steps(self, dataset: Any, until: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Take the steps up to ``until`` one by one, and yield the number of each with its metrics.

        Use it for your own loop: ``for step, metrics in trainer.steps(dataset, 1000): ...``, with `save` and `evaluate`
        where you want them. The metrics are those of `train_step`, still on the device, and "count", the units in the
        batch. The model gets the trained arrays when the loop ends, also by break or an exception. After a break or an
        exception, its running statistics are those of training, until `update_model` is called.
        """
        step, (_, parts) = self.step, process_part(self.mesh)
        self._evaluator.use_training_data(dataset, until)
        try:
            while step < until:
                batch = dataset[step]
                metrics = self.train_step(batch)
                step += 1
                yield step, metrics | {"count": self.handling.count(batch) * parts}
        except BaseException:  # the data may have raised it, so do not read more batches for the statistics
            self._put_into_model(self.state["rest"])
            raise
        self.update_model()

    def train_step(self, batch: Any) -> dict[str, jax.Array]:
        """Take one step on ``batch`` and return "loss", "gradient_norm" and "skipped", still on the device.

        The step donates the arrays of the model, so the model is unusable until `update_model` is called. `steps` and
        `fit` call it at their end.
        """
        self._evaluator.forget()
        self.state, metrics = self._step(self.state, self._evaluator.placed(batch))
        return metrics

    def evaluate(self, dataset: Iterable[Any], metrics: Mapping[str, LossFunction] | None = None) -> dict[str, float]:
        """Return the mean loss over all of ``dataset``, and the mean of each of ``metrics``, in evaluation mode.

        A metric has the form of a loss: (model, batch) -> (sum, weight). Each mean is sum / weight over the whole
        dataset, so the sizes of the batches do not matter. With several processes, pass all of ``dataset`` to each; it
        reads its part of each batch. Raises DataError if no target was counted, and ConfigError like `update_model`.
        """
        return self._evaluator.evaluate(self.state, dataset, metrics or {})

    def update_model(self) -> None:
        """Put the evaluation parameters into the model, with running statistics that belong to them.

        `fit` and `steps` call this at their end. Raises ConfigError if the statistics must be computed again, but
        neither `fit` nor `steps` has seen the training data yet.
        """
        self._put_into_model(self._evaluator.rest(self.state))

    def save(self, score: float | None = None) -> None:
        """Start to write a checkpoint of this step; ``score`` is for ``keep_best``. Does nothing without a folder."""
        if self.checkpoints is not None:
            self.checkpoints.save(self.step, self.state, score)

    def restore(self) -> list[str]:
        """Go to the newest intact checkpoint, if there is one; return a line for each damaged one that was skipped.

        Metrics of later steps are dropped. Raises CheckpointError if no checkpoint is intact or fits the model.
        """
        damaged = self._go_to(best=False)
        self.metrics.truncate_after(self.step)
        return damaged

    def load_best(self) -> list[str]:
        """Go to the intact checkpoint of lowest score, and put it into the model. Returns and raises like `restore`.

        Call it at the end of a run. The newest checkpoint and the metrics stay, so that the run can still be resumed.
        """
        damaged = self._go_to(best=True)
        self.update_model()
        return damaged

    def close(self) -> None:
        """Wait for the current save, end Orbax's threads, and release the folder for other processes."""
        try:
            if self.checkpoints is not None and not has_lost_process():
                self.checkpoints.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _go_to(self, *, best: bool) -> list[str]:
        found = None if self.checkpoints is None else self.checkpoints.restore(self.state, best=best)
        if found is None:
            return []
        self.state = found.state
        self._evaluator.forget()
        self._put_into_model(self.state["rest"])
        return found.damaged

    def _read(self, report: Report, step: int, metrics: Any, held_out: Mapping[str, float] | None = None) -> float:
        loss, skipped = report.add(step, metrics, held_out)
        if skipped >= self.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {skipped} steps in a row, up to step {step}: "
                "lower the learning rate, or look at the data"
            )
        return loss

    def _utilisation(self) -> float | None:
        """Return the share of the devices' matrix-product rate that one unit per second takes."""
        if self._flops is None:
            return None
        dtypes = (getattr(module, "dtype", None) for _, module in nnx.iter_modules(self.model))
        devices = 1 if self.mesh is None else self.mesh.size
        return self._flops / (devices * matrix_product_rate(next(filter(None, dtypes), jnp.float32)))

    def _put_into_model(self, rest: Any) -> None:
        """Put the trained arrays into the model, in evaluation mode. (Steps have donated its earlier arrays.)"""
        nnx.update(self.model, nnx.State(self._evaluator.parameters(self.state)), nnx.State(rest))
        self.model.eval()
