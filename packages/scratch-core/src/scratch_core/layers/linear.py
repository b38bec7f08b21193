r"""The linear layer, $y = x W + b$, and the product that it consists of.

Shapes: the kernel is [*in, *out] for an x of shape [..., *in]: heads are axes of their own, as in (D) -> (N, H).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

LECUN_NORMAL = nnx.initializers.lecun_normal()


def dot_rows(x: jax.Array, kernel: jax.Array, num_axes: int = 1) -> jax.Array:
    """Return the product of x [..., *in] and a kernel [*in, *out] over their ``num_axes`` axes ``in``: [..., *out].

    The value is that of `lax.dot_general`. Both operands are reshaped to matrices first, so that the gradient with
    respect to the kernel is a product of matrices too. With more axes, XLA's CPU compiler would make transposed copies
    of the operands (shared/docs/cpu.md).
    """
    inner = math.prod(kernel.shape[:num_axes])
    y = jax.lax.dot(x.reshape(-1, inner), kernel.reshape(inner, -1))
    return y.reshape(*x.shape[: x.ndim - num_axes], *kernel.shape[num_axes:])


class Linear(nnx.Module):
    """A linear layer over the last axis of an array, or over the last axes where ``in_features`` is a tuple.

    ``in_features`` and ``out_features`` are one size, or a tuple: ``Linear(D, (N, H))`` makes heads from features, and
    ``Linear((N, H), D)`` merges them. The product runs in ``dtype``; parameters are float32.
    ``kernel_init(key, [in, out])`` makes the kernel as a matrix.
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_features: int | tuple[int, ...],
        *,
        use_bias: bool = True,
        kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inputs, outputs = ((size,) if isinstance(size, int) else tuple(size) for size in (in_features, out_features))
        kernel = kernel_init(rngs.params(), (math.prod(inputs), math.prod(outputs)), jnp.float32)
        self.kernel = nnx.Param(kernel.reshape(*inputs, *outputs))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), outputs)) if use_bias else None
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return y [..., *out_features] in ``dtype`` for x [..., *in_features]."""
        num_axes = 1 if isinstance(self.in_features, int) else len(self.in_features)
        y = dot_rows(x.astype(self.dtype), self.kernel[...].astype(self.dtype), num_axes)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
