"""Checkpoints in the Hugging Face layout: ``config.json`` and ``.safetensors`` files, both ways, strictly.

A model's key table is a list of :class:`Rule`: their key, our parameter, and the :class:`Transform` between
them. The same table loads, saves, and renames gradients. Reading is memory-mapped; no pickle is opened.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scratch_core import models
from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.parallel import shardings

if TYPE_CHECKING:
    from jax.sharding import Mesh

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

Model = TypeVar("Model", bound=models.PretrainedModel)
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """``ours = theirs.reshape(split).transpose(order)``, and its inverse.

    ``split`` gives, for each axis of theirs, the sizes it is split into, or None to leave it whole.
    ``order`` permutes the axes after the split. None for either: nothing to do.
    """

    split: tuple[tuple[int, ...] | None, ...] | None = None
    order: tuple[int, ...] | None = None

    def _groups(self, rank: int) -> list[tuple[int, ...] | None]:
        return list(self.split or (None,) * rank)

    def _order(self, rank: int) -> tuple[int, ...]:
        return self.order or tuple(range(rank))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of theirs for a shape of ours."""
        order = self._order(len(shape))
        sizes = iter([shape[order.index(axis)] for axis in range(len(shape))])
        return tuple(math.prod([next(sizes) for _ in group or (0,)]) for group in self._groups(len(shape)))

    def to_theirs(self, ours: Any) -> Any:
        """Return ours (numpy or jax) in their layout."""
        order = self._order(ours.ndim)
        axes = tuple(order.index(axis) for axis in range(ours.ndim))
        return ours.transpose(axes).reshape(self.their_shape(ours.shape))

    def read(self, theirs: Any, index: Index) -> np.ndarray:
        """Return ``ours[index]``, reading just that part of ``theirs``, an array or a safetensors slice."""
        order = self._order(len(index))
        parts = [index[order.index(axis)] for axis in range(len(index))]  # of theirs, after the split
        outer, inner, sizes = [], [], []
        for group in self._groups(len(index)):
            part, *rest = [parts.pop(0) for _ in group or (0,)]
            width = math.prod((group or (1,))[1:])
            outer.append(slice(part.start * width, part.stop * width))
            inner += [slice(None), *rest]
            sizes += [part.stop - part.start, *(group or (1,))[1:]]
        block = np.asarray(theirs[tuple(outer)]) if outer else np.asarray(theirs)
        return block.reshape(sizes)[tuple(inner)].transpose(order)


same = Transform()
transpose = Transform(order=(1, 0))
"""A linear layer: theirs [out, in], ours [in, out]."""
conv = Transform(order=(2, 3, 1, 0))
"""A convolution: theirs [out, in, rows, columns], ours [rows, columns, in, out]."""
conv1d = Transform(order=(2, 1, 0))
"""A one-dimensional convolution: theirs [out, in, taps], ours [taps, in, out]."""


def split_out(N: int, H: int) -> Transform:
    """A projection to heads: theirs [N * H, D], ours [D, N, H]."""
    return Transform(((N, H), None), (2, 0, 1))


def split_in(N: int, H: int) -> Transform:
    """A projection from heads: theirs [D, N * H], ours [N, H, D]."""
    return Transform((None, (N, H)), (1, 2, 0))


