"""The training loop: one jitted step (step.py) over a pure state, and around it what a run of hours needs.

Batches are addressed by step (``dataset[k]``), so the step is the whole position in the data: a run that restores
parameters, optimizer state, RNG and step continues exactly as if it had never stopped: bit for bit on the same machine
with the same versions and the same number of cores. Another number of cores sums in another order and rounds otherwise.
"""

import io
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scratch_core.errors import ConfigError, DataError, TrainingError
from scratch_core.folders import FolderLock
from scratch_core.parallel import process_part, shard_model
from scratch_core.train.batches import BatchHandling
from scratch_core.train.checkpoints import Checkpoints
from scratch_core.train.distributed import any_signal, is_first, lost_process
from scratch_core.train.interrupt import Interrupt
from scratch_core.train.loggers import Logger
from scratch_core.train.metrics import MetricsLog, Profile, Progress, Throughput, matrix_product_rate
from scratch_core.train.step import LossFunction, TrainingStep, model_loss


def trained_parameters(optimizer_state: Any, parameters: Any) -> Any:
    """Return the parameters as they are trained: what is evaluated with most optimizers."""
    return parameters


@dataclass(frozen=True)
class Outcome:
    """How `Trainer.fit` ended: at which step, with which last loss, and by which signal (None: all steps are done)."""

    step: int
    loss: float
    interrupted: str | None


