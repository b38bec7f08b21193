"""Reading a ``config.json``: in both spellings that exist, and never past a field that we do not implement."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.layers.rope import Linear, Llama3, Rope

_REQUIRED = object()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; Infinity may be bare or, as transformers 5 writes it, ``{"__float__": ...}``.

    Raises CheckpointError if the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_float)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: name the folder of a checkpoint") from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _float(value: dict[str, Any]) -> Any:
    return float(value["__float__"]) if set(value) == {"__float__"} else value


def field(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
    """Return ``fields[name]``, or the default where it is absent or null.

    Raises ConfigError if it is required and absent, or not of ``kind`` (an int passes for a float).
    """
    value = fields.get(name)
    if value is None:
        if default is _REQUIRED:
            raise ConfigError(f"config.json has no field {name!r}, which this architecture needs")
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"config.json: {name} has {len(str(value))} digits, too many for a number") from None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise ConfigError(f"config.json: {name}={value!r} must be {expected}, found {type(value).__name__}")
    return value


def integers(fields: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
    """Return ``fields[name]``, a list of integers, as a tuple; absent or malformed as for :func:`field`."""
    values = field(fields, name, (list, tuple), default)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"config.json: {name}={values!r} must be a list of integers")
    return tuple(values)


def tokens(fields: Mapping[str, Any], name: str, default: Any = None) -> int | tuple[int, ...] | None:
    """Return ``fields[name]``, a token or a list of them, such as eos_token_id. Raises ConfigError."""
    value = field(fields, name, (int, list), default)
    return integers(fields, name) if isinstance(value, list) else value


def unsupported(fields: Mapping[str, Any], **implemented: Any) -> None:
    """Raise ConfigError naming each field whose value would change the result in a way we do not implement.

    Each keyword is a field with the one value implemented, or a tuple of them; absent and null pass.
    """
    wrong = []
    for name, allowed in implemented.items():
        values = allowed if isinstance(allowed, tuple) else (allowed,)
        found = fields.get(name)
        if found is not None and found not in values:
            wrong.append(f"{name}={found!r} (implemented: {', '.join(map(repr, values))})")
    if wrong:
        raise ConfigError("config.json asks for what is not implemented: " + "; ".join(wrong))


def positive(config: Any, *names: str) -> None:
    """Raise ConfigError unless each named field of a configuration is greater than 0, and less than 2**31."""
    for name in names:
        if not 0 < getattr(config, name) < 2**31:
            raise ConfigError(f"{name}={getattr(config, name)} must be greater than 0 and less than 2**31")


def read_rope(fields: Mapping[str, Any], default_theta: float = 10_000.0) -> Rope:
    """Return the rotary embedding of a config.json, spelled ``rope_parameters`` or ``rope_theta`` + ``rope_scaling``.

    Raises ConfigError for an unknown type, a missing or malformed number, or a partial rotation.
    """
    parameters = field(fields, "rope_parameters", dict, None)
    if parameters is None:
        parameters = dict(field(fields, "rope_scaling", dict, {}))
        parameters.setdefault("rope_theta", field(fields, "rope_theta", float, default_theta))
    unsupported(fields, partial_rotary_factor=(1, 1.0))
    unsupported(parameters, partial_rotary_factor=(1, 1.0))
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = _finite(parameters, "rope_theta", default_theta)
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, Linear(_finite(parameters, "factor")))
    if kind == "llama3":
        low, high = _finite(parameters, "low_freq_factor"), _finite(parameters, "high_freq_factor")
        length = field(parameters, "original_max_position_embeddings", int)
        return Rope(theta, Llama3(_finite(parameters, "factor"), low, high, length))
    raise ConfigError(f"rope_type={kind!r} is not implemented; known types are 'default', 'linear' and 'llama3'")


def _finite(fields: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> float:
    value = field(fields, name, float, default)
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"config.json: {name}={value} must be a finite number greater than 0")
    return value


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """Return ``rope_theta`` and ``rope_scaling``, the spelling that every version of transformers reads."""
    match rope.scaling:
        case None:
            scaling = None
        case Linear(factor):
            scaling = {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3(factor, low, high, length):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
