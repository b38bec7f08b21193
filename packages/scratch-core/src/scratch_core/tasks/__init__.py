"""Tasks that models are trained for. Each is one object, found by the entry points ``scratch.tasks``."""

from scratch_core.tasks.options import RunOptions
from scratch_core.tasks.task import Job, Task, find_task

__all__ = ["Job", "RunOptions", "Task", "find_task"]