class Trainer:
    """Trains ``model`` with an optax ``optimizer`` on ``loss_fn(model, batch) -> (sum, weight)``.

    ``loss_fn`` None is the model's own loss. ``handling`` counts, places and splits batches; a task is one.
    ``trainable`` is the nnx filter of what is learned; everything else (frozen parameters, running statistics, RNG) is
    carried along. ``accumulate`` splits each batch into this many micro-batches. With a ``mesh`` the model is sharded
    by the table in parallel.py and batches over its data axes; with several processes each gives its part of a batch
    (`parallel.process_part`), and process 0 alone logs. With a ``folder``, metrics.jsonl and checkpoints/ are
    written there, a checkpoint every ``save_every`` steps and at the end; the newest ``keep`` are kept, and the
    ``keep_best`` of lowest score among those that `save` gave a score. ``learning_rate``
    (a schedule) is only for the log. After ``max_skipped`` updates in a row that were not finite, fit raises.
    ``evaluation_parameters(optimizer_state, parameters)`` gives the parameters that are evaluated and that the model
    gets at the end, for optimizers that keep a second set. ``norms`` logs the norms of gradients and parameters of each
    part of the model, ``profile`` writes a profiler's trace of three steps into the folder, ``loggers`` get what
    metrics.jsonl gets.

    While steps are taken, the model's arrays are donated to them. Afterwards, also after an exception, the model holds
    the trained ones, in evaluation mode. Raises ConfigError for a number that makes no sense.
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
        self.model, self.loss_fn = model, loss_fn or model_loss
        self.handling, self.evaluation_parameters = handling or BatchHandling(), evaluation_parameters
        self.mesh, self.learning_rate = mesh, learning_rate
        self.save_every, self.log_every, self.max_skipped = save_every, log_every, max_skipped
        self.profile, self.loggers = profile, loggers
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
        self._evaluating = nnx.graphdef(model)
        self.state, shardings = step.initial_state(model), None
        if mesh is not None:
            places = step.shardings(model, self.state, mesh)
            self.state, shardings = jax.device_put(self.state, places), (places, None)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        self._evaluate = jax.jit(self._evaluation_step, static_argnums=0)

    @property
    def step(self) -> int:
        """The number of steps taken so far."""
        return int(self.state["step"])

    def fit(self, dataset: Any, steps: int, interrupt: Interrupt | None = None) -> Outcome:
        """Train on ``dataset[k]`` for k from the present step up to ``steps`` (a total, not an addition).

        The first SIGINT, SIGTERM or SIGHUP ends it after the step under way, with a checkpoint; ``interrupt`` is for a
        caller that has noted signals since before. Raises TrainingError when the loss is not finite ``max_skipped``
        times in a row; these updates were skipped, so the model is still sound.
        """
        step, loss, waiting, throughput = self.step, float("nan"), None, Throughput()
        if self._flops is not None:
            dtypes = (getattr(module, "dtype", None) for _, module in nnx.iter_modules(self.model))
            devices = 1 if self.mesh is None else self.mesh.size
            self._peak = devices * matrix_product_rate(next(filter(None, dtypes), jnp.float32))
        first, received = is_first(), None
        with (
            lost_process(),
            nullcontext(interrupt) if interrupt is not None else Interrupt() as interrupt,
            Progress(steps, step, unit=self.handling.unit, stream=None if first else io.StringIO()) as progress,
            Profile(self.folder / "profile" if self.folder and self.profile and first else None) as profile,
            closing(self.steps(dataset, steps)) as taken,
        ):
            for step, metrics in taken:
                profile.advance()
                if waiting is not None:  # read a step late, so that the device never waits for Python
                    loss = self._report(*waiting, steps, throughput, progress)
                waiting = (step, metrics)
                received = any_signal(interrupt.received)
                ending = step == steps or received is not None
                if ending or step % self.save_every == 0:
                    loss, waiting = self._report(*waiting, steps, throughput, progress), None
                    self.save()
                if ending:
                    break
        if self.checkpoints is not None:
            self.checkpoints.wait()
        return Outcome(step, loss, received if step < steps else None)

    def steps(self, dataset: Any, until: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Take the steps up to ``until`` one by one, and yield the number of each with its metrics.

        For a loop of your own: ``for step, metrics in trainer.steps(dataset, 1000): ...``, with `save` and `evaluate`
        where you want them. The metrics are those of `train_step`, still on the device, and "count", the units in the
        batch. The model gets the trained arrays when the loop ends, also by break or by an exception.
        """
        step, (_, parts) = self.step, process_part(self.mesh)
        try:
            while step < until:
                batch = dataset[step]
                metrics = self.train_step(batch)
                step += 1
                yield step, metrics | {"count": self.handling.count(batch) * parts}
        finally:
            self._update_model()

    def train_step(self, batch: Any) -> dict[str, jax.Array]:
        """Take one step on ``batch`` and return "loss", "gradient_norm" and "skipped", still on the device.

        The step donates the arrays of the model, which stays unusable: `steps` and `fit` update it at their end.
        """
        self.state, metrics = self._step(self.state, self._placed(batch))
        return metrics

    def evaluate(self, dataset: Iterable[Any], metrics: Mapping[str, LossFunction] | None = None) -> dict[str, float]:
        """Return the mean loss over all of ``dataset``, and the mean of each of ``metrics``, in evaluation mode.

        A metric has the form of a loss: (model, batch) -> (sum, weight). Each mean is sum / weight over the whole
        dataset, so the sizes of the batches do not matter. With several processes each is given all of ``dataset``, and
        reads its part of each batch. Raises DataError if nothing was counted.
        """
        functions = {"loss": self.loss_fn, **(metrics or {})}
        totals = {name: [0.0, 0.0] for name in functions}
        parameters = self._parameters_to_evaluate()
        part = process_part(self.mesh)
        for batch in dataset:
            placed = self._placed(self.handling.part(batch, *part))
            result = self._evaluate(tuple(functions.items()), parameters, self.state["rest"], placed)
            for name, (total, weight) in jax.device_get(result).items():
                totals[name][0] += float(total)
                totals[name][1] += float(weight)
        if empty := [name for name, (_, weight) in totals.items() if weight == 0]:
            raise DataError(f"nothing to evaluate: the dataset holds no target for {', '.join(empty)}")
        return {name: total / weight for name, (total, weight) in totals.items()}

    def save(self, score: float | None = None) -> None:
        """Start to write a checkpoint of the present step; ``score`` is for ``keep_best``. Nothing without a folder."""
        if self.checkpoints is not None:
            self.checkpoints.save(self.step, self.state, score)

    def restore(self, *, best: bool = False) -> list[str]:
        """Go to the newest intact checkpoint, if there is one; return a line for each damaged one that was skipped.

        With ``best`` it is that of lowest score. Metrics of later steps are dropped. Raises CheckpointError if none is
        intact, or if it is of another model.
        """
        found = None if self.checkpoints is None else self.checkpoints.restore(self.state, best=best)
        if found is not None:
            self.state = found.state
            self._update_model()
        self.metrics.truncate_after(self.step)
        return [] if found is None else found.damaged

    def close(self) -> None:
        """Wait for the save under way, end Orbax's threads, and let other processes use the folder."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _evaluation_step(self, functions: Any, parameters: Any, rest: Any, batch: Any) -> dict[str, Any]:
        model = nnx.merge(self._evaluating, nnx.State(parameters), nnx.State(rest))
        return {name: function(model, batch) for name, function in functions}

    def _report(self, step: int, metrics: Any, steps: int, throughput: Throughput, progress: Progress) -> float:
        loss, norm, skipped = (
            x.item() for x in jax.device_get([metrics[k] for k in ("loss", "gradient_norm", "skipped")])
        )
        throughput.add(metrics["count"])
        progress.advance(step)
        if step == 1 or step == steps or step % self.log_every == 0 or skipped:
            rate = throughput.rate()
            record = {"step": step, "loss": loss, "gradient_norm": norm, "skipped": skipped}
            if self.learning_rate is not None:
                record["learning_rate"] = float(self.learning_rate(step - 1))
            if rate is not None:
                record[f"{self.handling.unit}_per_second"] = round(rate, 1)
                if self._flops is not None:
                    record["model_flops_utilisation"] = float(f"{self._flops * rate / self._peak:.3g}")
            for name in ("gradient_norms", "parameter_norms"):
                if name in metrics:
                    record[name] = {group: value.item() for group, value in jax.device_get(metrics[name]).items()}
            for log in (self.metrics, *self.loggers):
                log.append(record)
            progress.report(step, loss, rate)
        if skipped >= self.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {skipped} steps in a row, up to step {step}: "
                "lower the learning rate, or look at the data"
            )
        return loss

    def _parameters_to_evaluate(self) -> Any:
        return self.evaluation_parameters(self.state["optimizer"], self.state["parameters"])

    def _update_model(self) -> None:
        """Put the trained arrays into the model, in evaluation mode: steps donate the ones it had."""
        nnx.update(self.model, nnx.State(self._parameters_to_evaluate()), nnx.State(self.state["rest"]))
        self.model.eval()

    def _placed(self, batch: Any) -> Any:
        return batch if self.mesh is None else self.handling.place(batch, self.mesh)
