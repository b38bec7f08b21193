"""`python -m scratch_core.cli` is `scratch`."""

from scratch_core.cli import command

command()
