"""Tasks: what a model is trained for, as one object each, found by the entry points ``scratch.tasks``."""

from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Task, find_task

__all__ = ["Job", "RunOptions", "Task", "find_task"]
