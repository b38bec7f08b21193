"""Optimizers from their papers, as optax transformations: schedule-free SGD and AdamW, Shampoo, Distributed Shampoo."""

# Not imported lazily, unlike in the model packages: two functions have the names of their modules and must win.
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
