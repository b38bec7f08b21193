r"""Winograd's minimal filtering: a 3x3 convolution with 16 products for every four outputs instead of 36.

Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308, section 4.1, $F(2 \times 2, 3 \times 3)$. A tile of 2x2
neighbouring outputs $m$ reads 4x4 inputs $d$, through 3x3 taps $g$:

$$ m = A^\top \left[ (G g\, G^\top) \odot (B^\top d\, B) \right] A \tag{1} $$
$$ B^\top = \begin{pmatrix} 1 & 0 & -1 & 0 \\ 0 & 1 & 1 & 0 \\ 0 & -1 & 1 & 0 \\ 0 & 1 & 0 & -1 \end{pmatrix}, \quad
   G = \begin{pmatrix} 1 & 0 & 0 \\ \tfrac12 & \tfrac12 & \tfrac12 \\ \tfrac12 & -\tfrac12 & \tfrac12 \\ 0 & 0 & 1
   \end{pmatrix}, \quad
   A^\top = \begin{pmatrix} 1 & 1 & 1 & 0 \\ 0 & 1 & -1 & -1 \end{pmatrix} \tag{2} $$

Products with $B^\top$ and $A^\top$ need only additions, once per channel of the input and of the output. Each of the 16
products of eq. 1 is summed over the input's channels, which makes it a matrix product over all tiles of the batch.

Shapes: B batch, Y rows, X columns, C channels of the input, O of the output; R, S rows and columns of tiles.
"""

import jax
import jax.numpy as jnp
from jax import lax
from scratch_core.layers.linear import dot_rows

MIN_CHANNELS = 64
"""With at least this many channels in and out, the products saved cost more than the additional sums."""


def pays(kernel_HWCO: jax.Array, stride: int) -> bool:
    """Return whether this form of a convolution is faster on a CPU; its shape and dtype decide."""
    height, width, *channels = kernel_HWCO.shape
    return (height, width, stride, kernel_HWCO.dtype) == (3, 3, 1, jnp.float32) and min(channels) >= MIN_CHANNELS


def winograd(x_BYXC: jax.Array, kernel_33CO: jax.Array) -> jax.Array:
    """Return the 3x3 convolution of stride 1 with a padding of one, [B, Y, X, O], in the dtype of both.

    In float32 it rounds no more than the direct sum; in bfloat16 the sums before the products would round too much.
    """
    B, Y, X, _ = x_BYXC.shape
    R, S = -(-Y // 2), -(-X // 2)
    padded = jnp.pad(x_BYXC, ((0, 0), (1, 1 + 2 * R - Y), (1, 1 + 2 * S - X), (0, 0)))
    # Nested 4x4 lists, by column, then by row: entry (i, j) is that position of all tiles [B, R, S, C], or taps [C, O].
    inputs = [_inputs(*_overlapping(column, 1, R)) for column in _inputs(*_overlapping(padded, 2, S))]
    taps = [_taps(*column) for column in _taps(*kernel_33CO.swapaxes(0, 1))]
    products = [[dot_rows(d, g) for d, g in zip(*columns, strict=True)] for columns in zip(inputs, taps, strict=True)]
    rows = zip(*[_outputs(*column) for column in products], strict=True)
    y_BR2S2O = jnp.stack([jnp.stack(_outputs(*row), axis=3) for row in rows], axis=2)
    return y_BR2S2O.reshape(B, 2 * R, 2 * S, -1)[:, :Y, :X]


def _overlapping(x: jax.Array, axis: int, tiles: int) -> list[jax.Array]:
    """Return the first, second, third and fourth input of all tiles along an axis; tiles are two apart."""
    return [lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4)]


def _inputs(d0: jax.Array, d1: jax.Array, d2: jax.Array, d3: jax.Array) -> tuple[jax.Array, ...]:
    r"""$B^\top d$ of eq. 1, along one axis."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _taps(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> tuple[jax.Array, ...]:
    """$G g$ of eq. 1, along one axis."""
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


def _outputs(m0: jax.Array, m1: jax.Array, m2: jax.Array, m3: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""$A^\top$ of eq. 1, along one axis."""
    return m0 + m1 + m2, m1 - m2 - m3
