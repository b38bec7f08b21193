"""Makes a model from a folder: matches every key with a parameter, and reads every tensor once, onto its devices."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from scratch_core.config import architectures, read_json
from scratch_core.errors import CheckpointError, ConfigError, ScratchError
from scratch_core.parallel import shardings, use_mesh
from scratch_core.paths import matches, unmatched
from scratch_core.weights.files import DTYPES, open_folder, resolve
from scratch_core.weights.key_table import Copy, Index, Rule, find_rule, flatten, is_learned

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding

Model = TypeVar("Model")


class Source(NamedTuple):
    """Where one of our parameters comes from: its row of the key table, and its keys as the file spells them."""

    rule: Rule
    keys: list[str]


def load(
    folder: str | Path,
    model_class: type[Model],
    *,
    dtype: Any = None,
    mesh: "Mesh | None" = None,
    config: Any = None,
    fresh: Sequence[str] = (),
    ignore: Sequence[str] = (),
    rngs: nnx.Rngs | None = None,
    allow_nonfinite: bool = False,
) -> Model:
    """Return the model of a Hugging Face folder or Hub id as ``model_class``, in evaluation mode.

    dtype None: float32 in memory and in computation, and :func:`save` writes the checkpoint's own dtype
    again. A given dtype holds for the parameters and the computation, and :func:`save` writes it.
    mesh: each part of each parameter is read directly onto its device. config: the configuration to build; None: the
    one that config.json describes.

    Loading is strict, with two exceptions: parameters of ours that match ``fresh`` (such as "classifier.*") are
    initialised with ``rngs`` (default: ``nnx.Rngs(0)``) instead of read, and keys of theirs that match ``ignore``
    (such as "cls.*") are skipped. Use them to put a new head on a trained trunk, or to load a folder without a head,
    such as that of a LlamaModel. An array with NaN or infinity is an error, unless ``allow_nonfinite``. Raises
    CheckpointError or ConfigError.
    """
    cls: Any = model_class
    folder = resolve(folder)
    fields = read_json(folder / "config.json")
    if fields.get("quantization_config"):
        raise ConfigError(
            f"{folder} holds quantised weights (quantization_config), which are not implemented: "
            "use the checkpoint that they were made from"
        )
    names = architectures(fields)
    if names and not (cls.recognises(fields) or fresh or ignore):
        raise ConfigError(
            f"{folder} holds {', '.join(names)}; {cls.__name__} reads {', '.join(cls.architectures)}. To load what "
            "they share, name the parameters to initialise in fresh=(...) and the keys to skip in ignore=(...)"
        )
    compute = _float_dtype(jnp.float32 if dtype is None else dtype)

    with open_folder(folder) as files:
        config, abstract = _describe(cls, fields, config, compute, len(files))
        graphdef, learned, rest = nnx.split(abstract, is_learned, ...)
        targets = flatten(learned)
        places = shardings(targets, mesh, cls.axes) if mesh is not None else {}
        prefix = next((cls.trunks[name] for name in names if name in cls.trunks), "")
        plan = _match(cls, config, targets, files, fresh, ignore, prefix)
        stored = {files[key].get_dtype() for source in plan.values() for key in source.keys}
        values = {}
        for path, source in plan.items():
            target = targets[path]
            kind = compute if jnp.issubdtype(target.dtype, jnp.floating) else target.dtype
            theirs = [files[key] for key in source.keys]
            values[path] = _place(source, theirs, target.shape, kind, places.get(path), allow_nonfinite)
    if missing := targets.keys() - values.keys():
        values |= _initialise(cls, config, compute, missing, places, rngs or nnx.Rngs(0))
    model: Any = nnx.merge(graphdef, _fill(learned, values), _fill_rngs(rest))
    floats = stored & {"F64", "F32", "F16", "BF16"}
    model.checkpoint_dtype = DTYPES[floats.pop()].name if dtype is None and len(floats) == 1 else compute.name
    if mesh is not None:
        use_mesh(model, mesh)
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
    model_class: Any, fields: Mapping[str, Any], config: Any, dtype: np.dtype, num_tensors: int
) -> tuple[Any, Any]:
    """Return the configuration, and its model with shapes instead of arrays. Raises ConfigError, CheckpointError."""
    try:
        config = model_class.Config.from_hf(fields) if config is None else config
        layers = getattr(config, "num_layers", 0)
        if layers > num_tensors:  # each layer has at least one; building so many may never end
            raise CheckpointError(
                f"config.json asks for {layers:,} layers, the weights are {num_tensors:,} tensors: one of the two "
                "files is not of this checkpoint. Download both again"
            )
        return config, nnx.eval_shape(lambda: model_class(config, dtype=dtype, rngs=nnx.Rngs(0)))
    except ScratchError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json describes no {model_class.__name__}: {error}") from error


def _match(
    model_class: Any,
    config: Any,
    targets: Mapping[str, Any],
    files: Mapping[str, Any],
    fresh: Sequence[str],
    ignore: Sequence[str],
    prefix: str,
) -> dict[str, Source]:
    """Return {our path: where it comes from} without fresh parameters. One CheckpointError lists all that is wrong.

    ``prefix`` is the text that the keys of a bare trunk lack; "" for a whole model.
    """
    if unused := unmatched(fresh, targets):
        raise ConfigError(
            f"fresh={', '.join(unused)} matches no parameter of {model_class.__name__}; its parameters are: "
            + ", ".join(sorted({path.partition(".")[0] + ".*" for path in targets}))
        )
    rows = model_class.rules(config)
    rules, copies = [r for r in rows if isinstance(r, Rule)], {r.theirs: r.of for r in rows if isinstance(r, Copy)}
    spelled = {model_class.rename(key if key.startswith(prefix) else prefix + key): key for key in files}
    plan: dict[str, Source] = {}
    skipped = {key for key in spelled if matches(key, *ignore, *model_class.unread) or matches(spelled[key], *ignore)}
    unfilled, wrong = [], []
    for path, target in targets.items():
        found = find_rule(rules, path, target.shape)
        if found is None:
            raise ConfigError(f"the key table of {model_class.__name__} has no row for its parameter {path}")
        rule, keys = found
        if matches(path, *fresh):
            skipped.update(keys)
            continue
        if absent := [key for key in keys if key not in spelled]:
            unfilled += [f"{key} (for {path})" for key in absent]
            continue
        expected = rule.their_shape(target.shape)
        for key in keys:
            shape, dtype = tuple(files[spelled[key]].get_shape()), files[spelled[key]].get_dtype()
            if shape != expected:
                wrong.append(f"{key}: the config asks for {list(expected)}, the file has {list(shape)}")
            elif dtype not in DTYPES:
                wrong.append(f"{key}: dtype {dtype} is not supported (supported: {', '.join(DTYPES)})")
        plan[path] = Source(rule, [spelled[key] for key in keys])
    used = {key for source in plan.values() for key in source.keys}
    unknown = []
    for key, stored in spelled.items():
        if stored in used or key in skipped or any(re.fullmatch(pattern, key) for pattern in model_class.buffers):
            continue
        if key not in copies:
            unknown.append(stored)
        elif copies[key] in spelled and not np.array_equal(files[stored][:], files[spelled[copies[key]]][:]):
            wrong.append(f"{key}: must equal {copies[key]}, to which the config ties it")
    problems = [
        f"{title}:\n  " + "\n  ".join(sorted(lines))
        for title, lines in (
            ("missing in the file (fresh=(...) names parameters to initialise instead)", unfilled),
            ("in the file but not in the model (ignore=(...) names keys to skip)", unknown),
            ("of the wrong shape, dtype or value", wrong),
        )
        if lines
    ]
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit {model_class.__name__}\n" + "\n".join(problems) + "\n"
            "Take the config.json and the weights from one checkpoint"
        )
    return plan


def _place(
    source: Source, theirs: Sequence[Any], shape: tuple[int, ...], dtype: Any, sharding: Any, allow_nonfinite: bool
) -> jax.Array:
    """Return our array, read once from the file: whole, or with a sharding each part directly onto its devices."""
    parts: dict[Any, np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        bounds = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
        key = tuple((part.start, part.stop) for part in bounds)
        if key not in parts:
            block = source.rule.read(theirs if shape else [each[...] for each in theirs], bounds)
            parts[key] = block.astype(dtype, order="C")
            if not allow_nonfinite and not np.isfinite(parts[key]).all():
                raise CheckpointError(
                    f"{', '.join(source.keys)} holds NaN or infinity, and a model would compute only NaN with it: take "
                    "an earlier checkpoint, or allow it: allow_nonfinite=True, `scratch generate --allow-nonfinite`"
                )
        return parts[key]

    try:
        if sharding is None:
            return jnp.asarray(read(None))
        return jax.make_array_from_callback(shape, sharding, read)
    except SafetensorError as error:
        raise CheckpointError(f"{', '.join(source.keys)} cannot be read: {error}. Download the file again") from error


def _initialise(
    model_class: Any,
    config: Any,
    dtype: np.dtype,
    paths: set[str],
    places: "Mapping[str, NamedSharding]",
    rngs: nnx.Rngs,
) -> dict[str, jax.Array]:
    """Return the initial values of some parameters. The compiler removes the computation of all others."""

    def create(key: jax.Array) -> dict[str, jax.Array]:
        model = model_class(config, dtype=dtype, rngs=nnx.Rngs(key))
        initial = flatten(nnx.state(model, is_learned))
        floats = {path for path in paths if jnp.issubdtype(initial[path].dtype, jnp.floating)}
        return {path: initial[path].astype(dtype) if path in floats else initial[path] for path in paths}

    placed = {path: places[path] for path in paths} if places else None
    return jax.jit(create, out_shardings=placed)(rngs.params())


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
