"""Optimizers that a run can choose by name, and the usual recipe: AdamW, warm-up, cosine decay, clipping.

A package that brings an optimizer registers one object in its pyproject.toml, under the name of ``--optimizer``:

    [project.entry-points."scratch.optimizers"]
    adamw = "scratch_core.train.optimizers:ADAMW"
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from scratch_core.errors import ConfigError
from scratch_core.paths import matches

OPTIMIZERS = "scratch.optimizers"


class Optimizer:
    """Base of the optimizers that a run can name."""

    @property
    def schedule(self) -> str:
        """The schedule of the learning rate if a run names none; see ``SCHEDULES``."""
        return "cosine"

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
    warmup = _check_warmup(warmup, steps)
    return optax.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, final * peak)


def warmup_linear(peak: float, steps: int, *, warmup: int | None = None, final: float = 0.0) -> optax.Schedule:
    """Return a schedule: linear from 0 to ``peak``, then linear down to ``final * peak``; else as `warmup_cosine`."""
    warmup = _check_warmup(warmup, steps)
    up = optax.schedules.linear_schedule(0.0 if warmup else peak, peak, warmup)
    return optax.schedules.join_schedules(
        [up, optax.schedules.linear_schedule(peak, final * peak, steps - warmup)], [warmup]
    )


def warmup_stable_decay(
    peak: float, steps: int, *, warmup: int | None = None, decay: float = 0.1, final: float = 0.0
) -> optax.Schedule:
    """Return the schedule WSD: a warm-up as in `warmup_cosine`, then ``peak``, then linear down in the last steps.

    ``decay`` is the share of ``steps`` in which it falls to ``final * peak``. Raises ConfigError if warm-up and decay
    do not fit in the steps. Source: Hu et al. 2024, https://arxiv.org/abs/2404.06395, section 4.2.
    """
    warmup, down = _check_warmup(warmup, steps), max(1, round(decay * steps))
    if not 0 < decay <= 1 or warmup + down > steps:
        raise ConfigError(f"warmup={warmup} and decay={decay} must fit in steps={steps}")
    up = optax.schedules.linear_schedule(0.0 if warmup else peak, peak, warmup)
    flat, fall = optax.schedules.constant_schedule(peak), optax.schedules.linear_schedule(peak, final * peak, down)
    return optax.schedules.join_schedules([up, flat, fall], [warmup, steps - down])


def warmup_constant(peak: float, steps: int, *, warmup: int | None = None) -> optax.Schedule:
    """Return a schedule: a warm-up to ``peak`` as in `warmup_cosine`, then ``peak`` to the end."""
    warmup = _check_warmup(warmup, steps)
    return optax.schedules.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)


SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": warmup_cosine,
    "linear": warmup_linear,
    "wsd": warmup_stable_decay,
    "constant": warmup_constant,
}
"""Schedules of the learning rate by the name of ``--schedule``, each a function of the peak and the number of steps."""


def _check_warmup(warmup: int | None, steps: int) -> int:
    warmup = min(1000, steps // 10) if warmup is None else warmup
    if not 0 <= warmup < steps:
        raise ConfigError(f"warmup={warmup} must be at least 0 and less than steps={steps}")
    return warmup


class AverageState(NamedTuple):
    """The state of the inner optimizer, and the moving average of the parameters, float32."""

    inner: Any
    average: Any


@dataclasses.dataclass(frozen=True)
class Averaged(Optimizer):
    r"""Another optimizer, with the exponential moving average of the parameters evaluated and saved in their place.

    $m_t = d\, m_{t-1} + (1 - d)\, \theta_t$ from $m_0 = \theta_0$, in float32. Raises ConfigError unless 0 < d < 1, and
    for an optimizer that keeps a second set of parameters already.
    """

    inner: Optimizer
    decay: float

    def __post_init__(self):
        if not 0 < self.decay < 1:
            raise ConfigError(f"--average {self.decay} must be between 0 and 1, such as 0.999")
        if type(self.inner).evaluation_parameters is not Optimizer.evaluation_parameters:
            raise ConfigError(f"--average: {type(self.inner).__name__} averages its parameters itself; leave one out")

    @property
    def schedule(self) -> str:
        """The schedule of the inner optimizer."""
        return self.inner.schedule

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return the inner optimizer, with the average added to its state."""
        inner = self.inner.build(learning_rate, weight_decay=weight_decay, decayed=decayed)

        def init(parameters: Any) -> AverageState:
            return AverageState(inner.init(parameters), jax.tree.map(lambda p: jnp.array(p, jnp.float32), parameters))

        def update(gradients: Any, state: AverageState, parameters: Any = None) -> tuple[Any, AverageState]:
            updates, after = inner.update(gradients, state.inner, parameters)
            new = optax.apply_updates(parameters, updates)
            average = jax.tree.map(lambda m, p: self.decay * m + (1 - self.decay) * p, state.average, new)
            return updates, AverageState(after, average)

        return optax.GradientTransformation(cast("Any", init), cast("Any", update))

    def evaluation_parameters(self, optimizer_state: AverageState, parameters: Any) -> Any:
        """Return the average, in the parameters' dtype."""
        return jax.tree.map(lambda m, p: m.astype(p.dtype), optimizer_state.average, parameters)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.1,
    decayed: Sequence[str] = (),
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Return AdamW (https://arxiv.org/abs/1711.05101) after clipping to the global norm ``clip_norm`` (None: no limit).

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


def find_optimizer(name: str, average: float = 0.0) -> Optimizer:
    """Return an installed optimizer, :class:`Averaged` if ``average`` is not 0. Raises ConfigError that lists them."""
    for point in metadata.entry_points(group=OPTIMIZERS, name=name):
        return Averaged(point.load(), average) if average else point.load()
    names = ", ".join(sorted(point.name for point in metadata.entry_points(group=OPTIMIZERS))) or "none"
    raise ConfigError(
        f"no installed package provides the optimizer {name!r} (installed: {names}): install the package that does, "
        "or name another with --optimizer"
    )


def decay_mask(parameters: Any, decayed: Sequence[str] = ()) -> Any:
    """Return the tree of ``parameters`` with True where weight decay acts.

    It acts on the kernels of linear layers and convolutions only: not on biases, scales, embeddings, positions, class
    tokens, decay rates or temperatures. ``decayed`` adds paths, such as "embedding.embedding", in which ``*`` stands
    for any characters.
    """

    def acts(path: tuple[Any, ...], x: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return matches(name, *decayed) or (matches(name, "kernel", "*.kernel") and x.ndim > 1)

    return jax.tree_util.tree_map_with_path(acts, parameters)
