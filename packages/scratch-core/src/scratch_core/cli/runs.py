"""The folder of a run: the record that --resume reads, and the checks that keep one run from overwriting another.

runs/llama-tiny/
  run.json           model, task, options, horizon of the schedule, data, versions: what --resume and --config read
  run.lock           the process that is writing here, while it runs
  metrics.jsonl      a line per logged step, with the held-out numbers where it was evaluated
  checkpoints/       Orbax: parameters, optimizer, RNG, step
  config.json model.safetensors ...    the trained model, in the Hugging Face layout
  start/             a copy of the model that --start named, in the same layout
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import platform
import shlex
import textwrap
from importlib.metadata import entry_points, version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import jax

from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.folders import FolderLock
from scratch_core.registry import MODELS
from scratch_core.tasks.options import RunOptions, flag
from scratch_core.tasks.task import TASKS

RECORD = "run.json"
FIELDS = ("model", "task", "options", "horizon", "data", "fingerprint", "versions", "device", "cores", "start")
NOT_RECORDED = ("out", "resume", "config", "coordinator", "processes", "process_id")
FREE = ("steps", "mesh", "patience", "coordinator", "processes", "process_id")
"""Options that a resumed run may change: they do not change what is computed."""

Options = TypeVar("Options", bound=RunOptions)


def check_out(out: str | None) -> None:
    """Raise ConfigError if ``out`` is no folder for a new run: a file, or a folder that is not empty."""
    if out is None:
        return
    if out == "":
        raise ConfigError("--out is empty: name a folder, or leave it out")
    path = Path(out)
    if path.is_dir() and {name.name for name in path.iterdir()} - {"run.lock"}:
        if (path / RECORD).exists():
            raise ConfigError(f"{out} holds another run: choose another --out, or resume it with --resume {out}")
        raise ConfigError(f"{out} is not empty: choose another --out")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")


def create(out: str | None, name: str) -> tuple[Path, FolderLock]:
    """Make the folder of a new run, for this process alone: ``out``, or the first of runs/NAME, runs/NAME-2, ...

    Raises ConfigError if ``out`` holds something, or another process has it.
    """
    if out is not None:
        lock = FolderLock(out)
        try:
            check_out(out)  # again: another run may have begun and ended there
        except ConfigError:
            lock.release()
            raise
        return Path(out), lock
    number = 1
    while True:
        path = Path("runs", name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path, FolderLock(path)
        number += 1


def new_record(folder: Path, model: str, options: RunOptions, data: str, fingerprint: str) -> dict[str, Any]:
    """Return the record of a new run; the schedule's horizon is the number of steps."""
    return {
        "model": model,
        "task": options.task,
        "options": {k: v for k, v in dataclasses.asdict(options).items() if k not in NOT_RECORDED},
        "horizon": options.steps,
        "data": data,
        "fingerprint": fingerprint,
        "versions": versions(model, options),
        "device": jax.devices()[0].device_kind,
        "cores": cores(),
        "start": digests(folder / "start"),
    }


def versions(model: str, options: RunOptions) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run computes."""
    from scratch_core.train.optimizers import OPTIMIZERS  # takes 2 s to import; report wrong arguments first

    chosen = {MODELS: model, TASKS: options.task, OPTIMIZERS: options.optimizer}
    dists = [point.dist for group, name in chosen.items() for point in entry_points(group=group, name=name or "")]
    libraries = {name: version(name) for name in ("scratch-core", "jax", "jaxlib", "flax", "optax", "numpy")}
    packages = {dist.name: dist.version for dist in dists if dist is not None}
    return {"python": platform.python_version()} | libraries | packages


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digests(folder: Path) -> dict[str, str]:
    """Return {relative path: sha256} of all files below a folder; {} if there are none."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json; it appears whole or not at all."""
    partial = folder / (RECORD + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, folder / RECORD)


