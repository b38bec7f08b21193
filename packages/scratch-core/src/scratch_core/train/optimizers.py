"""The usual recipe: AdamW with warm-up, cosine decay and clipping, put together from optax."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import optax

from scratch_core.errors import ConfigError
from scratch_core.paths import matches


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
