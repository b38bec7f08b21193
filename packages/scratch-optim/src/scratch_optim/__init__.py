"""Optimizers from their papers, as optax transformations: schedule-free SGD and AdamW, Shampoo, Distributed Shampoo."""

from typing import TYPE_CHECKING

from scratch_core import lazy

if TYPE_CHECKING:
    from scratch_optim.distributed_shampoo import distributed_shampoo
    from scratch_optim.roots import inverse_root_by_eigenvalues, inverse_root_by_newton
    from scratch_optim.schedule_free import evaluation_parameters, schedule_free_adamw, schedule_free_sgd
    from scratch_optim.shampoo import shampoo

__all__ = [
    "distributed_shampoo",
    "evaluation_parameters",
    "inverse_root_by_eigenvalues",
    "inverse_root_by_newton",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "shampoo",
]

__getattr__ = lazy(
    __name__,
    distributed_shampoo="distributed_shampoo",
    evaluation_parameters="schedule_free",
    inverse_root_by_eigenvalues="roots",
    inverse_root_by_newton="roots",
    schedule_free_adamw="schedule_free",
    schedule_free_sgd="schedule_free",
    shampoo="shampoo",
)
