"""Writes a model to a folder that Hugging Face's libraries read. Files appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from scratch_core.errors import CheckpointError
from scratch_core.folders import why_not_written, working_folder
from scratch_core.layers.lora import LoRAParam
from scratch_core.parallel import to_host
from scratch_core.weights.files import INDEX, SINGLE
from scratch_core.weights.key_table import Rule, find_rule, flatten, is_learned, unstack

SHARD_BYTES = 5_000_000_000
SAVING = ".saving-"
"""The start of the name of the temporary folder in which files are written first."""


def save(model: Any, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and model.safetensors, or shards of at most ``shard_bytes`` with an index.

    Files appear whole or not at all; the config comes last. Other files in the folder stay. With several processes,
    each must call this, and only the first writes. Raises CheckpointError if the folder cannot be written, and for a
    model with LoRA adapters that are not merged.
    """
    if adapted := [path for path, _ in nnx.to_flat_state(nnx.state(model, LoRAParam))]:
        raise CheckpointError(
            f"{'.'.join(map(str, adapted[0][:-1]))} has a LoRA adapter, for which the base's files have no place: save "
            "merge_lora(model), or only the adapters with save_lora(model, folder)"
        )
    folder = Path(folder)
    tensors = to_hf(model)
    if jax.process_index():
        return
    shards = _shards(tensors, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    dtype = model.checkpoint_dtype or str(next(iter(tensors.values())).dtype)
    fields = model.config.to_hf()
    if "model_type" in fields:  # not in layouts older than Hugging Face's: their readers refuse unknown fields
        fields = {"architectures": [model.architectures[0]], "torch_dtype": dtype, **fields}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with working_folder(folder, SAVING) as temporary:
            written = []
            for name, keys in zip(names, shards, strict=True):
                save_file({key: tensors[key] for key in keys}, temporary / name, metadata={"format": "pt"})
                written.append(name)
            if len(shards) > 1:
                total = sum(tensor.nbytes for tensor in tensors.values())
                weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
                _write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
                written.append(INDEX)
            _write_json(temporary / "config.json", fields)
            for name in names:  # safetensors ignores the umask and makes its files readable only by their owner
                shutil.copymode(temporary / "config.json", temporary / name)
            for name in (*written, "config.json"):
                os.replace(temporary / name, folder / name)
        for stale in {*folder.glob("model-*-of-*.safetensors"), folder / SINGLE, folder / INDEX}:
            if stale.name not in written:
                stale.unlink(missing_ok=True)
        model.write_companions(folder)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise CheckpointError(
            f"{folder}: the model cannot be saved: {why_not_written(error, folder, needed)}"
        ) from error


def to_hf(model: Any, state: Any = None) -> dict[str, np.ndarray]:
    """Return {their key: array} of the model's parameters and running statistics, in the dtype that save writes.

    LoRA adapters are left out: the parameters of their base model are returned.

    ``state``: a state or tree of the parameters' structure, such as gradients, is renamed and laid out in the same way
    and keeps its dtypes. Only the keys that it holds are returned. Raises CheckpointError if the key table has no row
    for one of them.
    """
    rules = [rule for rule in model.rules(model.config) if isinstance(rule, Rule)]
    ours = unstack(flatten(nnx.state(model, is_learned) if state is None else state))
    result, missing = {}, []
    for path, value in ours.items():
        found = find_rule(rules, path, value.shape)
        if found is None:
            missing.append(path)
            continue
        rule, keys = found
        for key, part in zip(keys, rule.to_theirs(to_host(value)), strict=True):
            array = part
            if state is None and rule.dtype:
                array = array.astype(rule.dtype)
            elif state is None and model.checkpoint_dtype and jnp.issubdtype(array.dtype, jnp.floating):
                array = array.astype(jnp.dtype(model.checkpoint_dtype))
            result[key] = np.asarray(array, order="C")
    if missing:
        raise CheckpointError(f"the key table of {type(model).__name__} has no row for: {', '.join(missing)}")
    return result


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
