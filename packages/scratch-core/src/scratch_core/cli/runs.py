"""The folder of a run: what makes it resumable, and what keeps one run from overwriting another.

runs/llama-tiny/
  run.json           model, task, options, horizon of the schedule, data: what --resume reads
  metrics.jsonl      a line per logged step
  checkpoints/       Orbax: parameters, optimizer, RNG, step
  config.json model.safetensors ...    the trained model, in the Hugging Face layout
  start/             the same of what --start named
"""

import dataclasses
import json
import os
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.tasks.options import RunOptions, flag

RECORD = "run.json"

Options = TypeVar("Options", bound=RunOptions)


def new_folder(out: str | None, name: str) -> Path:
    """Return where a new run goes: ``out``, or the first of runs/NAME, runs/NAME-2, ... that is free; nothing is made.

    Raises ConfigError if ``out`` is a file, or a folder that is not empty.
    """
    if out is None:
        number = 1
        while (path := Path("runs", name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return path
    path = Path(out)
    if path.is_dir() and any(path.iterdir()):
        if (path / RECORD).exists():
            raise ConfigError(f"{out} holds another run: choose another --out, or resume it with --resume {out}")
        raise ConfigError(f"{out} is not empty: choose another --out")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    return path


def create(folder: Path, model: str, options: RunOptions, data: str, fingerprint: str) -> None:
    """Make the folder of a new run and write its record; the schedule's horizon is the number of steps."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": model,
        "task": options.task,
        "options": {k: v for k, v in dataclasses.asdict(options).items() if k not in ("out", "resume")},
        "horizon": options.steps,
        "data": data,
        "fingerprint": fingerprint,
        "scratch_core": version("scratch-core"),
    }
    write_record(folder, record)


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
    if record.get("model") != model:
        raise ConfigError(
            f"--resume {folder}: that is a run of {record.get('model')}, not of {model}: resume it with "
            f"`scratch train {record.get('model')} --resume {folder}`, or name a run of {model}"
        )
    return folder, record


def stored_options(folder: Path, record: dict[str, Any], form: type[Options]) -> Options:
    """Return the options of a record, with ``resume`` set. Raises CheckpointError if they are not of that form."""
    try:
        types = get_type_hints(form)
        for name, value in record["options"].items():
            if not _fits(value, types[name]):
                raise TypeError(f"{name}={value!r}")
        record.setdefault("horizon", record["options"]["steps"])  # records were once written without it
        if type(record["horizon"]) is not int or record["horizon"] < 1:
            raise TypeError(f"horizon={record['horizon']!r}")
        return form(**record["options"], resume=str(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged, or of another version: {error}") from error


def _fits(value: Any, form: Any) -> bool:
    if get_origin(form) is Literal:
        return value in get_args(form)
    return isinstance(value, (form | int) if form is float else form)


def check_unchanged(folder: Path, own: RunOptions, options: RunOptions) -> None:
    """Raise ConfigError if ``options`` differ from the run's ``own`` in more than the number of steps."""
    for field in dataclasses.fields(own):
        before, now = getattr(own, field.name), getattr(options, field.name)
        if before != now and field.name != "steps":
            raise ConfigError(
                f"{flag(field.name)} {now} cannot be changed: the run {folder} has {before}; "
                "with --resume only --steps may be changed"
            )


def check_data(folder: Path, record: dict[str, Any], data: str, fingerprint: str) -> None:
    """Raise DataError if the data is not what the run began with."""
    if record.get("fingerprint") != fingerprint:
        raise DataError(
            f"the data is not what {folder} was trained on (then: {record.get('data')}; now: {data}): "
            "restore the data, or start a new run"
        )


def command(*words: str) -> str:
    """Return a command line that can be pasted into a shell."""
    return " ".join(("uv run scratch", *map(_quoted, words)))


def _quoted(word: str) -> str:
    plain = not set(word) & set('"$`\\!\n')
    return f'"{word}"' if plain and word != shlex.quote(word) else shlex.quote(word)
