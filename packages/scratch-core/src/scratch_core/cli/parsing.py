"""Parses arguments into dataclasses with tyro. Wrong arguments give an error of one line instead of tyro's box."""

import contextlib
import io
import re
from collections.abc import Generator, Sequence
from typing import Any

import tyro

from scratch_core.errors import ConfigError


@contextlib.contextmanager
def one_line() -> Generator[None]:
    """Run tyro within this context: arguments that it refuses raise ConfigError with the first words of its box."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            yield
    except SystemExit as end:
        if end.code != 2:
            raise
        raise ConfigError(f"{_first_words(output.getvalue())} (--help shows all arguments)") from None


def parse(form: type, prog: str, arguments: Sequence[str], default: Any = None) -> Any:
    """Return the dataclass ``form`` filled from arguments. Other fields come from ``default``, an instance of it.

    Prints the help and exits if the arguments ask for it. Raises ConfigError for wrong arguments.
    """
    with one_line():
        return tyro.cli(form, prog=prog, args=arguments, default=default)


def parse_some(form: type, arguments: Sequence[str]) -> Any:
    """Return the dataclass ``form`` filled from the arguments that it knows; all others, also --help, are ignored."""
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    with one_line():
        return tyro.cli(form, args=without_help, return_unknown_args=True)[0]


def _first_words(box: str) -> str:
    """Return the text between the title and the first rule of a box, without colours and wrapping."""
    words: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip(" │")
        if text.strip("─-╰╯"):
            words += text.split()
        elif words:  # without UTF-8, there is a rule under the title too
            break
    return " ".join(words)
