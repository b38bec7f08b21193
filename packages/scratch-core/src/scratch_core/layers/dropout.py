r"""Dropout of single features, and of whole residual branches (stochastic depth). Both are off in evaluation.

Dropout (Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html) sets each feature to zero at rate $p$
and divides the others by $1 - p$. Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382, eq. 2 and 5)
does the same to a whole branch $f$, with one draw for each example:

$$ y = x + \frac{b}{1 - p} f(x), \qquad b \sim \mathrm{Bernoulli}(1 - p) \text{ for each example} \tag{1} $$

The division keeps the mean, so that evaluation uses the branch unscaled. $p$ grows linearly with depth (eq. 4).
"""

import jax
import numpy as np
from flax import nnx


def dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Return a dropout layer that draws from the ``dropout`` stream of ``rngs``; a rate of 0 needs no stream."""
    return nnx.Dropout(rate, rngs=rngs if rate else None)


class DropPath(nnx.Module):
    """Multiply the output of a branch [B, ...] by $b / (1 - p)$ of eq. 1.

    num_axes is the rank of that output, batch included. Draws from the ``dropout`` stream of ``rngs``.
    """

    def __init__(self, rate: float, num_axes: int, *, rngs: nnx.Rngs):
        # One draw per example: rows, columns and features share it.
        self.dropout = nnx.Dropout(rate, broadcast_dims=tuple(range(1, num_axes)), rngs=rngs if rate else None)

    def __call__(self, branch: jax.Array) -> jax.Array:
        """Return, for each example, the scaled branch or zeros."""
        return self.dropout(branch)


def drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Return the rate of each layer: 0 for the first, ``rate`` for the last, linear between them."""
    return [float(p) for p in np.linspace(0.0, rate, num_layers)]
