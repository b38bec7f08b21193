r"""One optimizer step as a pure function: (state, batch) -> (state, metrics).

The model is split once into a static definition and a state of plain arrays. A step merges them inside `jax.jit`, so
that Python does not traverse the modules at each step. With micro-batches $i = 1 \dots A$ of summed loss $S_i$ and
weight $W_i$ (the number of targets), the gradient equals that of the one large batch, whatever the padding:

$$ g = \frac{\sum_i \nabla S_i}{\sum_i W_i} \tag{1} $$
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scratch_core.train.batches import BatchHandling
from scratch_core.weights.key_table import flatten, unstack

LossFunction = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
State = dict[str, Any]  # "parameters", "optimizer", "rest", and the counts "step" and "skipped"


def model_loss(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the (sum, weight) of the model's own loss."""
    return model.loss(batch)


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """The step of a model whose definition in training mode is ``graphdef``.

    ``trainable`` is the nnx filter of the parameters to learn. The gradient of a batch is computed in ``accumulate``
    parts. ``norms`` adds the gradient and parameter norms of each part of the model to the metrics.
    """

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    loss_fn: LossFunction
    handling: BatchHandling
    trainable: Any
    accumulate: int = 1
    norms: bool = False

    def initial_state(self, model: nnx.Module) -> State:
        """Return the state before the first step: trainable parameters, optimizer state, and the rest of the model."""
        parameters, rest = self._split(model)
        return {
            "parameters": parameters,
            "optimizer": self.optimizer.init(parameters),
            "rest": rest,
            "step": jnp.zeros((), jnp.int32),
            "skipped": jnp.zeros((), jnp.int32),  # updates in a row that were not finite
        }

    def shardings(self, model: nnx.Module, state: State, mesh: Mesh) -> State:
        """Return the sharding of each array of ``state`` on a mesh. ``model`` and ``state`` may be shapes only.

        Parameters keep the sharding that they have in the model. An optimizer array with the path and shape of a
        parameter is sharded like that parameter. Arrays that the optimizer has placed itself stay there; all others
        are replicated.
        """
        everywhere = NamedSharding(mesh, PartitionSpec())

        def own(x: Any) -> NamedSharding:
            return x.sharding if isinstance(x.sharding, NamedSharding) else everywhere

        parameters, rest = self._split(model)
        leaves = jax.tree_util.tree_leaves_with_path(parameters)
        mirrored = {(path, x.shape): own(x) for path, x in leaves}

        def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
            ends = (mirrored.get((path[start:], x.shape)) for start in range(len(path)))
            return next(filter(None, ends), own(x))

        return {
            "parameters": jax.tree.map(own, parameters),
            "optimizer": jax.tree_util.tree_map_with_path(place, state["optimizer"]),
            "rest": jax.tree.map(own, rest),
            "step": everywhere,
            "skipped": everywhere,
        }

    def __call__(self, state: State, batch: Any) -> tuple[State, dict[str, Any]]:
        """Return the next state, and "loss", "gradient_norm" and "skipped". Skips an update that is not finite."""
        parameters, rest = state["parameters"], state["rest"]
        if self.accumulate == 1:
            gradients, total, weight, new_rest = self._gradients(parameters, rest, batch)
        else:

            def add(carry: Any, micro_batch: Any) -> tuple[Any, None]:
                *sums, rest = carry
                *terms, rest = self._gradients(parameters, rest, micro_batch)
                return (*jax.tree.map(jnp.add, sums, terms), rest), None

            zeros = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), parameters), jnp.zeros(()), jnp.zeros(())
            carry, _ = jax.lax.scan(add, (*zeros, rest), self.handling.split(batch, self.accumulate))
            gradients, total, weight, new_rest = carry
        loss = total / weight
        gradients = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)  # eq. 1
        norm = optax.tree.norm(gradients)

        def update(old: dict[str, Any]) -> dict[str, Any]:
            updates, optimizer = self.optimizer.update(gradients, old["optimizer"], old["parameters"])
            parameters = optax.apply_updates(old["parameters"], updates)
            return {"parameters": parameters, "optimizer": optimizer, "rest": new_rest}

        # lax.cond instead of jnp.where, so that the donated arrays are updated in place.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        old = {"parameters": parameters, "optimizer": state["optimizer"], "rest": rest}
        new = jax.lax.cond(finite, update, lambda old: old, old)
        new["step"] = state["step"] + 1
        new["skipped"] = jnp.where(finite, 0, state["skipped"] + 1)
        metrics = {"loss": loss, "gradient_norm": norm, "skipped": new["skipped"]}
        if self.norms:
            metrics |= {"gradient_norms": _norms(gradients), "parameter_norms": _norms(parameters)}
        return new, metrics

    def _gradients(self, parameters: Any, rest: Any, batch: Any) -> tuple[Any, jax.Array, jax.Array, Any]:
        def loss(parameters: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            model = nnx.merge(self.graphdef, nnx.State(parameters), nnx.State(rest))
            total, weight = self.loss_fn(model, batch)
            total, weight = jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32)
            return total, (weight, self._split(model)[1])

        (total, (weight, new_rest)), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return gradients, total, weight, new_rest

    def _split(self, model: nnx.Module) -> tuple[dict[Any, Any], dict[Any, Any]]:
        _, parameters, rest = nnx.split(model, self.trainable, ...)
        return nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)


def _norms(tree: Any) -> dict[str, jax.Array]:
    """Return the norm of each part of the model: each block of a stack, and each other top-level module."""
    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in unstack(flatten(tree)).items():
        name, _, rest = path.partition(".")
        number = rest.partition(".")[0]
        parts.setdefault(f"{name}.{number}" if number.isdigit() else name, []).append(leaf)
    return {name: optax.tree.norm(leaves) for name, leaves in parts.items()}
