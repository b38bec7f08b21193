"""`scratch train NAME`: the one run loop, for every task.

The model and ``--task`` choose the task, which defines the options. Their defaults come from the recipe of the preset;
with ``--start``, from the task's defaults for fine-tuning; with ``--config``, from another run; with ``--resume``,
from the run itself.
"""

import dataclasses
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx

from scratch_core import registry
from scratch_core.cli import runs
from scratch_core.cli.parsing import parse, parse_some
from scratch_core.cli.preparing import Prepared, make_trainer, prepare
from scratch_core.errors import ConfigError
from scratch_core.folders import FolderLock, remove_abandoned
from scratch_core.registry import ModelSpec
from scratch_core.tasks import Job, RunOptions, Task, find_task
from scratch_core.tasks.options import flag
from scratch_core.train import distributed
from scratch_core.train.interrupt import Interrupt
from scratch_core.weights.saving import SAVING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The arguments that decide which options exist and what their defaults are. All others are parsed after them."""

    task: str | None = None
    preset: str | None = None
    start: str | None = None
    resume: str | None = None
    config: str | None = None
    steps: str | None = None  # here, only whether these two are given matters
    learning_rate: str | None = None

    def with_missing_from(self, given: dict[str, Any]) -> "Choice":
        """Return the choice, with values missing on the command line taken from the options of a file."""
        own = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return Choice(**({name: given[name] for name in dataclasses.asdict(self) if name in given} | own))


def run(name: str, arguments: Sequence[str], interrupt: Interrupt) -> int:
    """Train model ``name`` with the options in ``arguments``; return 0, or 128 + the signal that ended it early."""
    spec = registry.find(name)
    arguments = _with_resume(name, list(arguments))
    choice = parse_some(Choice, arguments)
    if choice.resume is not None:
        if choice.config is not None:
            raise ConfigError("--config starts a new run, and --resume continues one: leave one of them out")
        return _resume(spec, choice.resume, arguments, interrupt)
    given = {} if choice.config is None else runs.read_config(choice.config, name)
    choice = choice.with_missing_from(given)
    task = find_task(_task_name(spec, choice.task))
    default = _defaults(spec, task, choice, asks_for_help=bool({"-h", "--help"} & set(arguments)))
    default = runs.with_options(default, given, str(choice.config))
    options = parse(task.Options, f"scratch train {name}", arguments, default).absolute()
    options.check()
    distributed.start(options.coordinator, options.processes, options.process_id, interrupt.check)
    if first := distributed.is_first():
        runs.check_out(options.out)
    prepared = prepare(spec, task, options, options.steps)
    job = prepared.job
    interrupt.check()
    folder, lock = Path(options.out or ""), None
    if first:
        folder, lock = runs.create(options.out, f"{name}-{options.preset if options.start is None else 'tuned'}")
    try:
        if options.start is not None:  # copy it, so that the run can be resumed after the original is gone
            with distributed.written_by_first(folder) as own:
                (own / "start").mkdir()
                job.save(own / "start")
        if first:
            runs.write_record(folder, runs.new_record(folder, name, options, job.description, job.fingerprint))
        return _train(prepared, folder, interrupt)
    finally:
        if lock is not None:
            lock.release()


def _resume(spec: ModelSpec, run: str, arguments: Sequence[str], interrupt: Interrupt) -> int:
    folder, record = runs.stored(run, spec.name)
    task = find_task(_task_name(spec, record["task"]))
    default = runs.stored_options(folder, record, task.Options)
    options = parse(task.Options, f"scratch train {spec.name}", arguments, default).absolute()
    options.check()
    runs.check_unchanged(folder, default, options)
    distributed.start(options.coordinator, options.processes, options.process_id, interrupt.check)
    lock = FolderLock(folder) if (first := distributed.is_first()) else None
    try:
        for line in runs.changes(record, default):
            print(f"warning: {line}", flush=True)
        if first:
            remove_abandoned(folder, SAVING, all_of_them=True)
        runs.check_start(folder, record)
        runs.check_checkpoints(folder, options.steps)
        prepared = prepare(spec, task, options, record["horizon"])
        runs.check_data(folder, record, prepared.job.description, prepared.job.fingerprint)
        interrupt.check()
        record["options"] |= {name: getattr(options, name) for name in runs.FREE if name not in runs.NOT_RECORDED}
        if first:
            runs.write_record(folder, record)
        return _train(prepared, folder, interrupt)
    finally:
        if lock is not None:
            lock.release()


def _with_resume(name: str, arguments: list[str]) -> list[str]:
    """Insert the newest run after a ``--resume`` without a value."""
    if "--resume" in arguments:
        value = arguments.index("--resume") + 1
        if arguments[value : value + 1] == [] or arguments[value].startswith("--"):
            arguments.insert(value, runs.newest(name))
    return arguments


def _task_name(spec: ModelSpec, task: str | None) -> str:
    name = spec.task if task is None else task
    if name not in spec.models:
        raise ConfigError(f"--task {name}: {spec.name} has no such task; choose one of: {', '.join(spec.models)}")
    return name


def _defaults(spec: ModelSpec, task: Task, choice: Choice, *, asks_for_help: bool) -> RunOptions:
    """Return the default options of a new run.

    Raises ConfigError if the number of steps or the learning rate is neither in the arguments nor in the recipe.
    """
    preset = choice.preset or task.Options.preset
    recipe = spec.recipe(preset) if choice.start is None else task.fine_tuning
    names = {field.name for field in dataclasses.fields(task.Options)}
    if unknown := sorted(recipe.keys() - names):
        raise ConfigError(f"the recipe of {spec.name} {preset} names no option of {task.name}: {unknown[0]}")
    given = {"steps": choice.steps, "learning_rate": choice.learning_rate}
    missing = [flag(option) for option, value in given.items() if value is None and option not in recipe]
    if missing and not asks_for_help:
        origin = f"the preset {preset} of {spec.name}" if choice.start is None else f"fine-tuning for {task.name}"
        them = "them" if len(missing) > 1 else "it"
        raise ConfigError(f"{origin} has no default for {' and '.join(missing)}: give {them} on the command line")
    values: dict[str, Any] = {"task": task.name, "steps": tyro.MISSING, "learning_rate": tyro.MISSING, **recipe}
    return task.Options(**values)


def _train(run: Prepared, folder: Path, interrupt: Interrupt) -> int:
    """Train, evaluate, save."""
    from scratch_core.train.curves import plot_runs

    options, job = run.options, run.job
    resume_command = runs.resume_command(run.spec.name, folder, options)
    interrupt.last_words = advice = f"to resume: {resume_command}"
    with distributed.lost_process():
        distributed.wait_for_all("the run's folder is there")
    distributed.set_resume_command(resume_command)
    alone = jax.process_count() == 1  # several processes show only the results that all of them compute together
    with (
        distributed.lost_process(),
        distributed.only_first_prints(),
        on_interrupt_print(advice),
    ):
        print("config  " + "\n        ".join(runs.shown(options)), flush=True)
        print(f"data    {job.description}", flush=True)
        count = sum(x.size for x in jax.tree.leaves(nnx.state(job.model, nnx.Param)))
        origin = options.preset if options.start is None else f"from {options.start}"
        print(f"model   {run.spec.name} {origin}, {count:,} parameters", flush=True)
        trainer = make_trainer(run, folder)
        try:
            for line in trainer.restore():
                print(f"warning: {line}", flush=True)
            if trainer.step:
                print(f"resumed at step {trainer.step} of {options.steps}", flush=True)
            else:
                if options.resume is not None:
                    print("no checkpoint was saved yet: the run starts again at step 0", flush=True)
                if alone:
                    job.show_before()
            every = f"after every {run.evaluation.every} steps" if run.evaluation.every else "at the end"
            print(f"run     {folder}: {options.steps} steps of {job.update}, evaluated {every}", flush=True)
            interrupt.check()
            outcome = trainer.fit(job.batches, options.steps, interrupt, evaluation=run.evaluation)
            results = outcome.held_out
            if outcome.hopeless:
                print(
                    f"stopped early after step {outcome.step}: {outcome.best.since} evaluations without a lower "
                    f"held-out loss than {outcome.best.loss:.4f} after step {outcome.best.step}"
                )
            if options.keep_best and not outcome.interrupted:
                for line in trainer.load_best():
                    print(f"warning: {line}", flush=True)
                results = results if trainer.step == outcome.step else None
                print(f"best    step {trainer.step} has the lowest held-out loss: its model is saved", flush=True)
            with distributed.written_by_first(folder) as own:
                job.save(own)
            if outcome.interrupted:
                print(
                    f"stopped by {outcome.interrupted} after step {outcome.step} of {options.steps}, saved in {folder}"
                )
                print(advice)
                return 128 + signal.Signals[outcome.interrupted].value
            if results is None:
                results = trainer.evaluate(job.held_out, job.metrics)
        finally:
            trainer.close()
        if distributed.is_first():
            (job.show_after if alone else partial(Job.show_after, job))(folder, results)
            plot_runs([str(folder)], folder / "curves.svg")
        print(f"saved in {folder}")
        print(f"next: {runs.command(*job.next_command(folder))}")
    return 0


@contextmanager
def on_interrupt_print(message: str) -> Generator[None]:
    """Print ``message`` when Ctrl-C interrupts the body."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{message}", flush=True)
        raise
