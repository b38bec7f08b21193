"""`scratch predict FOLDER ...`: runs the folder's model on an input. The task of the model decides the arguments.

With `--out OUTPUT.jsonl`, the first argument after the folder is a .jsonl file. Each of its lines is an object with the
fields that the task reads, such as {"text": "..."}. The output has the same lines in the same order, each with a
"prediction" added. It is written to a temporary file and renamed at the end, so that an error leaves no partial output.
"""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from scratch_core import registry, weights
from scratch_core.cli.parsing import parse
from scratch_core.config import read_json
from scratch_core.errors import ConfigError, DataError
from scratch_core.tasks import Task, find_task

AT_A_TIME = 1024
"""Lines of a file that are read and predicted together; the model runs them in smaller batches."""


def predict(folder: str, arguments: Sequence[str]) -> None:
    """Print or write the predictions of the model in ``folder``. Raises ConfigError if its task has no prediction."""
    path = weights.resolve(folder)
    model_class = registry.find_class(read_json(path / "config.json"))
    task = find_task(model_class.task)
    if task.PredictOptions is None:
        hint = f": {task.instead_of_predict}" if task.instead_of_predict else ""
        raise ConfigError(
            f"{folder} holds a {model_class.__name__} of the task {task.name}, which has no `scratch predict`{hint}"
        )
    options = parse(task.PredictOptions, f"scratch predict {folder}", arguments)
    if not task.row_fields or getattr(options, "out", None) is None:
        task.predict(path, model_class, options)
        return
    predict_file(task, path, model_class.from_pretrained(path), options)


def predict_file(task: Task, folder: Path, model: Any, options: Any) -> None:
    """Write the rows of a file, with predictions, to ``options.out``. A DataError names the file and the line."""
    source, target = Path(getattr(options, task.row_fields[0])), Path(options.out)
    partial, count = target.with_name(f"{target.name}.{os.getpid()}.partial"), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            lines = read_lines(source, task.row_fields)
            while part := list(islice(lines, AT_A_TIME)):
                answers = _answers(task, folder, model, source, part, options)
                for (_, row), answer in zip(part, answers, strict=True):
                    file.write(json.dumps({**row, "prediction": answer}, ensure_ascii=False) + "\n")
                count += len(part)
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}. Name another file with --out") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{count:,} predictions in {target}")


def _answers(
    task: Task, folder: Path, model: Any, source: Path, part: Sequence[tuple[int, dict[str, Any]]], options: Any
) -> list[Any]:
    """Return the predictions for some rows. If that fails, try the rows one by one, to name the line in the error."""
    try:
        return task.predict_rows(folder, model, [row for _, row in part], options)
    except (DataError, ConfigError):
        for number, row in part:
            try:
                task.predict_rows(folder, model, [row], options)
            except (DataError, ConfigError) as error:
                raise DataError(f"{source}, line {number}: {error}") from error
        raise


def read_lines(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line of a .jsonl file that is not empty.

    Every one of ``fields`` must be a string that is not blank. Raises DataError that names the file and the line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _checked(line, f"{path}, line {number}", fields)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. With --out, give a .jsonl file") from error


def _checked(line: bytes, where: str, fields: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(line)
        for name in fields:
            if not isinstance(found[name], str) or not found[name].strip():
                raise ValueError(f"{name}={found[name]!r} must be a text")
            found[name].encode()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        expected = " and ".join(f'"{name}"' for name in fields)
        raise DataError(
            f"{where}: must be a JSON object with {expected}, found {line[:60].decode(errors='replace').rstrip()!r} "
            f"({type(error).__name__}: {error})"
        ) from error
    return found
