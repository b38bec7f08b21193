"""Reads and writes LoRA adapters, without their base model, in the format of the PEFT library.

adapter_config.json holds rank and alpha. adapter_model.safetensors has two matrices for each adapted layer, under the
layer's name in the reference, which comes from the model's key table:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [r, in]     our A, transposed
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [out, r]    our B, transposed
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.layers.lora import LoRALinear
from scratch_core.train.lora import adapters, check_bare, linear_layers, replace_layer, sides
from scratch_core.weights.files import open_file
from scratch_core.weights.key_table import Rule, find_rule
from scratch_core.weights.saving import to_hf

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

IMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "target_parameters": ([], None),
    "trainable_token_indices": ([], None),
    "layer_replication": ([], None),
    "lora_bias": (False, None),
}
"""Fields of adapter_config.json that change the result, with the values that are implemented."""


def save_lora(model: Any, folder: str | Path) -> None:
    """Write only the adapters, in float32 and PEFT's format; other files in the folder stay.

    Raises ConfigError if there are no adapters, or if PEFT's format cannot hold them because ranks or scales differ or
    a kernel is not a matrix in the reference. Raises CheckpointError if the folder cannot be written.
    """
    adapted, tensors, targets = adapters(model), {}, []
    forms = {(layer.rank, layer.alpha) for layer in adapted.values()}
    if len(forms) > 1:
        raise ConfigError(f"the adapters differ in (rank, alpha): {sorted(forms)}; one file holds one of each")
    for path, layer in adapted.items():
        name = _their_name(model, path, layer)
        if name is None:
            raise ConfigError(f"the key table of {type(model).__name__} has no matrix of the reference for {path}")
        a, b = np.asarray(layer.lora_a[...]), np.asarray(layer.lora_b[...])
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, layer.rank).T)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.reshape(layer.rank, -1).T)
        targets.append(name)
    ((rank, alpha),) = forms
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets,
        "bias": "none",
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / (WEIGHTS + ".partial")
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, folder / WEIGHTS)
        partial = folder / (CONFIG + ".partial")
        partial.write_text(json.dumps(fields, indent=2) + "\n")
        os.replace(partial, folder / CONFIG)
    except OSError as error:
        raise CheckpointError(f"cannot write the adapters to {folder}: {error}") from error


def load_lora(model: Any, folder: str | Path) -> list[str]:
    """Add the adapters in a folder, written by us or by PEFT, to a base model; return the paths of the adapted layers.

    Raises ConfigError for a kind of adapter that is not implemented, and CheckpointError if a file cannot be read or
    does not fit the model. After an error, the model is unchanged.
    """
    folder = Path(folder)
    rank, alpha = _read_config(folder / CONFIG)
    with open_file(folder / WEIGHTS) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
    _check_base(model, folder / WEIGHTS, {key: tensors.pop(key) for key in list(tensors) if ".lora_" not in key})
    if not tensors:
        raise CheckpointError(f"{folder / WEIGHTS} holds no adapter")
    layers = dict(linear_layers(model))
    names = {_their_name(model, path, layer): path for path, layer in layers.items()}
    wanted = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    if unknown := sorted(wanted - names.keys()):
        raise CheckpointError(
            f"{folder / WEIGHTS}: {type(model).__name__} has no linear layer {', '.join(unknown[:4])}: "
            "the adapter is of another model"
        )
    new = {}
    for name in sorted(wanted):
        layer = layers[names[name]]
        check_bare(names[name], layer)
        inputs, outputs = sides(layer)
        adapter = LoRALinear(layer, rank, alpha, rngs=nnx.Rngs(0))
        for letter, variable, shape in (("A", adapter.lora_a, (rank, inputs)), ("B", adapter.lora_b, (outputs, rank))):
            key = f"{PREFIX}{name}.lora_{letter}.weight"
            found = tensors.get(key)
            if found is None or found.shape != shape:
                has = "nothing" if found is None else list(found.shape)
                raise CheckpointError(f"{folder / WEIGHTS}: {key} must be {list(shape)}, the file has {has}")
            variable.set_value(np.ascontiguousarray(found.T).astype(np.float32).reshape(variable.shape))
        new[names[name]] = adapter
    for path, adapter in new.items():
        replace_layer(model, path, adapter)
    return list(new)


def _read_config(path: Path) -> tuple[int, float]:
    """Return rank and alpha. Raises ConfigError for a field whose value is not implemented."""
    fields = read_json(path)
    for name, values in IMPLEMENTED.items():
        if name in fields and fields[name] not in values:
            raise ConfigError(f"{path}: {name}={fields[name]!r} is not implemented; it must be {values[0]!r}")
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{path}: r={rank!r} must be a whole number above 0 and lora_alpha={alpha!r} a number")
    return rank, float(alpha)


def _check_base(model: Any, path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise CheckpointError if base weights that PEFT saved with the adapter differ from those of ``model``."""
    base = to_hf(model) if tensors else {}
    for key, value in tensors.items():
        own = base.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
        if own is None or not np.array_equal(own, value):
            raise CheckpointError(f"{path} holds {key}, which is not the base's: the adapter is of another base")


def _their_name(model: Any, path: str, layer: Any) -> str | None:
    """Return the reference's name of a linear layer, None if its kernel is not a matrix there."""
    rules = [rule for rule in model.rules(model.config) if isinstance(rule, Rule)]
    found = find_rule(rules, f"{path}.kernel", layer.kernel.shape)
    if found is None or found[0].stacked is not None:
        return None
    rule, (key,) = found
    rank = layer.kernel.ndim
    outputs = 1 if isinstance(layer.out_features, int) else len(layer.out_features)
    swapped = (*range(outputs, rank), *range(outputs))
    order = rule.transform.order
    return key.removesuffix(".weight") if order in (None, tuple(range(rank)), swapped) else None
