"""`scratch plan NAME`: the memory of a training step on each device, compiled on simulated devices without weights."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

from scratch_core import registry
from scratch_core.cli.output import console
from scratch_core.errors import ConfigError
from scratch_core.folders import size
from scratch_core.layers import scan_layers
from scratch_core.parallel import make_mesh, parse_mesh
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Task, find_task
from scratch_core.tasks.options import flag
from scratch_core.train import find_optimizer
from scratch_core.train.optimizers import SCHEDULES
from scratch_core.train.plan import Plan, plan_step

SPARE = 4
"""Simulate this many times as many devices as the mesh has, so that remedies with more devices can be planned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The run that is planned; see the command's help."""

    name: str
    preset: str
    task: str | None
    mesh: str
    batch_size: int | None
    sequence_length: int | None
    dtype: str
    optimizer: str
    average: float
    accumulate: int
    scan: bool
    remat: bool
    memory: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run to plan: the model, and the options that may change to make it fit."""

    spec: ModelSpec
    task: Task
    options: PlanOptions
    batch_size: int
    sequence_length: int
    axes: dict[str, int]
    accumulate: int
    remat: bool

    @property
    def parts(self) -> int:
        """The number of parts into which the mesh splits the batch."""
        return self.devices // self.axes.get("tensor", 1)

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return math.prod(self.axes.values())

    def changed_from(self, other: "Run") -> str:
        """Return the options in which this run differs from another, as on the command line."""
        words = ["--remat"] if self.remat and not other.remat else []
        words += [
            f"{flag(name)} {getattr(self, name)}"
            for name in ("batch_size", "accumulate")
            if getattr(self, name) != getattr(other, name)
        ]
        if self.axes != other.axes:
            words.append("--mesh " + ",".join(f"{name}={number}" for name, number in self.axes.items()))
        return " ".join(words)


def plan(options: PlanOptions) -> None:
    """Print the memory and work of a step on each device, and whether it fits. Raises ConfigError for wrong options."""
    run, memory = _run(options), None if options.memory is None else _memory(options.memory)
    _simulate(run.devices)
    found, layers = _plan(run)
    _show(run, found, layers)
    if memory is None:
        return
    share = f"{size(found.total)} of {size(memory)} on each device"
    if found.total <= memory:
        print(f"fits    {share}, {found.total / memory:.0%}")
        return
    print(f"does not fit: {share}. With these changes, compiled as well, it would take:", flush=True)
    fits = False
    for other, needs in _remedies(run, memory):
        fits = fits or needs.total <= memory
        verdict = "fits" if needs.total <= memory else "does not fit"
        print(f"  {other.changed_from(run):44} {size(needs.total):>10}  {verdict}", flush=True)
    if not fits:
        print("none of them is enough: combine them, spread over more devices, or choose a smaller preset")


def _run(options: PlanOptions) -> Run:
    """Return the run that the options describe. Options that are not given have the defaults of `scratch train`."""
    spec = registry.find(options.name)
    name = spec.task if options.task is None else options.task
    if name not in spec.models:
        raise ConfigError(f"--task {name}: {spec.name} has no such task; choose one of: {', '.join(spec.models)}")
    task, recipe = find_task(name), spec.recipe(options.preset)
    defaults = {field.name: field.default for field in dataclasses.fields(task.Options)} | dict(recipe)

    def value(name: str, given: int | None, fallback: Any) -> int:
        number = defaults.get(name, fallback) if given is None else given
        if number < 1:
            raise ConfigError(f"{flag(name)} {number} must be at least 1")
        return number

    run = Run(
        spec=spec,
        task=task,
        options=options,
        batch_size=value("batch_size", options.batch_size, 1),
        sequence_length=value("sequence_length", options.sequence_length, defaults.get("source_length", 1)),
        axes=parse_mesh(options.mesh),
        accumulate=value("accumulate", options.accumulate, 1),
        remat=options.remat,
    )
    config = spec.config(options.preset)
    longest = getattr(config, "max_positions", None)
    if longest is not None and run.sequence_length > longest:
        raise ConfigError(
            f"--sequence-length {run.sequence_length} is more than the {longest} positions of --preset {options.preset}"
        )
    if run.batch_size % (run.parts * run.accumulate):
        raise ConfigError(
            f"data * fsdp * expert = {run.parts} times --accumulate {run.accumulate} must divide "
            f"--batch-size {run.batch_size}: change one of them"
        )
    if options.remat and not hasattr(spec.model(name), "remat_layers"):
        raise ConfigError(f"--remat: {spec.name} cannot compute its layers again for {name}; leave it out")
    return run


def _simulate(devices: int) -> None:
    """Give JAX enough simulated devices. Raises ConfigError if it has already started with fewer."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", SPARE * devices)
    except RuntimeError:
        pass  # JAX has already started, as in tests: the devices that it has must be enough
    if len(jax.devices("cpu")) < devices:
        raise ConfigError(
            f"the mesh has {devices} devices, and JAX has started with {len(jax.devices())}: plan in a new process"
        )


