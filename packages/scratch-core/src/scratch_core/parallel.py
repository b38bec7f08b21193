"""Parallelism as a table: parameter path -> logical axes -> mesh axes. Layers do not depend on it, except for experts.

A mesh has the axes ``data`` (whole copies of the model, each with its part of the batch), ``fsdp`` (the
batch is split, and so are the parameters, gathered layer by layer), ``expert`` (the batch is split, and each
device keeps some of the experts) and ``tensor`` (heads and feed-forward features are split). Any of them may be 1.
A dimension that its mesh axis does not divide stays whole.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scratch_core.errors import ConfigError
from scratch_core.paths import matches

Model = TypeVar("Model", bound=nnx.Module)

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


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes of the axes in a text such as "fsdp=4,tensor=2". Raises ConfigError for anything else."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in (*BATCH, "tensor") or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(
                f"--mesh {text}: {part.strip()!r} is not an axis with its size: write each of data, fsdp, expert and "
                "tensor at most once, such as fsdp=4,tensor=2"
            )
        sizes[name] = int(size)
    return sizes


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
    if ".kinds." in path:  # scanned blocks: the first axis counts them, and every device runs them all
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
    flat, places = dict(nnx.to_flat_state(state)), _places(model, state, mesh)
    placed = {path: leaf.replace(jax.device_put(leaf[...], places[path])) for path, leaf in flat.items()}
    nnx.update(model, nnx.from_flat_state(placed))
    use_mesh(model, mesh)


def born_sharded(build: Callable[[], Model], mesh: Mesh | None) -> Model:
    """Return ``build()`` with each part of each variable computed on the device that keeps it.

    No device ever holds the whole model. The numbers are those of ``build()`` on one device up to rounding. Without a
    mesh, ``build()`` itself is returned.
    """
    if mesh is None:
        return build()
    model = abstract_model(build, mesh)
    graphdef, state = nnx.split(model)
    places = jax.tree.map(lambda x: x.sharding, nnx.to_pure_dict(state))
    arrays = jax.jit(lambda: nnx.to_pure_dict(nnx.state(build())), out_shardings=places)()
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(graphdef, state)


def abstract_model(build: Callable[[], Model], mesh: Mesh) -> Model:
    """Return ``build()`` with the shapes, dtypes and shardings of its variables in place of their values."""
    model: Any = nnx.eval_shape(build)
    graphdef, state = nnx.split(model)
    places = _places(model, state, mesh)
    placed = {
        path: leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path]))
        for path, leaf in nnx.to_flat_state(state)
    }
    model = nnx.merge(graphdef, nnx.from_flat_state(placed))
    use_mesh(model, mesh)
    return model


def _places(model: Any, state: Any, mesh: Mesh) -> dict[Any, NamedSharding]:
    """Return the sharding of each variable in ``state``: parameters by the table, the rest whole on every device."""
    table = {**getattr(model, "axes", {}), **AXES}

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        learned = isinstance(leaf, nnx.Param)
        return _spec(".".join(map(str, path)), leaf.shape, mesh, table) if learned else PartitionSpec()

    return {path: NamedSharding(mesh, spec(path, leaf)) for path, leaf in nnx.to_flat_state(state)}


def use_mesh(model: nnx.Module, mesh: Mesh) -> None:
    """Set the attribute ``mesh`` of all modules that have one: they split their work themselves."""
    modules: Any = nnx.iter_modules(model)
    for _, module in modules:
        if hasattr(module, "mesh"):
            module.mesh = mesh


def constrain(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Return activations [B, ...] with the batch split over BATCH and all other axes whole, none split over ``tensor``.

    This fixes the layout instead of leaving the choice to XLA, which saves collectives. A batch that the mesh does not
    divide stays as it is, and without a mesh nothing happens.
    """
    if mesh is None or x.shape[0] % batch_parts(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH)))


def batch_parts(mesh: Mesh) -> int:
    """Return the number of parts into which the batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


@functools.cache
def process_part(mesh: Mesh | None) -> tuple[int, int]:
    """Return which part of each batch this process reads, and how many parts there are.

    Processes whose devices hold the same rows read the same part. Raises ConfigError if the rows of one process
    overlap with those of another without being the same.
    """
    if mesh is None or jax.process_count() == 1:
        return 0, 1
    rows: dict[int, set[int]] = {}
    parts = batch_parts(mesh)
    where = NamedSharding(mesh, PartitionSpec(BATCH)).devices_indices_map((parts,))
    for device, (index,) in where.items():
        rows.setdefault(device.process_index, set()).update(range(*index.indices(parts)))
    shares = sorted({tuple(sorted(share)) for share in rows.values()})
    if jax.process_index() not in rows or sum(map(len, shares)) != parts or len({*map(len, shares)}) != 1:
        raise ConfigError(
            f"the mesh {dict(mesh.shape)} does not give each of {jax.process_count()} processes a part of the batch: "
            "it must use all devices, and data * fsdp * expert and the number of processes must divide one another"
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Return a batch (a tree of arrays, axis 0 the batch) split over the mesh's axes of BATCH.

    With several processes, each passes its own part, see :func:`process_part`; the parts are joined in their order.
    Raises ConfigError if the mesh does not divide the batch.
    """
    parts, (_, shares) = batch_parts(mesh), process_part(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))

    def place(array: Any) -> jax.Array:
        rows = array.shape[0] * shares
        if rows % parts:
            raise ConfigError(
                f"data * fsdp * expert = {parts} must divide the batch of {rows}: change the batch size or the mesh"
            )
        if isinstance(array, jax.Array):
            return jax.device_put(array, sharding)
        local = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        return jax.make_array_from_process_local_data(sharding, local, (rows, *array.shape[1:]))

    return jax.tree.map(place, batch)


def to_host(array: Any) -> np.ndarray:
    """Return the whole array. If other processes hold parts of it, every process must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
