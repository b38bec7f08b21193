"""From a folder to a model: every key matched with a parameter, every tensor read once, straight to its devices."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from scratch_core import models
from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError, ScratchError
from scratch_core.parallel import shardings
from scratch_core.weights.files import DTYPES, open_folder, resolve
from scratch_core.weights.key_table import Copy, Index, Rule, Transform, find_rule, flatten, is_learned

if TYPE_CHECKING:
    from jax.sharding import Mesh

Model = TypeVar("Model", bound=models.PretrainedModel)


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
    elif models.architectures(fields) and not model_class.recognises(fields):
        names = ", ".join(models.architectures(fields))
        raise ConfigError(
            f"{folder} holds {names}; {model_class.__name__} reads {', '.join(model_class.architectures)}"
        )
    compute = _float_dtype(jnp.float32 if dtype is None else dtype)

    with open_folder(folder) as files:
        config, abstract = _describe(model_class, fields, compute, len(files))
        graphdef, learned, rest = nnx.split(abstract, is_learned, ...)
        targets = flatten(learned)
        places = shardings(targets, mesh, model_class.axes) if mesh is not None else {}
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


def _float_dtype(dtype: Any) -> np.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ConfigError(f"dtype={dtype} must be a floating-point type, such as float32 or bfloat16")
    return found


def _describe(
    model_class: type[models.PretrainedModel], fields: Mapping[str, Any], dtype: np.dtype, num_tensors: int
) -> tuple[Any, Any]:
    """Return the configuration of a config.json, and its model without memory. Raises ConfigError, CheckpointError."""
    try:
        config = model_class.Config.from_hf(fields)
        layers = sum(getattr(config, "depths", ())) + getattr(config, "num_layers", 0)
        if layers > num_tensors:  # each layer holds one at least; to build so many may never end
            raise CheckpointError(f"config.json asks for {layers:,} layers, the weights are {num_tensors:,} tensors")
        return config, nnx.eval_shape(lambda: model_class(config, dtype=dtype, rngs=nnx.Rngs(0)))
    except ScratchError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json describes no {model_class.__name__}: {error}") from error


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
        found = find_rule(rules, path)
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
