"""Reading a ``config.json``: every field is checked, and a value that is not implemented is an error."""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratch_core.errors import CheckpointError, ConfigError, ScratchError

REQUIRED = object()
"""Default of :func:`field` for a field that must be there."""

MAX_JSON_BYTES = 16 * 2**20
"""Bytes of the largest JSON file that is read; the index of 100,000 tensors has 9 million."""


def size_of_file(path: Path, error: type[ScratchError] = CheckpointError) -> int:
    """Return the bytes of a regular file.

    Raises ``error`` for a folder, and for a FIFO, a socket or a device, which may never end; OSError if it is missing.
    """
    found = path.stat()
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    kind = next((kind for holds, kind in kinds.items() if holds(found.st_mode)), "a device")
    raise error(f"{path} is {kind}, and only regular files are read: name a file, or copy the contents into one")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; Infinity may be bare or, as transformers 5 writes it, ``{"__float__": ...}``.

    Raises CheckpointError if the file is missing, unreadable, no regular file, too large, not JSON, or not an object.
    """
    try:
        if (size := size_of_file(path)) > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes, more than the {MAX_JSON_BYTES:,} of any such file, and is refused unread: "
                "take the file that belongs to the weights"
            )
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_float)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: name the folder of a checkpoint") from None
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply for JSON: take an intact copy of the file") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Give yourself permission to read it"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Take an intact copy of the file") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, found {type(value).__name__}: take an intact copy of the file"
        )
    return value


def _float(value: dict[str, Any]) -> Any:
    return float(value["__float__"]) if set(value) == {"__float__"} else value


def field(fields: Mapping[str, Any], name: str, types: type | tuple[type, ...], default: Any = REQUIRED) -> Any:
    """Return ``fields[name]``, or the default where it is absent or null.

    Raises ConfigError if it is required and absent, or not of one of ``types`` (an int passes for a float).
    """
    value = fields.get(name)
    if value is None:
        if default is REQUIRED:
            raise ConfigError(
                f"config.json has no field {name!r}, which this architecture needs: "
                "add it, or take the config.json that belongs to the weights"
            )
        return default
    allowed = types if isinstance(types, tuple) else (types,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(
                f"config.json: {name} has {value.bit_length()} bits, too many for a number: correct it"
            ) from None
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        expected = " or ".join(each.__name__ for each in allowed)
        raise ConfigError(
            f"config.json: {name}={_short(value)} must be {expected}, found {type(value).__name__}: correct it, or "
            "take the config.json that belongs to the weights"
        )
    return value


def integers(fields: Mapping[str, Any], name: str, default: Any = REQUIRED) -> tuple[int, ...]:
    """Return ``fields[name]``, a list of integers, as a tuple; absent or malformed as for :func:`field`."""
    values = field(fields, name, (list, tuple), default)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"config.json: {name}={_short(values)} must be a list of integers: correct it")
    return tuple(values)


def token(fields: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """Return ``fields[name]``, a token such as bos_token_id: the default where it is absent, None where it is null.

    ``default`` is the default in the reference's configuration class, which config.json may leave out. Raises
    ConfigError.
    """
    return field(fields, name, int, None) if name in fields else default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + " ..."


def tokens(
    fields: Mapping[str, Any], name: str, default: int | tuple[int, ...] | None = None
) -> int | tuple[int, ...] | None:
    """Return ``fields[name]``, a token or a list of them such as eos_token_id; otherwise as :func:`token`."""
    if name not in fields:
        return default
    return integers(fields, name) if isinstance(fields[name], list) else field(fields, name, int, None)


def unsupported(fields: Mapping[str, Any], **implemented: Any) -> None:
    """Raise ConfigError that names each field whose value would change the result in a way that is not implemented.

    Each keyword is a field with the one value implemented, or a tuple of them. Absent and null fields pass.
    """
    wrong = []
    for name, allowed in implemented.items():
        values = allowed if isinstance(allowed, tuple) else (allowed,)
        found = fields.get(name)
        if found is not None and found not in values:
            wrong.append(f"{name}={found!r} (implemented: {', '.join(map(repr, values))})")
    if wrong:
        raise ConfigError(
            f"config.json has values that are not implemented: {'; '.join(wrong)}. Choose a checkpoint without them"
        )


def positive(config: Any, *names: str) -> None:
    """Raise ConfigError unless each named field of a configuration is greater than 0, and less than 2**31."""
    for name in names:
        if not 0 < getattr(config, name) < 2**31:
            raise ConfigError(
                f"{name}={getattr(config, name)} must be greater than 0 and less than 2**31: correct the configuration"
            )


def architectures(fields: Mapping[str, Any]) -> list[str]:
    """Return config.json's "architectures". Raises ConfigError if that is not a list of names."""
    names = fields.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"config.json: architectures={_short(names)} must be a list of names: correct it, as in "
            '["LlamaForCausalLM"]'
        )
    return names
