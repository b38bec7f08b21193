"""The sharding table: which axis of which parameter goes where."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from scratch_core import ConfigError
from scratch_core.losses import cross_entropy
from scratch_core.parallel import make_mesh, shard_batch, shardings

MESH = AbstractMesh((1, 4, 1, 2), ("data", "fsdp", "expert", "tensor"), axis_types=(AxisType.Auto,) * 4)
EXPERTS = AbstractMesh((1, 1, 4, 2), MESH.axis_names, axis_types=MESH.axis_types)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("layers.3.attention.query.kernel", (8, 4, 6), PartitionSpec("fsdp", "tensor", None)),
        ("layers.3.attention.out.kernel", (4, 6, 8), PartitionSpec("tensor", None, "fsdp")),
        ("layers.3.feed_forward.down.kernel", (12, 8), PartitionSpec("tensor", "fsdp")),
        ("embedding.embedding", (10, 8), PartitionSpec("tensor", "fsdp")),
        ("embedding.embedding", (11, 6), PartitionSpec(None, None)),  # sizes that do not divide stay whole
        ("layers.3.attention_norm.scale", (8,), PartitionSpec()),
        ("mixer.special", (8, 4), PartitionSpec(None, "fsdp")),  # a row of the model's own
    ],
)
def test_parameters_are_placed_by_the_table(path, shape, spec):
    placed = shardings({path: SimpleNamespace(shape=shape)}, MESH, {"*special": (None, "embed")})
    assert placed[path].spec == spec


@pytest.mark.parametrize(("experts", "axis"), [(8, "expert"), (6, None)])
def test_experts_are_spread_over_their_axis_if_it_divides_their_number(experts, axis):
    kernels = {f"layers.0.feed_forward.experts.{name}.kernel": (experts, 8, 8) for name in ("gate", "down")}
    placed = shardings({path: SimpleNamespace(shape=shape) for path, shape in kernels.items()}, EXPERTS)
    assert [sharding.spec for sharding in placed.values()] == [
        PartitionSpec(axis, "fsdp", "tensor"),
        PartitionSpec(axis, "tensor", "fsdp"),
    ]


def test_a_mesh_larger_than_the_machine_is_an_error():
    with pytest.raises(ConfigError, match="needs 4096 devices"):
        make_mesh(fsdp=4096)


def test_a_batch_that_cannot_be_split_is_an_error():
    with pytest.raises(ConfigError, match="data \\* fsdp \\* expert = 4 must divide the batch of 6"):
        shard_batch({"input_ids": np.zeros((6, 2))}, MESH)


def test_cross_entropy_counts_what_counts():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    labels = jnp.array([[1, -100, 4], [-100, -100, 0]])
    total, weight = cross_entropy(logits, labels)
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    assert weight == 3
    np.testing.assert_allclose(total, -(logprobs[0, 0, 1] + logprobs[0, 2, 4] + logprobs[1, 2, 0]), rtol=1e-6)
    soft, _ = cross_entropy(logits[:, 0], jax.nn.one_hot(labels[:, 2], 5))
    hard, _ = cross_entropy(logits[:, 0], labels[:, 2])
    np.testing.assert_allclose(soft, hard, rtol=1e-6)
    smooth, _ = cross_entropy(logits[:, 0], labels[:, 2], label_smoothing=0.1)
    mixed, _ = cross_entropy(logits[:, 0], 0.9 * jax.nn.one_hot(labels[:, 2], 5) + 0.1 / 5)
    np.testing.assert_allclose(smooth, mixed, rtol=1e-6)
