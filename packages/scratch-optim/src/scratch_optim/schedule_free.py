r"""Schedule-free SGD and AdamW: an average of the iterates instead of a schedule that must know the number of steps.

Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682, eqs. 1 to 3 and algorithm 1. There are three sequences: z
takes the steps, x is the weighted average of z, and gradients are taken at y, between the two. With the learning rate
$\gamma_t$:

$$ y_t = (1 - \beta) z_t + \beta x_t \tag{1} $$
$$ z_{t+1} = z_t - \gamma_t \left(d_t + \lambda y_t\right) \tag{2} $$
$$ x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1} \tag{3} $$
$$ c_{t+1} = \frac{w_t}{\sum_{i \le t} w_i}, \qquad w_t = t^r \left(\max_{i \le t} \gamma_i\right)^p \tag{4} $$

$d_t$ is the gradient at $y_t$ for SGD; for AdamW it is divided by the root of its second moment, which is corrected for
its start at 0. $\lambda$ is the weight decay, p ``weight_lr_power`` and r ``r``.

The optimizer trains the parameters y. Its state holds z; x follows from eq. 1. :func:`evaluation_parameters` returns x,
which is to be evaluated and saved. For parameters narrower than float32 the state holds x as well: most steps of y
round to nothing, and an x computed from such a y moves away from z instead of towards it.
"""

import numbers
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from scratch_core.errors import ConfigError
from scratch_core.train.optimizers import Optimizer, decay_mask

from scratch_optim.settings import check_count, check_learning_rate, check_range, check_real, decay_coefficients


class ScheduleFreeState(NamedTuple):
    """State of a schedule-free method. ``beta`` is a leaf, so that x can be computed from a saved state and y."""

    count: jax.Array
    """Steps taken, int32."""
    z: Any
    second_moment: Any
    """AdamW's running mean of squared gradients; None for SGD."""
    largest_rate: jax.Array
    weight_sum: jax.Array
    beta: jax.Array
    x: Any
    """Kept for parameters narrower than float32; None for others, whose x follows from y and z."""


def schedule_free_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""Return schedule-free SGD: eqs. 1 to 4 with $d_t$ the gradient.

    ``momentum`` is $\beta$ of eq. 1, in (0, 1). The learning rate rises linearly over ``warmup_steps``.
    Weight decay acts where ``mask`` (a tree of booleans, or a function from the parameters to one) is True. State is at
    least float32 for parameters of any dtype. ``update`` needs the parameters (y). Raises ConfigError for a setting out
    of range, and for parameters that are complex or integers.
    """
    return _schedule_free(
        learning_rate,
        b2=None,
        eps=0.0,
        beta=_checked_beta("momentum", momentum),
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
        mask=mask,
    )


def schedule_free_adamw(
    learning_rate: optax.ScalarOrSchedule = 0.0025,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""Return schedule-free AdamW: eqs. 1 to 4 with $d_t = g_t / (\sqrt{v_t / (1 - b_2^t)} + \epsilon)$.

    ``b1`` is $\beta$ of eq. 1, in (0, 1); ``b2`` weighs the second moment $v_t$. The other arguments are those of
    :func:`schedule_free_sgd`.
    """
    check_range("b2", b2, 0.0, 1.0)
    check_range("eps", eps, 0.0, float("inf"))
    return _schedule_free(
        learning_rate,
        b2=b2,
        eps=eps,
        beta=_checked_beta("b1", b1),
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
        mask=mask,
    )


