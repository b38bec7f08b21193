"""Tables on the terminal."""

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again, where rich would end with exit code 1; `main` ends with 0."""
        raise


def console() -> Console:
    """Return a console that does not fold lines if the output is not a terminal."""
    terminal = _Console()
    return terminal if terminal.is_terminal else _Console(width=200)
