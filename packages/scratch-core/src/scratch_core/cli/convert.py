"""`scratch convert`: a Hugging Face folder to an Orbax folder and back, without loss.

An Orbax folder holds config.json and the tokenizer's files as they were, `orbax/` with the parameters in our own
layout and the checkpoint's dtype (digests included, see train/checkpoints.py), and `orbax.json`, which marks it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import scratch_core
from scratch_core import registry, weights
from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.folders import why_not_written, working_folder
from scratch_core.train.checkpoints import Checkpoints

NOTE = "orbax.json"
COMPANIONS = (
    "tokenizer*",
    "scratch_tokenizer.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
)


def convert(source: str, destination: str) -> None:
    """Convert ``source`` into the new folder ``destination``, which appears whole or not at all.

    Raises CheckpointError if ``source`` cannot be read or ``destination`` cannot be written, ConfigError if
    ``destination`` is not empty.
    """
    src, dst = weights.resolve(source), Path(destination)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConfigError(f"{dst} already exists and is not empty: choose another destination")
    dst.parent.mkdir(parents=True, exist_ok=True)
    to_orbax = not (src / NOTE).exists()
    try:
        with working_folder(dst.parent, f".{dst.name}-") as temporary:
            made = temporary / "made"
            made.mkdir()
            (_to_orbax if to_orbax else _to_hugging_face)(src, made)
            for pattern in COMPANIONS:
                for path in src.glob(pattern):
                    shutil.copyfile(path, made / path.name)
            if dst.exists():
                dst.rmdir()
            made.rename(dst)
    except OSError as error:
        needed = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())
        raise CheckpointError(f"{dst} cannot be written: {why_not_written(error, dst.parent, needed)}") from error
    print(f"{src} -> {dst} ({'Orbax' if to_orbax else 'Hugging Face'})")


def _to_orbax(src: Path, dst: Path) -> None:
    model = scratch_core.load(src)
    dtype = model.checkpoint_dtype
    state = jax.tree.map(lambda x: _cast(x, dtype), _learned(model)[1])
    checkpoints = Checkpoints(dst / "orbax", keep=1)
    checkpoints.save(0, state)
    checkpoints.close()
    shutil.copyfile(src / "config.json", dst / "config.json")
    (dst / NOTE).write_text(json.dumps({"format": 1, "dtype": dtype}) + "\n")


def _to_hugging_face(src: Path, dst: Path) -> None:
    fields, note = read_json(src / "config.json"), read_json(src / NOTE)
    if note.get("format") != 1:
        raise CheckpointError(
            f"{src / NOTE}: format={note.get('format')!r} is not known; expected 1: convert the original folder again"
        )
    model_class = registry.find_class(fields)
    config = model_class.Config.from_hf(fields)
    graphdef, abstract, rest = _learned(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: _cast(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), note["dtype"]), abstract)
    if not (src / "orbax").is_dir():
        raise CheckpointError(f"{src} has no folder orbax: name a folder that `scratch convert` made")
    checkpoints = Checkpoints(src / "orbax", keep=1)
    found = checkpoints.restore(like)
    checkpoints.close()
    if found is None:
        raise CheckpointError(f"{src / 'orbax'} holds no step: convert the original folder again")
    # Variables that are not learned (RNG) stay abstract, because they are not written.
    scratch_core.save(nnx.merge(graphdef, nnx.State(found.state), rest), dst)


def _learned(model: Any) -> tuple[Any, Any, Any]:
    graphdef, learned, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    return graphdef, nnx.to_pure_dict(learned), rest


def _cast(x: Any, dtype: str | None) -> Any:
    """Return ``x`` (an array, or the shape of one) in ``dtype`` if it is floating."""
    if dtype is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)
    return x.astype(jnp.dtype(dtype))