def _plan(run: Run) -> tuple[Plan, str]:
    """Return the plan, and a phrase for how the layers run."""
    options, dtype = run.options, getattr(jnp, run.options.dtype)
    model_class, config = run.spec.model(run.task.name), run.spec.config(options.preset)

    layers = "a loop"

    def build() -> Any:
        nonlocal layers
        model: Any = model_class(config, dtype=dtype, rngs=nnx.Rngs(0))
        model.remat_layers = run.remat
        if options.scan and _scan(model):
            layers = "scanned"
        return model

    optimizer = find_optimizer(options.optimizer, options.average)
    found = plan_step(
        build,
        optimizer.build(SCHEDULES[optimizer.schedule](1e-3, 1000), weight_decay=0.1, decayed=model_class.decayed),
        run.task.shapes(config, run.batch_size, run.sequence_length),
        make_mesh(devices=jax.devices("cpu"), **run.axes),
        handling=run.task,
        accumulate=run.accumulate,
    )
    return found, f"{layers}, each computed again for the backward pass" if run.remat else layers


def _scan(model: Any) -> bool:
    """Scan the layers if the model supports it; return whether they are scanned."""
    if not hasattr(type(model), "remat_layers"):  # only models that use `run_blocks` have it
        return False
    try:
        scan_layers(model)
    except ConfigError:  # no pattern repeats
        return False
    return True


def _remedies(run: Run, memory: int) -> Iterator[tuple[Run, Plan]]:
    """Yield changes that make a step smaller, each with its plan. Each kind of change ends with the first that fits."""

    def until_it_fits(runs: Iterator[Run]) -> Iterator[tuple[Run, Plan]]:
        for other in runs:
            needs, _ = _plan(other)
            yield other, needs
            if needs.total <= memory:
                return

    smaller = run
    if not run.remat and hasattr(run.spec.model(run.task.name), "remat_layers"):
        smaller = dataclasses.replace(run, remat=True)
        yield from until_it_fits(iter([smaller]))
    rows = run.batch_size // run.parts // run.accumulate
    halves = [2**n for n in range(1, rows.bit_length()) if rows % 2**n == 0]
    yield from until_it_fits(dataclasses.replace(smaller, accumulate=n * run.accumulate) for n in halves)
    yield from until_it_fits(dataclasses.replace(smaller, batch_size=run.batch_size // n) for n in halves)
    more = [n for n in (2, 4) if n * run.devices <= len(jax.devices("cpu")) and rows % n == 0]
    wider = ({**run.axes, "fsdp": n * run.axes.get("fsdp", 1)} for n in more)
    yield from until_it_fits(dataclasses.replace(smaller, axes=axes) for axes in wider)


def _show(run: Run, found: Plan, layers: str) -> None:
    options = run.options
    count = run.spec.presets[options.preset]
    print(f"model   {run.spec.name} {options.preset}, {count:,} parameters; its layers are {layers}")
    shapes = run.task.shapes(run.spec.config(options.preset), run.batch_size, run.sequence_length)
    name, shape = next((name, " x ".join(map(str, x.shape))) for name, x in shapes.items())
    parts = f" in {run.accumulate} parts" if run.accumulate > 1 else ""
    print(f"step    {name} {shape}{parts}, {options.dtype}, {options.optimizer}")
    axes = " x ".join(f"{name} {number}" for name, number in run.axes.items())
    print(f"mesh    {axes}: {run.devices} devices, {run.batch_size // run.parts} of the examples on each", flush=True)
    table = Table("each device", "", "", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row("parameters", size(found.parameters), f"of {size(4 * count)}")
    for line, held in (
        ("optimizer state", found.optimizer),
        ("batch and counts", found.other),
        ("temporary memory", found.temporary),
        ("activations, in it", found.activations),
        ("results", found.outputs),
        ("in all", found.total),
    ):
        table.add_row(line, size(held))
    least = "at least " if found.unknown else ""
    table.add_row("FLOPs of products", f"{least}{found.flops:.4g}")
    for kind, (times, moved) in found.collectives.items():
        table.add_row(kind, size(moved), f"in {times:,}")
    console().print(table)
    if found.unknown:
        print(f"{found.unknown} loops whose number of iterations depends on the data count as one iteration each")


def _memory(text: str) -> int:
    """Return the bytes of a text such as "80GB" or "16GiB". Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"--memory {text} is not a size: write one such as 80GB or 16GiB")
    unit = (found[2] or "").lower()
    return int(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** (" kmgt".index(unit[:1] or " ")))
