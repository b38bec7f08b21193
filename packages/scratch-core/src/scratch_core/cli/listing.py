"""`scratch models` and `scratch inspect`: what is installed, and what a folder holds."""

import json
import math
import struct
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scratch_core import registry
from scratch_core.config import architectures, read_json
from scratch_core.errors import CheckpointError, ConfigError


def models() -> None:
    """Print a table of the installed models: presets with their numbers of parameters, tasks, package."""
    table = Table("model", "preset", "parameters", "task", "package", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    console = _console()
    for point in sorted(metadata.entry_points(group=registry.MODELS)):
        package = point.value.partition(":")[0].replace("_", "-")
        spec = registry.find(point.name)
        for number, (preset, count) in enumerate(spec.presets.items()):
            first = (point.name, ", ".join(spec.models), f"{package} {metadata.version(package)}")
            name, tasks, source = first if number == 0 else ("", "", "")
            table.add_row(name, preset, f"{count:,}", tasks, source)
    if not table.rows:
        raise ConfigError(
            "no model package is installed: `uv pip install scratch-llama`, or here `uv sync --all-packages`"
        )
    console.print(table)


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

    console = _console()
    try:
        kind = registry.find_class(fields)
        loads = f"{kind.__name__} of {type_module(kind).replace('_', '-')}"
    except ConfigError:
        loads = "no installed package"
    console.print(f"{folder}", highlight=False)
    console.print(f"  architecture  {', '.join(architectures(fields)) or 'not named'}, read by {loads}")
    console.print(f"  parameters    {sum(dtypes.values()):,} in {len(tensors)} tensors")
    console.print("  dtypes        " + ", ".join(f"{name} {count:,}" for name, count in dtypes.most_common()))
    table = Table("file", "size", "tensors", "parameters", box=None, padding=(0, 2), show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for path, header in headers.items():
        count = sum(math.prod(tensor["shape"]) for tensor in header.values())
        table.add_row(path.name, _size(path.stat().st_size), str(len(header)), f"{count:,}")
    console.print(table)
    if (folder / "run.json").exists():
        run = read_json(folder / "run.json")
        console.print(f"  a run of `scratch train {run.get('model')}` on {run.get('data')}")


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


def type_module(kind: type) -> str:
    """Return the top package that a class comes from."""
    return kind.__module__.partition(".")[0]


def _console() -> Console:
    """Return a console that does not fold lines where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
