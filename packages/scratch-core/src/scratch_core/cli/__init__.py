"""The `scratch` command: models, train, plan, generate, convert, inspect, predict, plot, doctor.

`scratch --help` imports only this module; each command imports the file of its name when it runs. The functions here
begin with an underscore because importing ``scratch_core.cli.train`` sets the attribute ``train`` of this module. Every
error that a user's input can cause ends as one message on stderr and exit code 2, without a traceback (`--debug` shows
it).
"""

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import tyro

from scratch_core.errors import ConfigError, ScratchError

Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Runs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


def _models() -> None:
    """List the installed models, their presets and how many parameters each has."""
    from scratch_core.cli.models import models

    models()


def _train(name: Name) -> None:
    """Train a model; `scratch train NAME --help` shows the options of its task.

    Args:
        name: A model that `scratch models` lists.
    """
    # Only for the help. The options depend on the model, so `main` passes the arguments on before this is called.
    raise ConfigError(f"train {name}: not reached")


def _generate(
    folder: Folder,
    /,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Continue a prompt and print the text as it is generated.

    Args:
        folder: A Hugging Face folder or a run of `scratch train`.
        prompt: The text to continue.
        max_new_tokens: Largest number of tokens to write.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        top_k: Draw from the k likeliest tokens only.
        top_p: Draw from the likeliest tokens that hold this share of the probability.
        min_p: Leave out tokens less likely than this share of the likeliest.
        repetition_penalty: A value above 1 makes tokens that already occur less likely.
        seed: Seed of the random draws.
        dtype: Dtype of the weights and the computation; the default is float32.
        allow_nonfinite: Load weights that hold NaN or infinity.
    """
    from scratch_core.cli.generate import generate

    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    generate(folder, prompt, max_new_tokens, seed, dtype, sampling, allow_nonfinite)


def _convert(source: Folder, destination: Folder, /) -> None:
    """Turn a Hugging Face folder into an Orbax folder, or an Orbax folder into a Hugging Face folder.

    Args:
        source: The folder to read; its contents decide the direction.
        destination: The folder to make; it must be empty or not exist.
    """
    from scratch_core.cli.convert import convert

    convert(source, destination)


def _inspect(folder: Folder, /) -> None:
    """Show the architecture, parameters, dtypes and sizes of a folder without loading it.

    Args:
        folder: A Hugging Face folder or a run of `scratch train`.
    """
    from scratch_core.cli.inspect import inspect

    inspect(folder)


def _predict(folder: Folder, /) -> None:
    """Print a model's prediction, such as what an image shows; `scratch predict FOLDER --help` shows the arguments.

    Args:
        folder: A Hugging Face folder or a run of `scratch train`.
    """
    # Only for the help, as in `_train`.
    raise ConfigError(f"predict {folder}: not reached")


def _plot(runs: Runs, /, out: str = "curves.svg") -> None:
    """Draw the learning curves of one or several runs into one picture.

    Args:
        runs: Folders of `scratch train`.
        out: The file to write, an SVG.
    """
    from scratch_core.cli.plot import plot

    plot(runs, out)


def _plan(
    name: Name,
    /,
    preset: str = "tiny",
    mesh: str = "data=1",
    batch_size: int | None = None,
    sequence_length: int | None = None,
    memory: str | None = None,
    accumulate: int = 1,
    remat: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    optimizer: str = "adamw",
    average: float = 0.0,
    scan: bool = True,
    task: str | None = None,
) -> None:
    """Show what a training step of `scratch train` needs on each device of a mesh, without the devices or the weights.

    The step is compiled for simulated CPU devices. Parameters, optimizer state and FLOPs of matrix products are exact
    for any device. "activations" are the values in temporary memory that the forward pass computes and the backward
    pass reads. Their sum can be larger than the temporary memory, because without scanned layers they are not all held
    at the same time. Temporary memory and collectives are those of XLA's CPU compiler. Other compilers fuse
    differently, and use reduce-scatters where this one uses all-reduces with twice the traffic. FLOPs of other
    operations, memory for the program itself and fragmentation are not counted.

    Args:
        name: A model that `scratch models` lists.
        preset: Size of the model.
        mesh: Sizes of the axes data, fsdp, expert and tensor, such as "fsdp=8,tensor=8".
        batch_size: Examples of an update, over all devices; the default is that of `scratch train`.
        sequence_length: Tokens of an example; the default is that of `scratch train`. Targets have half of it.
        memory: Memory of each device, such as 80GB. If the step does not fit, changes are tried and shown.
        accumulate: Split the batch into this many parts, computed one after the other.
        remat: Keep only the input of each layer for the backward pass.
        dtype: Dtype in which the layers compute; the parameters stay float32.
        optimizer: The optimizer, as in `scratch train`.
        average: Also keep the moving average of the parameters, with this decay.
        scan: Compile one layer for all, if the model supports it.
        task: The task to train the model for; the default is its first.
    """
    # Set before JAX is imported, because XLA warns of expensive collectives, which the plan counts.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from scratch_core.cli.plan import PlanOptions, plan

    plan(
        PlanOptions(
            name=name,
            preset=preset,
            task=task,
            mesh=mesh,
            batch_size=batch_size,
            sequence_length=sequence_length,
            dtype=dtype,
            optimizer=optimizer,
            average=average,
            accumulate=accumulate,
            scan=scan,
            remat=remat,
            memory=memory,
        )
    )


def _doctor() -> int:
    """Check in seconds whether this machine computes correctly and how fast; exit with 1 if something is wrong, else 0.

    Each probe prints one line: cores and quota, compilation cache, known faults of XLA's CPU compiler, float32 and
    bfloat16 products, memory bandwidth. A probe that is only slow, or that cannot run here, does not count as wrong.
    """
    from scratch_core.cli.doctor import print_findings

    return print_findings()


def _bound(command: Callable[..., int | None]) -> Callable[..., Callable[[], int | None]]:
    """Return the command with all arguments bound instead of run, so that all are parsed before anything runs."""

    @functools.wraps(command)
    def bind(*positional: Any, **named: Any) -> Callable[[], int | None]:
        return functools.partial(command, *positional, **named)

    return bind


def _drop_output() -> None:
    """Send the rest of standard output to the null device, so that Python's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    It is 0, or 1 if `doctor` finds a fault, 2 for bad input, 128 + its number after a signal (130 after Ctrl-C).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # print characters that its encoding lacks as escapes, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if arguments[:1] in (["train"], ["predict"]) and arguments[1:2] not in ([], ["-h"], ["--help"]):
            command, subject, *rest = arguments
            if subject.startswith("-"):
                name = "NAME" if command == "train" else "FOLDER"
                raise ConfigError(f"{subject} comes too early: write `scratch {command} {name} ...`")
            if command == "train":
                if not debug and any(argument.partition("=")[0] == "--coordinator" for argument in rest):
                    # Hides the stack that JAX prints when process 0 has gone. JAX reads this when it is imported.
                    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")
                from scratch_core.train.interrupt import Interrupt

                with Interrupt(exits=True) as interrupt:  # before JAX is imported, which can swallow a Ctrl-C
                    from scratch_core.cli.train import run

                    return run(subject, rest, interrupt)
            from scratch_core.cli.predict import predict

            predict(subject, rest)
            sys.stdout.flush()
            return 0
        commands: dict[str, Callable[..., Any]] = {
            "models": _models,
            "train": _train,
            "generate": _generate,
            "convert": _convert,
            "inspect": _inspect,
            "predict": _predict,
            "plot": _plot,
            "plan": _plan,
            "doctor": _doctor,
        }
        from scratch_core.cli.parsing import one_line

        description = "Models written from scratch: train, generate, convert. With --debug, errors show a traceback."
        with one_line():
            run_command = tyro.extras.subcommand_cli_from_dict(
                {name: _bound(command) for name, command in commands.items()},
                prog="scratch",
                description=description,
                args=arguments,
            )
        code = run_command() or 0
        sys.stdout.flush()  # here, so that its errors are reported below
        return code
    except BrokenPipeError:  # the reader has closed the pipe
        _drop_output()
        return 0
    except (ScratchError, OSError) as error:
        if debug:
            raise
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
            place = "standard output: "  # an error of a file names the file
            _drop_output()
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        stopped = getattr(error, "signal", None)
        print(f"scratch: {'error: ' if stopped is None else ''}{place}{text}", file=sys.stderr)
        return _failed(2 if stopped is None else 128 + stopped)
    except KeyboardInterrupt:
        if debug:
            raise
        print("\nscratch: interrupted", file=sys.stderr)
        return _failed(130)


def _failed(code: int) -> int:
    """Return ``code``. In one of several processes of a run, exit with it at once, so that the others end too."""
    if (distributed := sys.modules.get("scratch_core.train.distributed")) is not None:
        distributed.leave(code)
    return code


def command() -> None:
    """Run `main` and end the process with its exit code. This is the entry point of `scratch`."""
    sys.unraisablehook = _show_unraisable
    try:
        sys.exit(main())
    finally:  # from now on, Ctrl-C ends the process without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _show_unraisable(unraisable: Any) -> None:
    """Show an error in a callback, except when a read or write of Orbax ends after another one has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
