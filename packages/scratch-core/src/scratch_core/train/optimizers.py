"""Optimizers that a run can choose by name, and the usual recipe: AdamW, warm-up, cosine decay, clipping.

A package that brings an optimizer registers one object in its pyproject.toml, under the name of ``--optimizer``:

    [project.entry-points."scratch.optimizers"]
    adamw = "scratch_core.train.optimizers:ADAMW"
"""

from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Any

import jax
import optax

from scratch_core.errors import ConfigError
from scratch_core.paths import matches

OPTIMIZERS = "scratch.optimizers"


class Optimizer:
    """Base of the optimizers that a run can name."""

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return the optax optimizer; weight decay acts on the parameters of ``decay_mask(parameters, decayed)``."""
        raise NotImplementedError(f"{type(self).__name__} must define build(learning_rate, weight_decay, decayed)")

    def evaluation_parameters(self, optimizer_state: Any, parameters: Any) -> Any:
        """Return the parameters that are evaluated and saved, in the structure of the trained ``parameters``.

        By default these are the trained ones. Schedule-free methods and moving averages keep others in their state.
        """
        return parameters


def warmup_cosine(peak: float, steps: int, *, warmup: int | None = None, final: float = 0.1) -> optax.Schedule:
    """Return a schedule: linear from 0 to ``peak`` in ``warmup`` steps, then half a cosine down to ``final * peak``.

    ``warmup`` None is a tenth of ``steps``, at most 1000. Raises ConfigError unless 0 <= warmup < steps.
    Source: Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    """
    warmup = min(1000, steps // 10) if warmup is None else warmup
    if not 0 <= warmup < steps:
        raise ConfigError(f"warmup={warmup} must be at least 0 and less than steps={steps}")
    return optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, final * peak)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.1,
    decayed: Sequence[str] = (),
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Return AdamW (https://arxiv.org/abs/1711.05101) after clipping to a global norm of ``clip_norm`` (None: not).

    Weight decay acts on the parameters of :func:`decay_mask`; ``decayed`` are the model's own patterns.
    """
    mask = partial(decay_mask, decayed=tuple(decayed))
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)
    return adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)


class AdamW(Optimizer):
    """:func:`adamw`, by name."""

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return AdamW with clipping to a global norm of 1."""
        return adamw(learning_rate, weight_decay=weight_decay, decayed=decayed)


ADAMW = AdamW()


def find_optimizer(name: str) -> Optimizer:
    """Return an installed optimizer. Raises ConfigError that lists the installed ones."""
    for point in metadata.entry_points(group=OPTIMIZERS, name=name):
        return point.load()
    names = ", ".join(sorted(point.name for point in metadata.entry_points(group=OPTIMIZERS))) or "none"
    raise ConfigError(
        f"no installed package provides the optimizer {name!r} (installed: {names}): install the package that does, "
        "or name another with --optimizer"
    )


def decay_mask(parameters: Any, decayed: Sequence[str] = ()) -> Any:
    """Return the tree of ``parameters`` with True where weight decay acts.

    It acts on the kernels of linear layers and convolutions, the matrices that multiply, and on nothing else: not on
    biases, scales, embeddings, positions, class tokens, decay rates or temperatures. ``decayed`` adds paths, in which
    ``*`` stands for any characters, such as "embedding.embedding".
    """

    def acts(path: tuple[Any, ...], x: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return matches(name, *decayed) or (matches(name, "kernel", "*.kernel") and x.ndim > 1)

    return jax.tree_util.tree_map_with_path(acts, parameters)
