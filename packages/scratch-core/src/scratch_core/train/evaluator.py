"""Evaluates a training state: losses and metrics over a dataset, and the running statistics that belong to it.

Some optimizers evaluate other parameters than they train. Running statistics of the trained parameters do not fit
those, so they are computed again (statistics.py).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from scratch_core.errors import ConfigError, DataError
from scratch_core.parallel import process_part
from scratch_core.train.batches import BatchHandling
from scratch_core.train.statistics import recompute_statistics
from scratch_core.train.step import LossFunction, State

STATISTICS_BATCHES = 16
"""Running statistics are computed again over this many batches, the first of the training data."""


class Evaluator:
    """Evaluates states of a `TrainingStep` in the mode of ``model``, which is evaluation mode.

    ``trainable``, ``loss_fn``, ``handling``, ``evaluation_parameters`` and ``mesh`` are those of `Trainer`.
    """

    def __init__(
        self,
        model: nnx.Module,
        trainable: Any,
        loss_fn: LossFunction,
        handling: BatchHandling,
        evaluation_parameters: Callable[[Any, Any], Any],
        mesh: Mesh | None,
    ):
        self._graphdef, self._trainable, self._loss_fn = nnx.graphdef(model), trainable, loss_fn
        self._handling, self._evaluation_parameters, self._mesh = handling, evaluation_parameters, mesh
        self._keeps_statistics = bool(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
        self._first_batches: Callable[[], Iterable[Any]] | None = None  # of the training data, once that is known
        self._statistics: nnx.State | None = None  # at the evaluation parameters of the present state
        self._step = jax.jit(self._evaluation_step, static_argnums=0)

    def evaluate(self, state: State, dataset: Iterable[Any], metrics: Mapping[str, LossFunction]) -> dict[str, float]:
        """Return the mean loss and metrics over all of ``dataset``; see `Trainer.evaluate`."""
        functions = {"loss": self._loss_fn, **metrics}
        totals = {name: [0.0, 0.0] for name in functions}
        parameters, rest = self.parameters(state), self.rest(state)
        part = process_part(self._mesh)
        for batch in dataset:
            placed = self.placed(self._handling.part(batch, *part))
            result = self._step(tuple(functions.items()), parameters, rest, placed)
            for name, (total, weight) in jax.device_get(result).items():
                totals[name][0] += float(total)
                totals[name][1] += float(weight)
        if empty := [name for name, (_, weight) in totals.items() if weight == 0]:
            raise DataError(f"nothing to evaluate: the dataset holds no target for {', '.join(empty)}")
        return {name: total / weight for name, (total, weight) in totals.items()}

    def parameters(self, state: State) -> Any:
        """Return the evaluation parameters."""
        return self._evaluation_parameters(state["optimizer"], state["parameters"])

    def rest(self, state: State) -> Any:
        """Return the rest of the state for the evaluation parameters, which may need their own running statistics.

        Raises ConfigError if they must be computed from the training data, but that is not known.
        """
        rest, parameters, step = state["rest"], self.parameters(state), int(state["step"])
        if not self._keeps_statistics or parameters is state["parameters"] or step == 0:
            return rest
        model = nnx.merge(self._graphdef, nnx.State(parameters), nnx.State(rest))
        if self._statistics is None:
            if self._first_batches is None:
                raise ConfigError(
                    "the running statistics of this model are those of the trained parameters, not of the evaluated "
                    f"ones, and no training data is known to compute them from: call fit(dataset, {step}) first"
                )
            recompute_statistics(model, map(self.placed, self._first_batches()), self._loss_fn)
            self._statistics = nnx.state(model, nnx.BatchStat)
        nnx.update(model, self._statistics)
        return nnx.to_pure_dict(nnx.split(model, self._trainable, ...)[2])

    def use_training_data(self, dataset: Any, steps: int) -> None:
        """Compute running statistics from ``dataset``, on which a run of ``steps`` steps trains."""
        self._first_batches = lambda: (dataset[k] for k in range(min(STATISTICS_BATCHES, steps)))

    def forget(self) -> None:
        """Forget the running statistics, because the state has changed."""
        self._statistics = None

    def placed(self, batch: Any) -> Any:
        """Return a batch on the devices of the mesh."""
        return batch if self._mesh is None else self._handling.place(batch, self._mesh)

    def _evaluation_step(self, functions: Any, parameters: Any, rest: Any, batch: Any) -> dict[str, Any]:
        model = nnx.merge(self._graphdef, nnx.State(parameters), nnx.State(rest))
        return {name: function(model, batch) for name, function in functions}
