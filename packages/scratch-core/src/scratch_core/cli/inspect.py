"""`scratch inspect`: what a folder holds."""

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from scratch_core import registry
from scratch_core.cli.output import console
from scratch_core.config import architectures, read_json
from scratch_core.errors import CheckpointError, ConfigError


def inspect(folder: str | Path) -> None:
    """Print what ``folder`` holds, from config.json and the safetensors headers alone. Raises CheckpointError."""
    from scratch_core import weights

    folder = weights.resolve(folder)
    fields = read_json(folder / "config.json")
    with weights.open_folder(folder):  # the checks of a load: names, index, truncation
        pass
    headers = {folder / name: read_header(folder / name) for name in weights.weight_files(folder)}
    tensors = [tensor for header in headers.values() for tensor in header.values()]
    dtypes = Counter()
    for tensor in tensors:
        dtypes[tensor["dtype"]] += math.prod(tensor["shape"])

    output = console()
    try:
        model_class = registry.find_class(fields)
        loads = f"{model_class.__name__} of {top_package(model_class).replace('_', '-')}"
    except ConfigError:
        loads = "no installed package"
    output.print(f"{folder}", highlight=False)
    output.print(f"  architecture  {', '.join(architectures(fields)) or 'not named'}, read by {loads}")
    output.print(f"  parameters    {sum(dtypes.values()):,} in {len(tensors)} tensors")
    output.print("  dtypes        " + ", ".join(f"{name} {count:,}" for name, count in dtypes.most_common()))
    table = Table("file", "size", "tensors", "parameters", box=None, padding=(0, 2), show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for path, header in headers.items():
        count = sum(math.prod(tensor["shape"]) for tensor in header.values())
        table.add_row(path.name, _size(path.stat().st_size), str(len(header)), f"{count:,}")
    output.print(table)
    if (folder / "run.json").exists():
        run = read_json(folder / "run.json")
        output.print(f"  a run of `scratch train {run.get('model')}` on {run.get('data')}")


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return {name: {"dtype", "shape", "data_offsets"}} of a safetensors file. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"its header claims {length:,} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return header
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} has no readable safetensors header: {error}") from error


def top_package(model_class: type) -> str:
    """Return the top package that a class comes from."""
    return model_class.__module__.partition(".")[0]


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
