r"""Low-rank adapters: a linear layer with a fixed kernel and two small matrices that are trained.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1. With a rank $r$ far below the kernel's sizes,

$$ y = x W + b + \frac{\alpha}{r}\, (x A)\, B \tag{1} $$

A starts random and B zero, so that at first the adapted layer computes what the base layer does. (The paper swaps rows
and columns: its A and B are the transposes of these.)

Shapes: A is [*in, r] and B [r, *out] for a kernel [*in, *out].
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core.layers.linear import Linear, dot_rows


class LoRAParam(nnx.Variable):
    """A matrix of an adapter, float32. It is not an ``nnx.Param``, so key tables and filters of parameters skip it."""


class LoRALinear(Linear):
    """Eq. 1 in place of ``base``, a :class:`Linear` or an ``nnx.Linear``, whose kernel and bias it takes over.

    rank is r, alpha the numerator of the scale. A is drawn like the kernel of a new linear layer in PyTorch.
    """

    def __init__(self, base: Any, rank: int, alpha: float, *, rngs: nnx.Rngs):
        self.in_features, self.out_features = base.in_features, base.out_features
        self.kernel, self.bias, self.dtype = base.kernel, base.bias, base.dtype or base.kernel.dtype
        inputs, outputs = ((n,) if isinstance(n, int) else tuple(n) for n in (base.in_features, base.out_features))
        bound = math.prod(inputs) ** -0.5
        self.lora_a = LoRAParam(jax.random.uniform(rngs.params(), (*inputs, rank), jnp.float32, -bound, bound))
        self.lora_b = LoRAParam(jnp.zeros((rank, *outputs)))
        self.alpha, self.scale = alpha, alpha / rank

    @property
    def rank(self) -> int:
        """The number of columns of A."""
        return self.lora_a.shape[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return y [..., *out_features] in ``dtype`` for x [..., *in_features]."""
        a, b = (matrix[...].astype(self.dtype) for matrix in (self.lora_a, self.lora_b))
        low = dot_rows(x.astype(self.dtype), a, a.ndim - 1)
        return super().__call__(x) + self.scale * dot_rows(low, b)  # eq. 1

    def merged(self) -> Linear:
        r"""Return the plain layer with the kernel $W + (\alpha / r) A B$, added in float32, in the kernel's dtype."""
        update = self.scale * dot_rows(self.lora_a[...], self.lora_b[...])
        kernel = (self.kernel[...].astype(jnp.float32) + update).astype(self.kernel.dtype)
        layer = Linear(
            self.in_features,
            self.out_features,
            use_bias=self.bias is not None,
            kernel_init=lambda *_: kernel,
            dtype=self.dtype,
            rngs=nnx.Rngs(0),
        )
        if self.bias is not None:
            layer.bias = self.bias
        return layer
