r"""The feed-forward layer, which maps each position by itself to a wider space and back.

$$ \mathrm{MLP}(x) = W_d\, f(W_u x) \tag{1} $$
$$ \mathrm{GatedMLP}(x) = W_d\, (f(W_g x) \odot W_u x) \tag{2} $$

Eq. 1: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 2. Eq. 2: Shazeer 2020,
https://arxiv.org/abs/2002.05202, eq. 6: SwiGLU with f = silu, GeGLU with f = gelu.

Shapes: D model width, F feed-forward width.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core.layers.linear import LECUN_NORMAL, Linear


def gelu(x: jax.Array) -> jax.Array:
    r"""Return $x\, \Phi(x)$ in x's dtype, computed in float32 (Hendrycks and Gimpel 2016).

    https://arxiv.org/abs/1606.08415. It uses erf, as PyTorch does. `jax.nn.gelu` uses erfc, which costs one more
    exponential and gains digits only where the result is nearly 0 (shared/docs/cpu.md).
    """
    half = 0.5 * x.astype(jnp.float32)
    return (half + half * jax.lax.erf(half * math.sqrt(2))).astype(x.dtype)


class MLP(nnx.Module):
    """Eq. 1 over the last axis, D -> F -> D, in ``dtype``."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        use_bias: bool = True,
        kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = partial(Linear, use_bias=use_bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.up = linear(d_model, d_ff)
        self.down = linear(d_ff, d_model)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return an array of x's shape, in ``dtype``."""
        return self.down(self.activation(self.up(x)))  # eq. 1


class GatedMLP(nnx.Module):
    """Eq. 2 over the last axis, D -> F -> D, in ``dtype``; ``kernel_init`` as in :class:`Linear`."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        use_bias: bool = False,
        kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = partial(Linear, use_bias=use_bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.gate = linear(d_model, d_ff)
        self.up = linear(d_model, d_ff)
        self.down = linear(d_ff, d_model)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return an array of x's shape, in ``dtype``."""
        return self.down(self.activation(self.gate(x)) * self.up(x))  # eq. 2
