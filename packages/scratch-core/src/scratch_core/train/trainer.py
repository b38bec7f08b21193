"""The training loop: one jitted step over a pure state, and around it what a run of hours needs.

The model is split once into a static definition and a state of plain arrays; a step merges it inside `jax.jit`, so
that no module is walked in Python while training runs. With micro-batches $i = 1 \\dots A$ of summed loss $S_i$ and
weight $W_i$ (the number of targets), the gradient is that of the one large batch, whatever the padding:

$$ g = \\frac{\\sum_i \\nabla S_i}{\\sum_i W_i} \\tag{1} $$

Batches are addressed by step (``dataset[k]``): the step is all there is to know about the position in the data, so a
run that restores parameters, optimizer state, RNG and step goes on as if it had never stopped.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scratch_core.errors import ConfigError, DataError, TrainingError
from scratch_core.train.checkpoints import Checkpoints
from scratch_core.train.interrupt import Interrupt
from scratch_core.train.metrics import MetricsLog, Progress, Throughput, batch_size

LossFunction = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Outcome:
    """How `Trainer.fit` ended: at which step, with which last loss, and by which signal (None: it is done)."""

    step: int
    loss: float
    interrupted: str | None


class Trainer:
    """Trains ``model`` with an optax ``optimizer`` on a loss function ``(model, batch) -> (sum, weight)``.

    ``trainable`` is the nnx filter of what is learnt; all else (frozen parameters, running statistics, RNG) is carried
    along. ``accumulate`` splits each batch into that many micro-batches. With a ``mesh`` the model is sharded by the
    table in parallel.py and batches over its data axes. With a ``folder``, metrics.jsonl and checkpoints/ are written
    there, a checkpoint every ``save_every`` steps and at the end, the newest ``keep`` kept. ``learning_rate`` (a
    schedule) is only for the log. After ``max_skipped`` updates in a row that were not finite, fit raises.

    During `fit` the model's arrays are donated to the step; when fit returns (or raises) the model holds the trained
    ones, in evaluation mode. Raises ConfigError for a number that makes no sense.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        loss_fn: LossFunction,
        *,
        trainable: Any = nnx.Param,
        accumulate: int = 1,
        mesh: jax.sharding.Mesh | None = None,
        folder: str | Path | None = None,
        save_every: int = 500,
        keep: int = 3,
        log_every: int = 10,
        max_skipped: int = 10,
        learning_rate: Callable[[int], Any] | None = None,
    ):
        numbers = {"accumulate": accumulate, "save_every": save_every, "keep": keep, "log_every": log_every}
        for name, value in (numbers | {"max_skipped": max_skipped}).items():
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        self.model, self.optimizer, self.loss_fn, self.trainable = model, optimizer, loss_fn, trainable
        self.accumulate, self.mesh, self.learning_rate = accumulate, mesh, learning_rate
        self.save_every, self.log_every, self.max_skipped = save_every, log_every, max_skipped
        self.folder = None if folder is None else Path(folder)
        self.metrics = MetricsLog(None if self.folder is None else self.folder / "metrics.jsonl")
        self.checkpoints = None if self.folder is None else Checkpoints(self.folder / "checkpoints", keep)

        if mesh is not None:
            from scratch_core.parallel import shard_model

            shard_model(model, mesh)
        model.train()
        self._training = nnx.graphdef(model)
        model.eval()
        self._evaluating = nnx.graphdef(model)
        parameters, rest = self._split(model)
        self.state = self._on_mesh(
            {
                "parameters": parameters,
                "optimizer": optimizer.init(parameters),
                "rest": rest,
                "step": jnp.zeros((), jnp.int32),
                "skipped": jnp.zeros((), jnp.int32),  # updates in a row that were not finite
            }
        )
        shardings = None if mesh is None else (jax.tree.map(lambda x: x.sharding, self.state), None)
        self._step = jax.jit(self._training_step, donate_argnums=0, out_shardings=shardings)
        self._evaluate = jax.jit(self._evaluation_step, static_argnums=0)

    @property
    def step(self) -> int:
        """The number of steps taken so far."""
        return int(self.state["step"])

    def fit(self, dataset: Any, steps: int) -> Outcome:
        """Train on ``dataset[k]`` for k from the present step up to ``steps`` (a total, not an addition).

        The first SIGINT or SIGTERM ends it after the step under way, with a checkpoint. Raises TrainingError when the
        loss is not finite ``max_skipped`` times in a row; these updates were skipped, so the model is still sound.
        """
        step, loss, waiting, throughput = self.step, float("nan"), None, Throughput()
        try:
            with Interrupt() as interrupt, Progress(steps, step) as progress:
                while step < steps and not interrupt.received:
                    batch = dataset[step]
                    metrics = self.train_step(batch)
                    step += 1
                    if waiting is not None:  # read a step late, so that the device never waits for Python
                        loss = self._report(*waiting, steps, throughput, progress)
                    waiting = (step, metrics, batch_size(batch))
                    if step == steps or interrupt.received or step % self.save_every == 0:
                        loss, waiting = self._report(*waiting, steps, throughput, progress), None
                        self.save()
            if self.checkpoints is not None:
                self.checkpoints.wait()
        finally:
            self.update_model()
        return Outcome(step, loss, interrupt.received if step < steps else None)

    def train_step(self, batch: Any) -> dict[str, jax.Array]:
        """Take one step on ``batch`` and return "loss", "gradient_norm" and "skipped", still on the device.

        For a loop of one's own, which ends with `update_model`; `fit` does both.
        """
        self.state, metrics = self._step(self.state, self._prepared(batch))
        return metrics

    def update_model(self) -> None:
        """Put the trained arrays into the model, in evaluation mode: steps donate the ones it had."""
        nnx.update(self.model, nnx.State(self.state["parameters"]), nnx.State(self.state["rest"]))
        self.model.eval()

    def evaluate(self, dataset: Iterable[Any], metrics: Mapping[str, LossFunction] | None = None) -> dict[str, float]:
        """Return the mean loss over all of ``dataset``, and of each of ``metrics``, in evaluation mode.

        A metric is a function of the loss's form; each is sum / weight over the whole dataset, so the batches' sizes
        do not matter. Raises DataError if nothing was counted.
        """
        functions = {"loss": self.loss_fn, **(metrics or {})}
        totals = {name: [0.0, 0.0] for name in functions}
        for batch in dataset:
            state = self.state["parameters"], self.state["rest"]
            result = self._evaluate(tuple(functions.items()), *state, self._prepared(batch))
            for name, (total, weight) in jax.device_get(result).items():
                totals[name][0] += float(total)
                totals[name][1] += float(weight)
        if empty := [name for name, (_, weight) in totals.items() if weight == 0]:
            raise DataError(f"nothing to evaluate: the dataset holds no target for {', '.join(empty)}")
        return {name: total / weight for name, (total, weight) in totals.items()}

    def save(self) -> None:
        """Start to write a checkpoint of the present step; does nothing without a folder."""
        if self.checkpoints is not None:
            self.checkpoints.save(self.step, self.state)

    def restore(self) -> list[str]:
        """Go to the newest intact checkpoint, if there is one; returns a line for each damaged one passed over.

        Metrics of later steps are dropped. Raises CheckpointError if none is intact, or of another model.
        """
        found = None if self.checkpoints is None else self.checkpoints.restore(self.state)
        if found is not None:
            self.state = found.state
            self.update_model()
        self.metrics.truncate_after(self.step)
        return [] if found is None else found.damaged

    def close(self) -> None:
        """Wait for the save under way and end Orbax's threads."""
        if self.checkpoints is not None:
            self.checkpoints.close()

    def _training_step(self, state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        parameters, rest = state["parameters"], state["rest"]
        if self.accumulate == 1:
            gradients, total, weight, new_rest = self._gradients(parameters, rest, batch)
        else:

            def add(carry: Any, micro_batch: Any) -> tuple[Any, None]:
                *sums, rest = carry
                *terms, rest = self._gradients(parameters, rest, micro_batch)
                return (*jax.tree.map(jnp.add, sums, terms), rest), None

            zeros = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), parameters), jnp.zeros(()), jnp.zeros(())
            carry, _ = jax.lax.scan(add, (*zeros, rest), jax.tree.map(self._micro_batches, batch))
            gradients, total, weight, new_rest = carry
        loss = total / weight
        gradients = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)  # eq. 1
        norm = optax.tree.norm(gradients)

        def update(old: dict[str, Any]) -> dict[str, Any]:
            updates, optimizer = self.optimizer.update(gradients, old["optimizer"], old["parameters"])
            parameters = optax.apply_updates(old["parameters"], updates)
            return {"parameters": parameters, "optimizer": optimizer, "rest": new_rest}

        # A branch, not a choice between old and new values, so that the donated arrays are updated in place.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        old = {"parameters": parameters, "optimizer": state["optimizer"], "rest": rest}
        new = jax.lax.cond(finite, update, lambda old: old, old)
        new["step"] = state["step"] + 1
        new["skipped"] = jnp.where(finite, 0, state["skipped"] + 1)
        return new, {"loss": loss, "gradient_norm": norm, "skipped": new["skipped"]}

    def _gradients(self, parameters: Any, rest: Any, batch: Any) -> tuple[Any, jax.Array, jax.Array, Any]:
        def loss(parameters: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            model = nnx.merge(self._training, nnx.State(parameters), nnx.State(rest))
            total, weight = self.loss_fn(model, batch)
            total, weight = jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32)
            return total, (weight, self._split(model)[1])

        (total, (weight, new_rest)), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return gradients, total, weight, new_rest

    def _micro_batches(self, x: jax.Array) -> jax.Array:
        if x.shape[0] % self.accumulate:
            raise ConfigError(f"accumulate={self.accumulate} must divide the batch size {x.shape[0]}")
        # Every A-th row, not A blocks: rows that are spread over devices stay spread over devices.
        return x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

    def _evaluation_step(self, functions: Any, parameters: Any, rest: Any, batch: Any) -> dict[str, Any]:
        model = nnx.merge(self._evaluating, nnx.State(parameters), nnx.State(rest))
        return {name: function(model, batch) for name, function in functions}

    def _report(
        self, step: int, metrics: Any, size: tuple[int, str], steps: int, throughput: Throughput, progress: Progress
    ) -> float:
        loss, norm, skipped = (
            x.item() for x in jax.device_get([metrics[k] for k in ("loss", "gradient_norm", "skipped")])
        )
        throughput.add(size[0])
        progress.advance(step)
        if step == 1 or step == steps or step % self.log_every == 0 or skipped:
            rate = throughput.rate()
            record = {"step": step, "loss": loss, "gradient_norm": norm, "skipped": skipped}
            if self.learning_rate is not None:
                record["learning_rate"] = float(self.learning_rate(step - 1))
            if rate is not None:
                record[f"{size[1]}_per_second"] = round(rate, 1)
            self.metrics.append(record)
            progress.report(step, loss, rate, size[1])
        if skipped >= self.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {skipped} steps in a row, up to step {step}: "
                "lower the learning rate, or look at the data"
            )
        return loss

    def _split(self, model: nnx.Module) -> tuple[dict[Any, Any], dict[Any, Any]]:
        _, parameters, rest = nnx.split(model, self.trainable, ...)
        return nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)

    def _prepared(self, batch: Any) -> Any:
        if self.mesh is None:
            return batch
        from scratch_core.parallel import shard_batch

        return shard_batch(batch, self.mesh)

    def _on_mesh(self, state: dict[str, Any]) -> dict[str, Any]:
        """Put what is on no mesh yet (counters, RNG) onto it, whole on every device."""
        if self.mesh is None:
            return state
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        on_mesh = lambda x: isinstance(x.sharding, jax.sharding.NamedSharding)  # noqa: E731
        return jax.tree.map(lambda x: x if on_mesh(x) else jax.device_put(x, everywhere), state)
