"""The memory and the work of a training step on each device, read from the step compiled for simulated devices.

The model and the batch are shapes without values, so that a step of any size can be compiled on any machine. It is
the step that `Trainer` runs, with the same shardings.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scratch_core.errors import ConfigError
from scratch_core.parallel import BATCH, abstract_model, batch_parts
from scratch_core.train.batches import BatchHandling
from scratch_core.train.hlo import Program
from scratch_core.train.step import TrainingStep, model_loss


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of each device in bytes, and its work in one step.

    ``parameters`` and ``optimizer`` are the device's shards. ``other`` is its part of the batch, the random state and
    the counts. ``temporary`` is the additional memory that the compiled step allocates before it runs. It includes
    the ``activations``, which the forward pass computes and the backward pass reads (`Program.kept`). Their sum can
    exceed ``temporary``, because without scanned layers they are not all alive at the same time. ``outputs`` are
    results that do not reuse the memory of an argument. ``flops``, ``collectives`` and ``unknown`` (the number of
    loops counted as one iteration) are those of `hlo.Cost`.
    """

    parameters: int
    optimizer: int
    other: int
    activations: int
    temporary: int
    outputs: int
    flops: int
    collectives: Mapping[str, tuple[int, int]]
    unknown: int

    @property
    def total(self) -> int:
        """The memory that a device needs."""
        return self.parameters + self.optimizer + self.other + self.temporary + self.outputs


def plan_step(
    build: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    batch: Any,
    mesh: Mesh,
    *,
    handling: BatchHandling | None = None,
    accumulate: int = 1,
) -> Plan:
    """Return the plan of a step on a mesh of this process's devices. The step is compiled, but not run.

    ``build()`` returns the model, which is trained on its own loss; its arrays are not allocated. ``batch`` is a tree
    of `jax.ShapeDtypeStruct` whose axis 0 counts the examples of all devices. Raises ConfigError if the mesh cannot
    split that axis evenly.
    """
    model: Any = abstract_model(build, mesh)
    model.train()
    step = TrainingStep(
        nnx.graphdef(model), optimizer, model_loss, handling or BatchHandling(), nnx.Param, accumulate=accumulate
    )
    shapes = jax.eval_shape(step.initial_state, model)
    places = step.shardings(model, shapes, mesh)
    state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(places, None)).lower(state, _split(batch, mesh)).compile()
    return read_plan(compiled, state)


def read_plan(compiled: jax.stages.Compiled, state: Mapping[str, Any]) -> Plan:
    """Return the plan of a compiled training step. ``state`` is its first argument, as arrays or as their shapes."""
    memory: Any = compiled.memory_analysis()
    program = Program(compiled.as_text() or "")
    cost = program.cost()
    parameters, optimizer = (_device_bytes(state[name]) for name in ("parameters", "optimizer"))
    return Plan(
        parameters=parameters,
        optimizer=optimizer,
        other=memory.argument_size_in_bytes - parameters - optimizer,
        activations=program.kept(),
        temporary=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=cost.flops,
        collectives=cost.collectives,
        unknown=cost.unknown,
    )


def _device_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _split(batch: Any, mesh: Mesh) -> Any:
    """Return the shapes of a batch, split as `parallel.shard_batch` splits it."""
    parts, sharding = batch_parts(mesh), NamedSharding(mesh, PartitionSpec(BATCH))
    for x in jax.tree.leaves(batch):
        if x.shape[0] % parts:
            raise ConfigError(
                f"data * fsdp * expert = {parts} must divide the batch of {x.shape[0]}: change --batch-size or --mesh"
            )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
