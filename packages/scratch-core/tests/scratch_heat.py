"""A package for the tests of entry points: a model, a task and an optimizer that are not part of scratch-core.

The task is regression on graphs: x_VD are the features of V nodes, edge_index [2, E] their edges, and labels_V the
numbers to predict. No array has examples as its first axis, so the task itself defines how a batch is counted and
split. The optimizer keeps the average of the parameters, which is evaluated and saved.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from scratch_core import ConfigError, DataError, ModelSpec, PretrainedModel, Rule
from scratch_core.tasks import Job, RunOptions, Task
from scratch_core.train import Optimizer
from scratch_core.weights import transpose


@dataclasses.dataclass(frozen=True)
class HeatConfig:
    d_model: int = 3

    @classmethod
    def tiny(cls):
        return cls()

    @classmethod
    def from_hf(cls, fields):
        return cls(fields["d_model"])

    def to_hf(self):
        return {"model_type": "heat", "d_model": self.d_model}


class Heat(PretrainedModel):
    """Each node predicts from its own features and the sum of its neighbours'."""

    Config: ClassVar[Any] = HeatConfig
    task: ClassVar[str] = "node_regression"
    architectures: ClassVar[tuple[str, ...]] = ("HeatForNodeRegression",)

    @staticmethod
    def rules(config):
        return [Rule("own.weight", "own.kernel", transpose), Rule("near.weight", "near.kernel", transpose)]

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        self.config = config
        self.own = nnx.Linear(config.d_model, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.near = nnx.Linear(config.d_model, 1, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x_VD, edge_index):
        near_VD = jnp.zeros_like(x_VD).at[edge_index[1]].add(x_VD[edge_index[0]])
        return (self.own(x_VD) + self.near(near_VD))[:, 0]

    def loss(self, batch):
        error = (self(batch["x"], batch["edge_index"]) - batch["labels"]) * batch["mask"]
        return (error**2).sum(), batch["mask"].sum()


SPEC = ModelSpec(
    "heat",
    models={"node_regression": "scratch_heat:Heat"},
    presets={"tiny": 6},
    recipes={"tiny": {"steps": 40, "learning_rate": 0.1, "optimizer": "averaged"}},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatOptions(RunOptions):
    """Train a model to predict a number at each node."""

    nodes: int = 12
    """Nodes of the ring."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatPrediction:
    """Print what a model predicts for a node without neighbours."""

    features: Annotated[str, tyro.conf.Positional]
    """Numbers with commas between them."""


def ring(nodes, d_model=3, seed=0):
    """A ring. Each label is twice the first feature of its node minus that of the node before it."""
    x_VD = np.random.default_rng(seed).normal(size=(nodes, d_model)).astype(np.float32)
    edge_index = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes]).astype(np.int32)
    labels_V = 2 * x_VD[:, 0] - np.roll(x_VD[:, 0], 1)
    return {"x": x_VD, "edge_index": edge_index, "labels": labels_V, "mask": np.ones(nodes, np.float32)}


class NodeRegression(Task):
    name = "node_regression"
    unit = "nodes"
    Options = HeatOptions
    PredictOptions = HeatPrediction
    contract = "scratch_core.testing:ModelContract"

    def prepare(self, spec, options):
        if options.nodes < 2:
            raise ConfigError(f"--nodes {options.nodes} must be at least 2")
        if options.checkpoint is not None:
            model = spec.model(self.name).from_pretrained(options.checkpoint)
        else:
            model = spec.model(self.name)(spec.config(options.preset), rngs=nnx.Rngs(options.seed))
        return Job(
            model=model,
            batches=Rings(options.nodes),
            held_out=[ring(options.nodes, seed=99)],
            description=f"rings of {options.nodes} nodes",
            fingerprint=str(options.nodes),
            update=f"a ring of {options.nodes} nodes",
        )

    def noise(self, config, batch_size):
        return ring(batch_size, config.d_model)

    def count(self, batch):
        return int(batch["mask"].sum())

    def place(self, batch, mesh):
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.tree.map(lambda x: jax.device_put(x, everywhere), batch)

    def split(self, batch, parts):
        # Each part is the whole graph, and counts some of its nodes.
        nodes = jnp.arange(len(batch["mask"]))
        masks = jnp.stack([batch["mask"] * (nodes % parts == part) for part in range(parts)])
        return {name: jnp.stack([x] * parts) for name, x in batch.items() if name != "mask"} | {"mask": masks}

    def predict(self, folder, model_class, options):
        try:
            x_VD = np.array([[float(number) for number in options.features.split(",")]], np.float32)
        except ValueError as error:
            raise DataError(f"{options.features}: {error}; give numbers with commas between them") from error
        model = model_class.from_pretrained(folder)
        print(f"node 0: {float(model(x_VD, np.zeros((2, 0), np.int32))[0]):.3f}")


@dataclasses.dataclass(frozen=True)
class Rings:
    """Batch k is a ring of its own."""

    nodes: int

    def __getitem__(self, k):
        return ring(self.nodes, seed=100 + k)


TASK = NodeRegression()


class Averaged(Optimizer):
    """SGD with which the average of the parameters after all steps so far is evaluated."""

    def build(self, learning_rate, *, weight_decay, decayed):
        sgd = optax.sgd(learning_rate)

        def init(parameters):
            return {"sgd": sgd.init(parameters), "count": jnp.zeros(()), "mean": jax.tree.map(jnp.copy, parameters)}

        def update(gradients, state, parameters):
            updates, after = sgd.update(gradients, state["sgd"], parameters)
            count = state["count"] + 1
            new = optax.apply_updates(parameters, updates)
            mean = jax.tree.map(lambda m, p: m + (p - m) / count, state["mean"], new)
            return updates, {"sgd": after, "count": count, "mean": mean}

        return optax.GradientTransformation(init, update)

    def evaluation_parameters(self, optimizer_state, parameters):
        return optimizer_state["mean"]


AVERAGED = Averaged()
