r"""Stochastic depth: in training, a residual branch is left out for some of the examples.

Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382, eq. 2 and 5. With the branch $f$, dropped at rate $p$:

$$ y = x + \frac{b}{1 - p} f(x), \qquad b \sim \mathrm{Bernoulli}(1 - p) \text{ for each example} \tag{1} $$

The division keeps the mean, so that evaluation uses the branch as it is; $p$ grows linearly with depth (eq. 4).
"""

import jax
import numpy as np
from flax import nnx


class DropPath(nnx.Module):
    """$b / (1 - p)$ of eq. 1 on the output of a branch, first axis the batch; nothing in evaluation.

    num_axes is the rank of the branch, batch included. Draws from the ``dropout`` stream of ``rngs``, like nnx.Dropout.
    """

    def __init__(self, rate: float, num_axes: int, *, rngs: nnx.Rngs):
        # One draw per example: rows, columns and features share it.
        self.dropout = nnx.Dropout(rate, broadcast_dims=tuple(range(1, num_axes)), rngs=rngs if rate else None)

    def __call__(self, branch: jax.Array) -> jax.Array:
        """Return for each example the branch, scaled, or zeros."""
        return self.dropout(branch)


def drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Return the rate of each layer: 0 for the first, ``rate`` for the last, linear between them."""
    return [float(p) for p in np.linspace(0.0, rate, num_layers)]
