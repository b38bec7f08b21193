r"""Shampoo, exactly: each axis of a gradient is multiplied by the inverse root of that axis's statistics.

Source: Gupta et al. 2018, https://arxiv.org/abs/1802.09568, algorithms 1 (matrices) and 2 (tensors). A parameter has k
axes and gradient $G_t$; the unfolding $G_{t,(i)}$ is $G_t$ as a matrix with axis i as rows:

$$ H^i_0 = \epsilon I, \qquad H^i_t = H^i_{t-1} + G_{t,(i)} G_{t,(i)}^\top \tag{1} $$
$$ P_t = G_t \times_1 (H^1_t)^{-1/2k} \times_2 \dots \times_k (H^k_t)^{-1/2k} \tag{2} $$
$$ m_t = \mu m_{t-1} + P_t, \qquad W_{t+1} = W_t - \eta\,(m_t + \lambda W_t) \tag{3} $$

With $b_2 < 1$, eq. 1 is a running mean: $H^i_t = b_2 H^i_{t-1} + (1 - b_2) G_{t,(i)} G_{t,(i)}^\top$ (Anil et al. 2020,
https://arxiv.org/abs/2002.09018, section 4). Grafting (same paper, section 2) keeps the direction of $P_t$ and takes
its length from another method's step, such as AdaGrad's $G_t / \sqrt{\sum_{i \le t} G_i^2}$.

The cost grows with the cube of an axis's length: use it for small tensors, and
:func:`scratch_optim.distributed_shampoo` for models.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from scratch_core.errors import ConfigError
from scratch_core.train.optimizers import Optimizer, decay_mask

from scratch_optim.settings import (
    check_b2,
    check_count,
    check_learning_rate,
    check_range,
    check_real,
    decay_coefficients,
    is_zero,
    weight_of_new,
)

GRAFTS = ("sgd", "adagrad")


class AxisState(NamedTuple):
    """Statistics $H^i$ of one axis and their inverse root, both [S, S]."""

    statistics_SS: jax.Array
    root_SS: jax.Array


class ParameterState(NamedTuple):
    """One parameter's axes, momentum and sum of squared gradients (None unless grafting needs it)."""

    axes: tuple[AxisState, ...]
    momentum: jax.Array
    squares: jax.Array | None


