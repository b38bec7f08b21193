"""Parallelism as a table: parameter path -> logical axes -> mesh axes. Layers know nothing of it, save for experts.

A mesh has the axes ``data`` (whole copies of the model, each with its part of the batch), ``fsdp`` (the
batch is split, and so are the parameters, gathered layer by layer), ``expert`` (the batch is split, and each
device keeps some of the experts) and ``tensor`` (heads and feed-forward features are split). Any of them may be 1.
A dimension that its mesh axis does not divide stays whole.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scratch_core.errors import ConfigError
from scratch_core.paths import matches

BATCH = ("data", "fsdp", "expert")
"""Mesh axes over which the batch is split."""

MESH_AXES: Mapping[str, str] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "feed_forward": "tensor",
    "experts": "expert",
}

AXES: Mapping[str, tuple[str | None, ...]] = {
    "*embedding.embedding": ("vocab", "embed"),
    "*positions.embedding": (None, "embed"),
    "*qkv.kernel": ("embed", "heads", None, None),
    "*query.kernel": ("embed", "heads", None),
    "*key.kernel": ("embed", "heads", None),
    "*value.kernel": ("embed", "heads", None),
    "*out.kernel": ("heads", None, "embed"),
    "*gate.kernel": ("embed", "feed_forward"),
    "*up.kernel": ("embed", "feed_forward"),
    "*down.kernel": ("feed_forward", "embed"),
    "*head.kernel": ("embed", "vocab"),
    "*experts.gate.kernel": ("experts", "embed", "feed_forward"),
    "*experts.up.kernel": ("experts", "embed", "feed_forward"),
    "*experts.down.kernel": ("experts", "feed_forward", "embed"),
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None, *, expert: int = 1
) -> Mesh:
    """Return a mesh of data x fsdp x expert x tensor devices (default: the first of all devices).

    Raises ConfigError if there are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    size = math.prod(sizes.values())
    if size > len(devices):
        raise ConfigError(
            f"a mesh of {' x '.join(f'{name} {n}' for name, n in sizes.items())} needs {size} devices, "
            f"but there are {len(devices)}: make it smaller"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices[:size]
    )


def shardings(
    parameters: Mapping[str, Any], mesh: Mesh, axes: Mapping[str, tuple[str | None, ...]] | None = None
) -> dict[str, NamedSharding]:
    """Return {dotted path: sharding} for arrays or their shapes; rows of ``axes`` take precedence over the table."""
    table = {**(axes or {}), **AXES}
    return {path: NamedSharding(mesh, _spec(path, value.shape, mesh, table)) for path, value in parameters.items()}


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, table: Mapping[str, tuple[str | None, ...]]) -> PartitionSpec:
    if ".kinds." in path:  # scanned blocks: the first axis counts them, and every device takes each in turn
        return PartitionSpec(None, *_spec(path.replace(".kinds.", "."), shape[1:], mesh, table))
    for glob, logical in table.items():
        if matches(path, glob) and len(logical) == len(shape):
            names = (MESH_AXES[name] if name else None for name in logical)
            return PartitionSpec(
                *(name if name and size % mesh.shape[name] == 0 else None for name, size in zip(names, shape))
            )
    return PartitionSpec()


def shard_model(model: nnx.Module, mesh: Mesh) -> None:
    """Move a model's variables, in place, to the devices of a mesh: parameters by the table, the rest to all."""
    state = nnx.state(model)
    flat = dict(nnx.to_flat_state(state))
    placed = {}
    table = {**getattr(model, "axes", {}), **AXES}
    for path, leaf in flat.items():
        name = ".".join(map(str, path))
        spec = _spec(name, leaf.shape, mesh, table) if isinstance(leaf, nnx.Param) else PartitionSpec()
        placed[path] = leaf.replace(jax.device_put(leaf[...], NamedSharding(mesh, spec)))
    nnx.update(model, nnx.from_flat_state(placed))
    use_mesh(model, mesh)


def use_mesh(model: nnx.Module, mesh: Mesh) -> None:
    """Name the mesh to the layers that split their work themselves: those with an attribute ``mesh``."""
    modules: Any = nnx.iter_modules(model)
    for _, module in modules:
        if hasattr(module, "mesh"):
            module.mesh = mesh


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Return a batch (a tree of arrays, axis 0 the batch) split over the mesh's axes of BATCH.

    Raises ConfigError if they do not divide the batch.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))

    def place(array: Any) -> jax.Array:
        if array.shape[0] % parts:
            raise ConfigError(
                f"data * fsdp * expert = {parts} must divide the batch of {array.shape[0]}: "
                "change the batch size or the mesh"
            )
        return jax.device_put(jnp.asarray(array), sharding)

    return jax.tree.map(place, batch)
