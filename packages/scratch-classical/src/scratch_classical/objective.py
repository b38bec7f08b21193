r"""The one objective behind the linear models: a loss, plus L1, plus L2.

$$ J(w, b) = s \sum_i \omega_i \, \ell(y_i, x_i^\top w + b) + \lambda_1 \|w\|_1
             + \tfrac{\lambda_2}{2} \|w\|_2^2 \tag{1} $$

The intercept $b$ is never penalised. With $n = \sum_i \omega_i$:

| model | $\ell(y, z)$ | $s$ | $\lambda_1$ | $\lambda_2$ |
|---|---|---|---|---|
| least squares | $(y - z)^2$ | $1$ | $0$ | $0$ |
| ridge | $(y - z)^2$ | $1$ | $0$ | $2\alpha$ |
| lasso | $(y - z)^2$ | $1/2n$ | $\alpha$ | $0$ |
| elastic net | $(y - z)^2$ | $1/2n$ | $\alpha\rho$ | $\alpha(1-\rho)$ |
| logistic, $y \in \{0, 1\}$ | $\log(1 + e^z) - yz$ | $C$ | $\rho$ | $1-\rho$ |
| multinomial, $y \in \{0..K-1\}$ | $\log \sum_k e^{z_k} - z_y$ | $C$ | $\rho$ | $1-\rho$ |

$$ \operatorname{prox}_{t\lambda_1\|\cdot\|_1}(w) = \operatorname{sign}(w) \max(|w| - t\lambda_1, 0) \tag{2} $$

Shapes: I samples, D features, K outputs or classes (absent for one output).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import Array

Number: TypeAlias = float | jax.Array  # a number, which may be traced
Loss: TypeAlias = Callable[[Array, Array], jax.Array]


class LinearSolution(NamedTuple):
    """A minimiser of eq. 1: coef [D] with one intercept, or for K outputs or classes coef [D, K] and intercept [K].

    A path of A penalties has an axis [A] in front of both.
    """

    coef: jax.Array
    intercept: jax.Array


def squared_loss(y: Array, z: Array) -> jax.Array:
    """Return $(y - z)^2$ per sample, summed over outputs."""
    error = jnp.square(y - z)
    return error if error.ndim < 2 else error.sum(-1)


def logistic_loss(y: Array, z: Array) -> jax.Array:
    r"""Return $\log(1 + e^z) - yz$ for labels 0 and 1."""
    return jnp.logaddexp(0.0, z) - y * z


def multinomial_loss(y: Array, z: Array) -> jax.Array:
    r"""Return $\log \sum_k e^{z_k} - z_y$ for labels y: integers, or already one-hot [I, K]."""
    y_IK = y if y.ndim == z.ndim else jax.nn.one_hot(y, z.shape[-1], dtype=z.dtype)
    return jax.nn.logsumexp(z, -1) - (y_IK * z).sum(-1)


def soft_threshold(w: ArrayLike, threshold: ArrayLike) -> jax.Array:
    """Return the proximal operator of the L1 norm (eq. 2); values within the threshold become exactly zero."""
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - threshold, 0)


@partial(jax.tree_util.register_dataclass, data_fields=["scale", "l1", "l2"], meta_fields=["loss"])
@dataclass(frozen=True)
class Objective:
    """Eq. 1: ``loss`` with its ``scale`` s, and the penalties ``l1`` and ``l2``; these numbers may be traced."""

    loss: Loss
    scale: Number = 1.0
    l1: Number = 0.0
    l2: Number = 0.0

    @classmethod
    def least_squares(cls) -> "Objective":
        """Return the objective of :func:`solve_least_squares`."""
        return cls(squared_loss)

    @classmethod
    def ridge(cls, alpha: Number) -> "Objective":
        """Return the objective of :func:`solve_ridge`."""
        return cls(squared_loss, l2=2 * alpha)

    @classmethod
    def elastic_net(cls, alpha: Number, l1_ratio: Number, total_weight: Number) -> "Objective":
        """Return the objective of :func:`solve_elastic_net`; ``total_weight`` is n, for weights of 1 that is I."""
        return cls(squared_loss, 0.5 / total_weight, alpha * l1_ratio, alpha * (1 - l1_ratio))

    @classmethod
    def lasso(cls, alpha: Number, total_weight: Number) -> "Objective":
        """Return the objective of :func:`solve_lasso`; ``total_weight`` as for :meth:`elastic_net`."""
        return cls.elastic_net(alpha, 1.0, total_weight)

    @classmethod
    def logistic(cls, C: Number = 1.0, l1_ratio: Number = 0.0, multinomial: bool = False) -> "Objective":
        """Return the objective of :func:`solve_logistic_regression`."""
        return cls(multinomial_loss if multinomial else logistic_loss, C, l1_ratio, 1 - l1_ratio)

    def smooth(
        self, coef: Array, intercept: Array | float, X: Array, y: Array, sample_weight: Array | None = None
    ) -> jax.Array:
        """Return the differentiable part of eq. 1: loss and L2. coef is [D] or [D, K]."""
        losses = self.loss(y, jnp.matmul(X, coef) + intercept)
        data = jnp.sum(losses if sample_weight is None else sample_weight * losses)
        return self.scale * data + 0.5 * self.l2 * jnp.sum(jnp.square(coef))

    def penalty(self, coef: Array) -> jax.Array:
        """Return the part of eq. 1 that is not differentiable."""
        return self.l1 * jnp.abs(coef).sum()

    def __call__(
        self, coef: Array, intercept: Array | float, X: Array, y: Array, sample_weight: Array | None = None
    ) -> jax.Array:
        """Return $J$ (eq. 1)."""
        return self.smooth(coef, intercept, X, y, sample_weight) + self.penalty(coef)

    def prox(self, coef: Array, step: Number) -> jax.Array:
        """Return eq. 2 with threshold ``step * l1``."""
        return soft_threshold(coef, step * self.l1)