class ShampooState(NamedTuple):
    """Steps taken (int32), and a :class:`ParameterState` for each leaf of the parameters, in their order."""

    count: jax.Array
    parameters: tuple[ParameterState, ...]


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    epsilon: float = 1e-4,
    b2: float = 1.0,
    graft: str | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    every: int = 1,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""Return Shampoo, eqs. 1 to 3, for parameters of any rank.

    ``epsilon`` is $\epsilon$ of eq. 1; smaller eigenvalues count as ``epsilon`` in a root. ``b2`` = 1 sums the
    statistics, a smaller one averages them. ``graft``: "sgd" or "adagrad" gives the length of the step; None keeps that
    of $P_t$. ``momentum`` is $\mu$. Roots are computed at step 1 and then once in ``every`` steps. Weight decay acts
    where ``mask`` (a tree of booleans, or a function from the parameters to one) is True; with weight decay, ``update``
    needs the parameters. State is at least float32. Raises ConfigError for a setting out of range, and for parameters
    that are complex or integers.
    """
    check_learning_rate(learning_rate)
    check_range("epsilon", epsilon, 0.0, float("inf"), low_included=False)
    check_b2(b2)
    if graft is not None and graft not in GRAFTS:
        raise ConfigError(f"graft={graft!r} must be None or one of: {', '.join(GRAFTS)}")
    check_range("momentum", momentum, 0.0, 1.0)
    check_range("weight_decay", weight_decay, 0.0, float("inf"))
    check_count("every", every, 1)

    def init(params: Any) -> Any:
        check_real(params)
        return ShampooState(jnp.zeros((), jnp.int32), tuple(map(start, jax.tree.leaves(params))))

    def start(x: jax.Array) -> ParameterState:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        eyes = [jnp.eye(size, dtype=dtype) for size in x.shape]
        axes = tuple(AxisState(epsilon * eye, epsilon ** (-1 / (2 * x.ndim)) * eye) for eye in eyes)
        squares = jnp.zeros(x.shape, dtype) if graft == "adagrad" else None
        return ParameterState(axes, jnp.zeros(x.shape, dtype), squares)

    def direction(gradient: jax.Array, state: ParameterState, refresh: jax.Array) -> tuple[jax.Array, ParameterState]:
        """Return P of eq. 2 with the length that grafting gives it, and the state after this gradient."""
        g = gradient.astype(state.momentum.dtype)
        preconditioned, axes = g, []
        for axis, (statistics_SS, root_SS) in enumerate(state.axes):
            unfolded_SR = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)  # R: all other axes
            new = weight_of_new(b2)
            statistics_SS = b2 * statistics_SS + new * unfolded_SR @ unfolded_SR.T  # eq. 1
            root = partial(_inverse_root, p=2 * g.ndim, least=epsilon)
            root_SS = jax.lax.cond(refresh, root, lambda _, root_SS=root_SS: root_SS, statistics_SS)
            multiplied = jnp.tensordot(root_SS, preconditioned, (1, axis))
            preconditioned = jnp.moveaxis(multiplied, 0, axis)  # eq. 2
            axes.append(AxisState(statistics_SS, root_SS))
        squares = None if state.squares is None else state.squares + g**2
        if graft is not None:
            step = g if squares is None else jnp.where(squares > 0, g / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
            norm = jnp.linalg.norm(preconditioned)
            preconditioned = preconditioned * (jnp.linalg.norm(step) / jnp.where(norm > 0, norm, 1))
        return preconditioned, ParameterState(tuple(axes), momentum * state.momentum + preconditioned, squares)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None and not is_zero(weight_decay):
            raise ConfigError(
                f"weight_decay={weight_decay} needs the parameters: call update(gradients, state, params)"
            )
        leaves, structure = jax.tree.flatten(updates)
        refresh = state.count % every == 0
        after = tuple(direction(g, old, refresh)[1] for g, old in zip(leaves, state.parameters, strict=True))
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate)
        steps = [new.momentum for new in after]
        if not is_zero(weight_decay):
            decays = jax.tree.leaves(decay_coefficients(params, weight_decay, mask))
            weights = jax.tree.leaves(params)
            steps = [m + decay * w.astype(m.dtype) for m, decay, w in zip(steps, decays, weights, strict=True)]
        steps = [(-rate.astype(m.dtype) * m).astype(g.dtype) for m, g in zip(steps, leaves, strict=True)]  # eq. 3
        return jax.tree.unflatten(structure, steps), ShampooState(state.count + 1, after)

    return optax.GradientTransformation(init, update)


def _inverse_root(matrix_SS: jax.Array, *, p: int, least: float) -> jax.Array:
    """Return $H^{-1/p}$, with eigenvalues of H below ``least`` raised to it."""
    eigenvalues_S, eigenvectors_SS = jnp.linalg.eigh(matrix_SS)
    return (eigenvectors_SS * jnp.maximum(eigenvalues_S, least) ** (-1 / p)) @ eigenvectors_SS.T


class Shampoo(Optimizer):
    """:func:`shampoo`, as an optimizer that ``scratch train`` finds by name."""

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return Shampoo with AdaGrad's length, momentum of 0.9, and roots every 20 steps, after clipping to norm 1."""
        mask = partial(decay_mask, decayed=tuple(decayed))
        method = shampoo(learning_rate, graft="adagrad", momentum=0.9, weight_decay=weight_decay, every=20, mask=mask)
        return optax.chain(optax.clip_by_global_norm(1.0), method)


SHAMPOO = Shampoo()
