"""`scratch predict FOLDER ...`: the task of the folder's model decides what follows, and what is done with it."""

from collections.abc import Sequence

from scratch_core import registry, weights
from scratch_core.cli.parsing import parse
from scratch_core.config import read_json
from scratch_core.errors import ConfigError
from scratch_core.tasks import find_task


def predict(folder: str, arguments: Sequence[str]) -> None:
    """Let the model of ``folder`` answer. Raises ConfigError if its task has no `scratch predict`."""
    path = weights.resolve(folder)
    model_class = registry.find_class(read_json(path / "config.json"))
    task = find_task(model_class.task)
    if task.PredictOptions is None:
        hint = f": {task.instead_of_predict}" if task.instead_of_predict else ""
        raise ConfigError(
            f"{folder} holds a {model_class.__name__} of the task {task.name}, which has no `scratch predict`{hint}"
        )
    options = parse(task.PredictOptions, f"scratch predict {folder}", arguments)
    task.predict(path, model_class, options)