def evaluation_parameters(state: Any, params: Any) -> Any:
    """Return x, the averaged parameters to evaluate and to save, in the structure and dtypes of ``params``.

    ``state`` is the optimizer's state, or one that contains it, such as that of ``optax.chain``; ``params`` are y, the
    trained parameters. Raises ConfigError unless ``state`` holds exactly one schedule-free state.
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ScheduleFreeState))
        if isinstance(leaf, ScheduleFreeState)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"the optimizer's state holds {len(found)} schedule-free states, but x is computed from exactly one: "
            "give the state of schedule_free_sgd or schedule_free_adamw"
        )
    (state,) = found

    def evaluated(y: jax.Array, z: Any, x: Any) -> jax.Array:
        if isinstance(z, optax.MaskedNode):  # another method of optax.masked or optax.partition trains it
            return y
        return (_average(y, z, state.beta) if x is None else x).astype(y.dtype)

    return jax.tree.map(evaluated, params, state.z, state.x)


def _average(y: jax.Array, z: jax.Array, beta: jax.Array) -> jax.Array:
    """Return x of eq. 1 for y and z."""
    return (y.astype(z.dtype) - (1 - beta.astype(z.dtype)) * z) / beta.astype(z.dtype)


def _schedule_free(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b2: float | None,
    eps: float,
    beta: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    mask: Any,
) -> optax.GradientTransformation:
    """Return the transformation; ``b2`` None is SGD."""
    check_learning_rate(learning_rate)
    check_range("weight_decay", weight_decay, 0.0, float("inf"))
    check_count("warmup_steps", warmup_steps, 0)
    check_range("r", r, 0.0, float("inf"))
    check_range("weight_lr_power", weight_lr_power, 0.0, float("inf"))

    def init(params: Any) -> Any:
        check_real(params)
        z = jax.tree.map(lambda y: jnp.array(y, _state_dtype(y)), params)  # a copy: both may be donated to a step
        second_moment = None if b2 is None else jax.tree.map(jnp.zeros_like, z)
        x = jax.tree.map(lambda y, z: None if y.dtype == z.dtype else jnp.array(z), params, z)
        count, largest_rate, weight_sum = jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(())
        return ScheduleFreeState(count, z, second_moment, largest_rate, weight_sum, jnp.asarray(beta), x)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ConfigError("schedule-free methods need the parameters: call update(gradients, state, params)")
        t = state.count + 1
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate)
        rate = rate.astype(state.largest_rate.dtype) * (
            jnp.minimum(1, t.astype(float) / warmup_steps) if warmup_steps else 1
        )
        largest_rate = jnp.maximum(state.largest_rate, rate)
        weight = t.astype(rate.dtype) ** r * largest_rate**weight_lr_power
        weight_sum = state.weight_sum + weight
        c = jnp.where(weight_sum > 0, weight / jnp.where(weight_sum > 0, weight_sum, 1), 0)  # eq. 4

        g = jax.tree.map(lambda gradient, z: gradient.astype(z.dtype), updates, state.z)
        second_moment = None
        if b2 is not None:
            second_moment = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.second_moment, g)
            correction = 1 - b2 ** t.astype(rate.dtype)
            g = jax.tree.map(lambda g, v: g / (jnp.sqrt(v / correction.astype(v.dtype)) + eps), g, second_moment)

        def step(y: jax.Array, z: jax.Array, kept_x: Any, d: jax.Array, decay: Any) -> tuple[jax.Array, jax.Array, Any]:
            y_now, gamma, weight = y.astype(z.dtype), rate.astype(z.dtype), c.astype(z.dtype)
            x = _average(y, z, state.beta) if kept_x is None else kept_x
            z = z - gamma * (d + decay * y_now)  # eq. 2
            x = (1 - weight) * x + weight * z  # eq. 3
            beta = state.beta.astype(z.dtype)
            y_next = ((1 - beta) * z + beta * x).astype(y.dtype)  # eq. 1
            return (y_next.astype(z.dtype) - y_now).astype(y.dtype), z, None if kept_x is None else x

        decays = decay_coefficients(params, weight_decay, mask)
        after = jax.tree.map(step, params, state.z, state.x, g, decays)
        updates, z, x = (jax.tree.map(lambda _, new, i=i: new[i], params, after) for i in range(3))
        return updates, ScheduleFreeState(t, z, second_moment, largest_rate, weight_sum, state.beta, x)

    return optax.GradientTransformation(init, update)


def _state_dtype(x: jax.Array) -> Any:
    """Return float32 for narrower dtypes, and the dtype itself for wider ones."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _checked_beta(name: str, value: Any) -> Any:
    if not isinstance(value, Tracer) and not (isinstance(value, numbers.Real | jax.Array) and 0 < value < 1):
        raise ConfigError(
            f"{name}={value} must be above 0 and below 1: "
            "at 0, x cannot be computed from y and z, and at 1, y does not depend on z"
        )
    return value


class ScheduleFree(Optimizer):
    """A schedule-free method that ``scratch train`` finds by name: warm-up, then a constant learning rate."""

    @property
    def schedule(self) -> str:
        """Constant: the average replaces a falling learning rate."""
        return "constant"

    def __init__(self, method: Any):
        self.method = method

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return the method after clipping to a global norm of 1."""
        mask = partial(decay_mask, decayed=tuple(decayed))
        method = self.method(learning_rate, weight_decay=weight_decay, mask=mask)
        return optax.chain(optax.clip_by_global_norm(1.0), method)

    def evaluation_parameters(self, optimizer_state: Any, parameters: Any) -> Any:
        """Return x, the averaged parameters."""
        return evaluation_parameters(optimizer_state, parameters)


SGD = ScheduleFree(schedule_free_sgd)
ADAMW = ScheduleFree(schedule_free_adamw)
