"""`scratch models`: what is installed."""

from importlib import metadata

from rich.table import Table

from scratch_core import registry
from scratch_core.cli.output import console
from scratch_core.errors import ConfigError


def models() -> None:
    """Print a table of the installed models: presets with their numbers of parameters, tasks, package."""
    table = Table("model", "preset", "parameters", "task", "package", box=None, pad_edge=False)
    table.columns[2].justify = "right"
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
    console().print(table)
