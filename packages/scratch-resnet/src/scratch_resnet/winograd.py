r"""Winograd's minimal filtering: a 3x3 convolution with 16 products for each four outputs, where 36 are usual.

Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308, section 4.1, $F(2 \times 2, 3 \times 3)$. Two
neighbouring outputs of three taps $g$ read four inputs $d$, and need four products instead of six:

$$ Y = A^\top \left[ (G g) \odot (B^\top d) \right] \tag{1} $$
$$ B^\top = \begin{pmatrix} 1 & 0 & -1 & 0 \\ 0 & 1 & 1 & 0 \\ 0 & -1 & 1 & 0 \\ 0 & 1 & 0 & -1 \end{pmatrix}, \quad
   G = \begin{pmatrix} 1 & 0 & 0 \\ \tfrac12 & \tfrac12 & \tfrac12 \\ \tfrac12 & -\tfrac12 & \tfrac12 \\ 0 & 0 & 1
   \end{pmatrix}, \quad
   A^\top = \begin{pmatrix} 1 & 1 & 1 & 0 \\ 0 & 1 & -1 & -1 \end{pmatrix} \tag{2} $$

Nested in both directions, a tile of 4x4 inputs gives 2x2 outputs. $B^\top$ and $A^\top$ only add, once per channel of
input and of output; the 16 products are sums over the input's channels, hence 16 matrix products over all tiles.

Shapes: B batch, Y rows, X columns, C channels of the input, O of the output; R, S rows and columns of tiles, T all
tiles of the batch.
"""

import jax
import jax.numpy as jnp
from jax import lax

MIN_CHANNELS = 64
"""From so many channels on, in and out, the products that are spared outweigh the sums around them."""


def pays(kernel_HWCO: jax.Array, stride: int) -> bool:
    """Return whether a convolution on a CPU is faster in this form. (A GPU's library chooses its own.)"""
    height, width, *channels = kernel_HWCO.shape
    fits = (height, width, stride, kernel_HWCO.dtype) == (3, 3, 1, jnp.float32)
    return fits and min(channels) >= MIN_CHANNELS and jax.default_backend() == "cpu"


def winograd(x_BYXC: jax.Array, kernel_33CO: jax.Array) -> jax.Array:
    """Return the 3x3 convolution of stride 1 with a padding of one, [B, Y, X, O], in the dtype of both.

    In float32 it rounds no more than the usual sum; in bfloat16 the sums before the products would.
    """
    B, Y, X, _ = x_BYXC.shape
    R, S = -(-Y // 2), -(-X // 2)
    padded = jnp.pad(x_BYXC, ((0, 0), (1, 1 + 2 * R - Y), (1, 1 + 2 * S - X), (0, 0)))
    inputs = [_inputs(*_overlapping(each, 1, R)) for each in _inputs(*_overlapping(padded, 2, S))]
    taps = [_taps(*each) for each in _taps(*kernel_33CO.swapaxes(0, 1))]
    products = [[_multiply(d, g) for d, g in zip(*column, strict=True)] for column in zip(inputs, taps, strict=True)]
    outputs = [_outputs(*each) for each in zip(*[_outputs(*each) for each in products], strict=True)]
    y_BR2S2O = jnp.stack([jnp.stack(each, axis=3) for each in outputs], axis=2)
    return y_BR2S2O.reshape(B, 2 * R, 2 * S, -1)[:, :Y, :X]


def _overlapping(x: jax.Array, axis: int, tiles: int) -> list[jax.Array]:
    """Return the first, second, third and fourth input of all tiles along an axis; tiles are two apart."""
    return [lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4)]


def _multiply(d_BRSC: jax.Array, g_CO: jax.Array) -> jax.Array:
    B, R, S, C = d_BRSC.shape
    return (d_BRSC.reshape(-1, C) @ g_CO).reshape(B, R, S, -1)


def _inputs(d0: jax.Array, d1: jax.Array, d2: jax.Array, d3: jax.Array) -> tuple[jax.Array, ...]:
    r"""$B^\top d$ of eq. 2."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _taps(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> tuple[jax.Array, ...]:
    """$G g$ of eq. 2."""
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


def _outputs(m0: jax.Array, m1: jax.Array, m2: jax.Array, m3: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""$A^\top m$ of eq. 2."""
    return m0 + m1 + m2, m1 - m2 - m3