def split_bias(N: int, H: int) -> Transform:
    """A bias of heads: theirs [N * H], ours [N, H]."""
    return Transform(((N, H),))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a key table; ``{i}`` in both names stands for the same number.

    ``dtype`` is the file's dtype of a tensor that does not follow the checkpoint's, such as a counter.
    """

    theirs: str
    ours: str
    transform: Transform = same
    dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Copy:
    """A key of theirs that some files repeat although it is tied to ``of``: checked to be equal, never written."""

    theirs: str
    of: str


# ---------------------------------------------------------------------------------------------- public


def load(
    folder: str | Path, dtype: Any = None, mesh: "Mesh | None" = None, *, model_class: type[Model] | None = None
) -> Model:
    """Return the model of a Hugging Face folder or Hub id, in evaluation mode.

    dtype None: float32 in memory and in computation, and :func:`save` writes the checkpoint's own dtype
    again. A given dtype holds for the parameters and the computation, and is what :func:`save` writes.
    mesh: each parameter goes straight to the devices that hold its parts. model_class: what config.json's
    "architectures" picks unless given. Raises CheckpointError or ConfigError.
    """
    folder = resolve(folder)
    fields = read_json(folder / "config.json")
    if fields.get("quantization_config"):
        raise ConfigError(f"{folder} holds quantised weights (quantization_config), which are not implemented")
    if model_class is None:
        model_class = cast("type[Model]", models.find_class(fields))
    elif fields.get("architectures") and not model_class.recognises(fields):
        names = ", ".join(map(str, fields["architectures"]))
        raise ConfigError(
            f"{folder} holds {names}; {model_class.__name__} reads {', '.join(model_class.architectures)}"
        )
    config = model_class.Config.from_hf(fields)
    compute = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(compute, jnp.floating):
        raise ConfigError(f"dtype={compute.name} must be a floating-point type, such as float32 or bfloat16")
    abstract = nnx.eval_shape(lambda: model_class(config, dtype=compute, rngs=nnx.Rngs(0)))
    graphdef, learned, rest = nnx.split(abstract, _is_learned, ...)
    targets = flatten(learned)
    places = shardings(targets, mesh, model_class.axes) if mesh is not None else {}

    with open_folder(folder) as files:
        plan = _match(model_class, config, targets, files)
        stored = {files[key].get_dtype() for key, _ in plan.values()}
        values = {}
        for path, (key, transform) in plan.items():
            target = targets[path]
            kind = compute if jnp.issubdtype(target.dtype, jnp.floating) else target.dtype
            values[path] = _place(files[key], transform, target.shape, kind, places.get(path))
    model = nnx.merge(graphdef, _fill(learned, values), _fill_rngs(rest))
    floats = stored & {"F64", "F32", "F16", "BF16"}
    model.checkpoint_dtype = DTYPES[floats.pop()].name if dtype is None and len(floats) == 1 else compute.name
    model.eval()
    model.read_companions(folder)
    return model


def save(model: models.PretrainedModel, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and model.safetensors, or shards of at most ``shard_bytes`` with an index.

    Files appear whole or not at all; the config comes last. Other files in the folder stay.
    Raises CheckpointError if the folder cannot be written.
    """
    folder = Path(folder)
    tensors = to_hf(model)
    shards = _shards(tensors, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    dtype = model.checkpoint_dtype or str(next(iter(tensors.values())).dtype)
    fields = model.config.to_hf()
    if "model_type" in fields:  # else an older layout than Hugging Face's, whose readers refuse fields that they lack
        fields = {"architectures": [model.architectures[0]], "torch_dtype": dtype, **fields}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            written = []
            for name, keys in zip(names, shards, strict=True):
                save_file({key: tensors[key] for key in keys}, Path(temporary, name), metadata={"format": "pt"})
                written.append(name)
            if len(shards) > 1:
                total = sum(tensor.nbytes for tensor in tensors.values())
                weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
                _write_json(Path(temporary, INDEX), {"metadata": {"total_size": total}, "weight_map": weight_map})
                written.append(INDEX)
            _write_json(Path(temporary, "config.json"), fields)
            for name in (*written, "config.json"):
                os.replace(Path(temporary, name), folder / name)
        for stale in {*folder.glob("model-*-of-*.safetensors"), folder / SINGLE, folder / INDEX}:
            if stale.name not in written:
                stale.unlink(missing_ok=True)
        model.write_companions(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write the model to {folder}: {error}") from error


def to_hf(model: models.PretrainedModel, state: Any = None) -> dict[str, np.ndarray]:
    """Return {their key: array} of the model's parameters and running statistics, in the dtype that save writes.

    ``state``: any state or tree of the parameters' structure, such as gradients, is renamed and laid out
    likewise, keeping its dtypes; just the keys it holds are returned. Raises CheckpointError if the key
    table has no row for one of them.
    """
    rules = [rule for rule in model.rules(model.config) if isinstance(rule, Rule)]
    ours = flatten(nnx.state(model, _is_learned) if state is None else state)
    result, missing = {}, []
    for path, value in ours.items():
        found = _find(rules, path)
        if found is None:
            missing.append(path)
            continue
        rule, key = found
        array = rule.transform.to_theirs(np.asarray(jax.device_get(value)))
        if state is None and rule.dtype:
            array = array.astype(rule.dtype)
        elif state is None and model.checkpoint_dtype and jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.dtype(model.checkpoint_dtype))
        result[key] = np.asarray(array, order="C")
    if missing:
        raise CheckpointError(f"the key table of {type(model).__name__} has no row for: {', '.join(missing)}")
    return result


def flatten(state: Any) -> dict[str, Any]:
    """Return {dotted path: array} of an nnx state or of nested mappings and sequences."""
    if isinstance(state, nnx.State):
        state = nnx.to_pure_dict(state)
    flat: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, Mapping | list | tuple):
            for name, child in value.items() if isinstance(value, Mapping) else enumerate(value):
                visit(f"{path}.{name}" if path else str(name), child)
        elif value is not None:
            flat[path] = value[...] if isinstance(value, nnx.Variable) else value

    visit("", state)
    return flat


