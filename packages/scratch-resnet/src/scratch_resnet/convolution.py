r"""Convolution and max pooling of a ResNet, each in the form that is fastest on a CPU.

A convolution with kernel $w$ of K x K, stride $s$ and a padding of $\lfloor K / 2 \rfloor$ on every side computes

$$ y_{ij} = \sum_{k, l} w_{kl}^\top\, x_{si + k - \lfloor K/2 \rfloor,\; sj + l - \lfloor K/2 \rfloor} \tag{1} $$

shared/docs/cpu.md lists the forms, what each gains and how to measure it.

Shapes: B batch, Y rows, X columns, C channels; O channels of the result.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from scratch_core.layers.linear import dot_rows

from scratch_resnet.winograd import pays, winograd


def convolve(x_BYXC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return eq. 1, [B, ceil(Y / stride), ceil(X / stride), O], for a kernel [K, K, C, O]: XLA's own form.

    With stride 2 the first window is centred on the first pixel, as in PyTorch; XLA's "SAME" padding would centre it on
    the second one for even sizes.
    """
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x_BYXC, kernel, (stride, stride), [(pad, pad), (pad, pad)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Convolution(nnx.Module):
    """Eq. 1, without bias, in ``dtype``.

    K = 1 is a matrix product. On a CPU, a 3x3 kernel with many channels takes a form with fewer products (winograd.py).
    """

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, *, dtype, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, 1502.01852
        self.kernel = nnx.Param(init(rngs.params(), (size, size, c_in, c_out)))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """Return the convolution [B, ceil(Y / stride), ceil(X / stride), O]."""
        x_BYXC, kernel, s = x_BYXC.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride
        if kernel.shape[0] == 1:
            return dot_rows(x_BYXC[:, ::s, ::s], kernel[0, 0])
        if pays(kernel, s):
            return lax.platform_dependent(
                x_BYXC, kernel, cpu=winograd, default=lambda x, kernel: convolve(x, kernel, s)
            )
        return convolve(x_BYXC, kernel, s)


def max_pool(x_BYXC: jax.Array) -> jax.Array:
    """Return the maximum of 3x3 windows with stride 2 and a padding of one: [B, ceil(Y / 2), ceil(X / 2), C].

    It pools one axis after the other, each as the maximum of three slices. The gradient of such a maximum selects one
    of three; the gradient of a window's maximum must search for its position. Of equal values, the first gets the
    gradient, as in PyTorch.
    """
    return _max_of_three(_max_of_three(x_BYXC, axis=2), axis=1)


def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 2)
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    first, second, third = (lax.slice_in_dim(x, i, i + size, 2, axis) for i in range(3))
    largest = jnp.where(first >= second, first, second)
    return jnp.where(largest >= third, largest, third)
