"""Tables on the terminal."""

from rich.console import Console


def console() -> Console:
    """Return a console that does not fold lines where the output is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)