# ---------------------------------------------------------------------------------------------- reading


def resolve(folder: str | Path) -> Path:
    """Return a local folder; a name like ``owner/model`` that is none is fetched from the Hugging Face Hub.

    Raises CheckpointError if there is no such folder, or the Hub cannot be used.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file: name the folder that holds config.json and the weights")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) or str(folder).startswith("."):
        raise CheckpointError(f"there is no folder {path}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"there is no folder {path}; to fetch it from the Hugging Face Hub install `scratch-core[hub]`"
        ) from None
    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise CheckpointError(f"there is no folder {path}, and the Hub could not provide it: {error}") from error


@contextlib.contextmanager
def open_folder(folder: Path) -> Generator[dict[str, Any]]:
    """Yield {key: safetensors slice} of all weight files of a folder.

    Raises CheckpointError for missing, damaged or unsafe files.
    """
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for name, keys in _weight_files(folder).items():
            file = stack.enter_context(_open(folder / name))
            held = set(file.keys())
            if absent := sorted(set(keys or ()) - held):
                raise CheckpointError(f"{folder / INDEX} places keys in {name} that it lacks: {', '.join(absent)}")
            for key in sorted(held):
                if key in files:
                    raise CheckpointError(f"key {key!r} stands in two files of {folder}, the second is {name}")
                files[key] = file.get_slice(key)
        yield files


def _weight_files(folder: Path) -> dict[str, list[str] | None]:
    """Return {file name: the keys it must hold, None if unknown}, from the index where there is one."""
    if (folder / SINGLE).exists():
        return {SINGLE: None}
    if not (folder / INDEX).exists():
        for path in sorted(folder.iterdir()):
            if path.suffix in PICKLES:
                raise CheckpointError(
                    f"{path} is a pickle, which can run code when opened, and is refused: "
                    f"convert it to {SINGLE} with a tool that you trust"
                )
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map")
    names: dict[str, list[str] | None] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or re.search(r"[/\\\0]", name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} places {key!r} in {name!r}: a shard must be a .safetensors file of the same folder"
            )
        cast("list[str]", names.setdefault(name, [])).append(key)
    if absent := sorted(name for name in names if not (folder / name).exists()):
        raise CheckpointError(f"{folder} lacks shards that its index names: {', '.join(absent)}")
    return names


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        start = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80" or start == b"PK\x03\x04":
            raise CheckpointError(f"{path} is a pickle or a torch archive under another name, and is refused") from None
        raise CheckpointError(f"{path} is truncated, damaged or no safetensors file: {error}") from error


def _is_learned(path: Any, value: Any) -> bool:
    return isinstance(value, nnx.Param | nnx.BatchStat) or getattr(value, "type", None) in (nnx.Param, nnx.BatchStat)


def _find(rules: Iterable[Rule], path: str) -> tuple[Rule, str] | None:
    """Return the rule of one of our paths, and their key for it."""
    for rule in rules:
        pattern = re.escape(rule.ours).replace(r"\{i\}", "(?P<i>[0-9]+)").replace(r"\{j\}", "(?P<j>[0-9]+)")
        if found := re.fullmatch(pattern, path):
            return rule, rule.theirs.format(**found.groupdict())
    return None


def _match(
    model_class: type[models.PretrainedModel], config: Any, targets: dict[str, Any], files: dict[str, Any]
) -> dict[str, tuple[str, Transform]]:
    """Return {our path: (their key in the file, transform)}. Raises one CheckpointError with all that is wrong."""
    rows = model_class.rules(config)
    rules, copies = [r for r in rows if isinstance(r, Rule)], {r.theirs: r.of for r in rows if isinstance(r, Copy)}
    spelled = {model_class.rename(key): key for key in files}
    plan: dict[str, tuple[str, Transform]] = {}
    unfilled, wrong = [], []
    for path, target in targets.items():
        found = _find(rules, path)
        if found is None:
            raise ConfigError(f"the key table of {model_class.__name__} has no row for its parameter {path}")
        rule, key = found
        if key not in spelled:
            unfilled.append(f"{key} (for {path})")
            continue
        expected = rule.transform.their_shape(target.shape)
        shape, dtype = tuple(files[spelled[key]].get_shape()), files[spelled[key]].get_dtype()
        if shape != expected:
            wrong.append(f"{key}: the config asks for {list(expected)}, the file has {list(shape)}")
        elif dtype not in DTYPES:
            wrong.append(f"{key}: dtype {dtype} is not supported (supported: {', '.join(DTYPES)})")
        plan[path] = (spelled[key], rule.transform)
    used = {key for key, _ in plan.values()}
    unknown = []
    for key, stored in spelled.items():
        if stored in used or any(re.fullmatch(pattern, key) for pattern in model_class.buffers):
            continue
        if key not in copies:
            unknown.append(stored)
        elif copies[key] in spelled and not np.array_equal(files[stored][:], files[spelled[copies[key]]][:]):
            wrong.append(f"{key}: must equal {copies[key]}, to which the config ties it")
    problems = [
        f"{title}:\n  " + "\n  ".join(sorted(lines))
        for title, lines in (
            ("missing in the file", unfilled),
            ("in the file but not in the model", unknown),
            ("of the wrong shape, dtype or value", wrong),
        )
        if lines
    ]
    if problems:
        raise CheckpointError(f"the checkpoint does not fit {model_class.__name__}\n" + "\n".join(problems))
    return plan


def _place(theirs: Any, transform: Transform, shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    """Return our array, read once from the file, as one array or each part on its devices."""
    parts: dict[Any, np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        bounds = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
        key = tuple((part.start, part.stop) for part in bounds)
        if key not in parts:
            block = transform.read(theirs if shape else theirs[...], bounds)
            parts[key] = block.astype(dtype, order="C")
        return parts[key]

    try:
        if sharding is None:
            return jnp.asarray(read(None))
        return jax.make_array_from_callback(shape, sharding, read)
    except SafetensorError as error:
        raise CheckpointError(f"a tensor of shape {list(shape)} cannot be read: {error}") from error


def _fill(state: Any, values: Mapping[str, jax.Array]) -> Any:
    """Return an abstract nnx state with the arrays of ``values`` in place."""
    filled = {tuple(path): leaf.replace(values[".".join(map(str, path))]) for path, leaf in nnx.to_flat_state(state)}
    return nnx.from_flat_state(filled)


def _fill_rngs(state: Any) -> Any:
    """Return the rest of an abstract state with a fresh random stream for each layer that draws numbers."""
    filled = {}
    for number, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        value = leaf.get_value()
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            concrete = jax.random.fold_in(jax.random.key(0), number)
        else:
            concrete = jnp.zeros(value.shape, value.dtype)
        filled[tuple(path)] = leaf.replace(concrete)
    return nnx.from_flat_state(filled)


# ---------------------------------------------------------------------------------------------- writing


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> list[list[str]]:
    """Return the keys of each shard, filled in order up to ``limit`` bytes."""
    shards, size = [[]], 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return shards


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
