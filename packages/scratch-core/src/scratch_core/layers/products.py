"""Products with a kernel, as products of two matrices."""

import math
from typing import Any

import jax
from jax import lax

LAST_AXIS = (((-1,), (0,)), ((), ()))


def dot_rows(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any = LAST_AXIS,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """Return the last axes of x times the first of a kernel: [..., *in] and [*in, *out] give [..., *out].

    The arguments are those of `lax.dot_general`, so that `nnx.Linear` and `nnx.LinearGeneral` can be given this for
    it. How many axes are contracted is all that is read of ``dimension_numbers``; ``out_sharding`` is left to the
    compiler.

    The product is the same, but its gradient by the kernel is one as well: with more than two axes XLA's CPU compiler
    transposes the operands first, which takes up to twice the time of the product.
    """
    contracted = len(dimension_numbers[0][0])
    inner = math.prod(kernel.shape[:contracted])
    y = lax.dot_general(
        x.reshape(-1, inner),
        kernel.reshape(inner, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return y.reshape(*x.shape[: x.ndim - contracted], *kernel.shape[contracted:])
