"""The folder of a run: what makes it resumable, and what keeps one run from overwriting another.

    runs/llama-tiny/
      run.json           model, task, options, data: what --resume goes on with
      metrics.jsonl      a line per logged step
      checkpoints/       Orbax: parameters, optimizer, RNG, step
      config.json model.safetensors ...    the trained model, in the Hugging Face layout
      start/             the same of what --start named

A task's options are a frozen dataclass that derives from `RunOptions`.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_type_hints

import tyro

from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.registry import ModelSpec

RECORD = "run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that every task has; ``paths`` names those that are paths of data."""

    paths: ClassVar[tuple[str, ...]] = ("start",)

    preset: str = "tiny"
    """Size of the model; `scratch models` lists them."""
    steps: int = 1000
    """How many updates in all."""
    batch_size: int = 32
    """Examples per update."""
    learning_rate: float = 1e-3
    """Its peak: after the warm-up, before the cosine decay."""
    accumulate: int = 1
    """Split each batch into this many pieces, to need less memory; the result is the same."""
    seed: int = 0
    """Of the parameters and the order of the data."""
    save_every: int = 200
    """Steps between checkpoints."""
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint instead of from nothing; --preset does not count then."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the run goes: a new folder. The default is a new one under runs/."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with this run and its own options; without a value, with the newest run of this model under runs/.
    Only --steps may be given with it."""

    @property
    def checkpoint(self) -> str | None:
        """The folder or Hub id that the model is read from, None for a new one; a run has a copy of its own."""
        return None if self.start is None else self.start if self.resume is None else str(Path(self.resume, "start"))

    def absolute(self) -> Self:
        """Return the same with absolute paths in ``paths``, so that the run can be gone on with from anywhere.

        What is not there stays as it was written: it may be a Hub id.
        """
        found = {name: getattr(self, name) for name in self.paths}
        there = {name: str(Path(path).absolute()) for name, path in found.items() if path and Path(path).exists()}
        return dataclasses.replace(self, **there)

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        for name in ("steps", "batch_size", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"--learning-rate {self.learning_rate} must be above 0 and finite")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed} must be in 0 .. 2**32 - 1")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}")


Options = TypeVar("Options", bound=RunOptions)


def flag(name: str) -> str:
    """Return an option as one writes it."""
    return "--" + name.replace("_", "-")


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
            raise ConfigError(f"{out} holds another run: choose another --out, or go on with it by --resume {out}")
        raise ConfigError(f"{out} is not empty: choose another --out")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    return path


def open_run(spec: ModelSpec, options: RunOptions, data: str, fingerprint: str, save: Callable[[Path], None]) -> Path:
    """Return the folder of the run: that of ``options.resume``, or a new one with its record.

    ``save`` writes the model into a new run that starts from a checkpoint, so that it can be gone on with when that is
    no longer there. Raises DataError if ``data`` is not what the run of ``options.resume`` began with,
    and what `new_folder` raises.
    """
    if options.resume is not None:
        folder, record = stored(options.resume, spec.name)
        if record.get("fingerprint") != fingerprint:
            raise DataError(
                f"the data is not what {folder} was trained on (then: {record.get('data')}; now: {data}): "
                "start a new run"
            )
        return folder
    folder = new_folder(options.out, f"{spec.name}-{options.preset if options.start is None else 'tuned'}")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": spec.name,
        "task": spec.task,
        "options": {k: v for k, v in dataclasses.asdict(options).items() if k not in ("out", "resume")},
        "data": data,
        "fingerprint": fingerprint,
        "scratch_core": version("scratch-core"),
    }
    write_record(folder, record)
    if options.start is not None:
        (folder / "start").mkdir()
        save(folder / "start")
    return folder


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


def own_options(options: Options, given: Iterable[str], model: str) -> Options:
    """Return the options of the run that ``options.resume`` names, with ``resume`` still set.

    ``given`` are the names of the options that stand on the command line: "steps" replaces the run's own. Raises
    CheckpointError if there is no such run, ConfigError if it is of another model, or if another option was given
    that differs from the run's own.
    """
    folder, record = stored(str(options.resume), model)
    try:
        own = type(options)(**record["options"], resume=options.resume)
        kinds = get_type_hints(type(own))
        for name, value in record["options"].items():
            if not isinstance(value, (kinds[name] | int) if kinds[name] is float else kinds[name]):
                raise TypeError(f"{name}={value!r}")
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged, or of another version: {error}") from error
    own.check()
    for name in given:
        if name not in ("steps", "resume") and getattr(options, name) != getattr(own, name):
            raise ConfigError(
                f"{flag(name)} {getattr(options, name)} cannot be changed: the run {folder} has {getattr(own, name)}; "
                "with --resume only --steps may be given"
            )
    if "steps" in given and options.steps != own.steps:
        own = dataclasses.replace(own, steps=options.steps)
        own.check()
        record["options"]["steps"] = own.steps
        write_record(folder, record)
    return own


def stored(run: str, model: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the record of a run.

    Raises CheckpointError if there is no such run, ConfigError if it is of another model.
    """
    folder = Path(run)
    if not (folder / RECORD).is_file():
        raise CheckpointError(f"--resume {folder}: there is no run (no {RECORD} in that folder)")
    record = read_json(folder / RECORD)
    if record.get("model") != model:
        raise ConfigError(f"--resume {folder}: that is a run of {record.get('model')}, not of {model}")
    return folder, record


def command(*words: str) -> str:
    """Return a command line that can be pasted into a shell."""
    return " ".join(("uv run scratch", *map(_quoted, words)))


def _quoted(word: str) -> str:
    plain = not set(word) & set('"$`\\!\n')
    return f'"{word}"' if plain and word != shlex.quote(word) else shlex.quote(word)