def newest(model: str) -> str:
    """Return the newest run of ``model`` under runs/. Raises ConfigError if there is none."""
    records = sorted(Path("runs").glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in records:
        if read_json(path).get("model") == model:
            return str(path.parent)
    raise ConfigError(f"--resume: there is no run of {model} under runs/; name its folder")


def stored(run: str, model: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the record of a run.

    Raises CheckpointError if there is no such run, ConfigError if it is of another model.
    """
    folder = Path(run)
    if not (folder / RECORD).is_file():
        raise CheckpointError(f"--resume {folder}: there is no run (no {RECORD} in that folder)")
    record = read_json(folder / RECORD)
    if missing := [name for name in FIELDS if name not in record]:
        raise _damaged(folder, f"it has no {missing[0]}")
    if record["model"] != model:
        raise ConfigError(
            f"--resume {folder}: that is a run of {record['model']}, not of {model}: resume it with "
            f"`scratch train {record['model']} --resume {folder}`, or name a run of {model}"
        )
    return folder, record


def stored_options(folder: Path, record: dict[str, Any], form: type[Options]) -> Options:
    """Return the options of a record, with ``resume`` set. Raises CheckpointError if they do not fit ``form``."""
    try:
        types = get_type_hints(form)
        for name, value in record["options"].items():
            if not _fits(value, types[name]):
                raise TypeError(f"{name}={value!r}")
        if record["versions"]["scratch-core"] == version("scratch-core") and (missing := _missing(record, form)):
            raise TypeError(f"it has no {missing[0]}")
        if type(record["horizon"]) is not int or record["horizon"] < 1:
            raise TypeError(f"horizon={record['horizon']!r}")
        return form(**record["options"], resume=str(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def changes(record: dict[str, Any], own: RunOptions) -> list[str]:
    """Return a line for each reason why a resumed run may differ in its bits from an uninterrupted one."""
    new = "".join(f"; {flag(name)} is new and takes its default" for name in _missing(record, type(own)))
    lines = [
        f"the run began with {name} {then}, this is {now}: results may differ{new if name == 'scratch-core' else ''}"
        for name, now in versions(record["model"], own).items()
        if (then := record["versions"].get(name, "of no version")) != now
    ]
    if (then := record["device"]) != (now := jax.devices()[0].device_kind):
        lines.append(f"the run began on {then}, this is {now}: sums are rounded differently")
    if (then := record["cores"]) != (now := cores()):
        lines.append(f"the run began on {then} cores, now there are {now}: sums are rounded differently")
    return lines


def read_config(path: str, model: str) -> dict[str, Any]:
    """Return the options in the file that ``--config`` names. Raises ConfigError if they are not for this model."""
    if not Path(path).is_file():
        raise ConfigError(f"--config {path}: there is no such file: name the {RECORD} of a run")
    record = read_json(Path(path))
    given = record.get("options")
    if not isinstance(given, dict):
        raise ConfigError(f'--config {path}: "options" must be an object, found {given!r}: name the {RECORD} of a run')
    if record.get("model", model) != model:
        raise ConfigError(
            f"--config {path} is of {record['model']}, not of {model}: write `scratch train {record['model']} ...`, "
            f'or change its "model"'
        )
    for name in ("task", "preset", "start"):
        if not isinstance(given.get(name), str | None):
            raise ConfigError(f"{path}: {name}={given[name]!r} must be a text: correct it")
    return given


def with_options(default: Options, given: dict[str, Any], path: str) -> Options:
    """Return ``default`` with the options of a file. Raises ConfigError for one that does not exist or does not fit."""
    types = {name: form for name, form in get_type_hints(type(default)).items() if name not in ("resume", "config")}
    names = [field.name for field in dataclasses.fields(default) if field.name in types]
    for name, value in given.items():
        if name not in names:
            (near,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: {name} is no option of {default.task}; the nearest is {near}: correct it")
        if not _fits(value, types[name]):
            form = getattr(types[name], "__name__", str(types[name]).removeprefix("typing."))
            raise ConfigError(f"{path}: {name}={value!r} must be {form}: correct it")
    return dataclasses.replace(default, **given)


def shown(options: RunOptions) -> list[str]:
    """Return the options as on the command line, wrapped into lines."""
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, bool):
            words.append(flag(field.name if value else f"no_{field.name}"))
        elif value is not None and field.name not in NOT_RECORDED:
            words.append(f"{flag(field.name)}={_quoted(str(value))}")
    return textwrap.wrap(" ".join(words), 104, break_long_words=False, break_on_hyphens=False)


def check_start(folder: Path, record: dict[str, Any]) -> None:
    """Raise CheckpointError if the run's copy of its start model has changed since the run began."""
    found = digests(folder / "start")
    for name, digest in record["start"].items():
        if found.get(name) != digest:
            what = "is damaged: its digest differs" if name in found else "is missing"
            raise CheckpointError(
                f"{folder / 'start' / name} {what}: copy it again from {record['options']['start']}, or start a new run"
            )


def check_checkpoints(folder: Path, steps: int) -> None:
    """Raise CheckpointError if the run has trained but its checkpoints are gone, because it would start at step 0.

    Raises ConfigError if a checkpoint is of a later step than ``steps``, the last that the run is to take.
    """
    there = folder / "checkpoints"
    last = max((int(path.name) for path in there.glob("*") if path.name.isdigit()), default=0)
    if last > steps:
        raise ConfigError(
            f"--steps {steps} is the total number of updates, and {folder} has already made {last}: choose a larger one"
        )
    saved = last > 0 or any(there.glob("damaged-*"))
    trained = (folder / "config.json").exists() or (not there.exists() and (folder / "metrics.jsonl").exists())
    if trained and not saved:
        raise CheckpointError(
            f"{folder} has been trained, but {there} holds no step, so training would begin again: restore that "
            f"folder, or start a new run (from the trained model: --start {folder})"
        )


def _missing(record: dict[str, Any], form: type[RunOptions]) -> list[str]:
    names = {field.name for field in dataclasses.fields(form)} - set(NOT_RECORDED)
    return sorted(names - record["options"].keys())


def _damaged(folder: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{folder / RECORD} is damaged, or of another version: {reason}. Restore it, or start a new run"
    )


def _fits(value: Any, form: Any) -> bool:
    if isinstance(value, bool):  # bool is a subclass of int
        return form is bool
    if get_origin(form) is Literal:
        return value in get_args(form)
    if get_origin(form) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(form))
    return isinstance(value, (form | int) if form is float else form)


def check_unchanged(folder: Path, own: RunOptions, options: RunOptions) -> None:
    """Raise ConfigError if ``options`` differ from the run's ``own`` in an option that is not in FREE."""
    for field in dataclasses.fields(own):
        before, now = getattr(own, field.name), getattr(options, field.name)
        if before != now and field.name not in FREE:
            raise ConfigError(
                f"{flag(field.name)} {now} cannot be changed: the run {folder} has {before}; "
                "with --resume only --steps, --patience and --mesh may be changed"
            )


def check_data(folder: Path, record: dict[str, Any], data: str, fingerprint: str) -> None:
    """Raise DataError if the data has changed since the run began."""
    if record.get("fingerprint") != fingerprint:
        raise DataError(
            f"the data is not what {folder} was trained on (then: {record.get('data')}; now: {data}): "
            "restore the data, or start a new run"
        )


def resume_command(model: str, folder: Path, options: RunOptions) -> str:
    """Return the command that resumes a run, with the same number of processes."""
    names = ("coordinator", "processes", "process_id")
    several = [(flag(name), str(value)) for name in names if (value := getattr(options, name)) is not None]
    return command("train", model, "--resume", str(folder), *(word for pair in several for word in pair))


def command(*words: str) -> str:
    """Return a command line that can be pasted into a shell."""
    return " ".join(("uv run scratch", *map(_quoted, words)))


def _quoted(word: str) -> str:
    plain = not set(word) & set('"$`\\!\n')
    return f'"{word}"' if plain and word != shlex.quote(word) else shlex.quote(word)
