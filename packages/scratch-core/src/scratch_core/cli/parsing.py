"""Wrong arguments as one line: tyro explains them in a box of several, and exits."""

import contextlib
import io
import re
from collections.abc import Generator

from scratch_core.errors import ConfigError


@contextlib.contextmanager
def one_line() -> Generator[None]:
    """Within it, arguments that tyro refuses raise ConfigError with the first words of its box."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            yield
    except SystemExit as end:
        if end.code != 2:
            raise
        raise ConfigError(f"{_first_words(told.getvalue())} (--help tells what there is)") from None


def _first_words(box: str) -> str:
    """Return what stands between the title and the first rule of a box, without colours and wrapping."""
    words: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip(" │")
        if text.strip("─-╰╯"):
            words += text.split()
        elif words:  # where there is no UTF-8, a rule stands under the title too
            break
    return " ".join(words)
