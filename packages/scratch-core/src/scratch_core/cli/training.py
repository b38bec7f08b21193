"""`scratch train NAME`: the model's task decides which options there are and what is run.

The task T is handled by the module ``scratch_core.cli.train_T`` (`train_causal_lm`, ...), which has ``Options``, a
dataclass derived from `RunOptions`, and ``run(spec, options) -> exit code``. A new task is one more such module.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import tyro

from scratch_core import registry
from scratch_core.cli import runs
from scratch_core.cli.parsing import one_line
from scratch_core.errors import ConfigError


def run(name: str, arguments: Sequence[str]) -> int:
    """Train model ``name`` with the options in ``arguments``; return the exit code."""
    spec = registry.find(name)
    module = f"scratch_core.cli.train_{spec.task}"
    if find_spec(module) is None:
        raise ConfigError(f"{name} is of the task {spec.task}, for which there is no `scratch train`")
    task = import_module(module)
    arguments = _with_resume(name, list(arguments))
    with one_line():
        options = tyro.cli(task.Options, prog=f"scratch train {name}", args=arguments).absolute()
    if options.resume is not None:
        flags = sorted({argument.partition("=")[0] for argument in arguments if argument.startswith("--")})
        given = [flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags]
        options = runs.own_options(options, given, name)
    from scratch_core.train import keep_memory  # the task has it loaded; a wrong argument need not wait for it

    keep_memory()
    return task.run(spec, options)


def _with_resume(name: str, arguments: list[str]) -> list[str]:
    """Give a ``--resume`` that stands alone its value: the newest run."""
    if "--resume" in arguments:
        value = arguments.index("--resume") + 1
        if arguments[value : value + 1] == [] or arguments[value].startswith("--"):
            arguments.insert(value, runs.newest(name))
    return arguments
