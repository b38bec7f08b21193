r"""Windows of a map: cutting, shifting, masking, and the distances within a window.

Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2 and figure 4 (shift and mask); Liu et al. 2022,
https://arxiv.org/abs/2111.09883, section 3.2 (distances):

$$ \widehat{\Delta x} = \mathrm{sign}(\Delta x) \log_2(1 + |8 \Delta x / (M' - 1)|) / \log_2 8 \tag{1} $$

Distances are divided by those of the pretrained window $M'$, so that a larger window extrapolates little.
The paper's eq. 4 leaves out the 8s; the released models have them.

Shapes: B batch, Y rows, X columns of a map, D its width; W windows; T query positions and S key positions of a window.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np


def pad_to_multiple(x_BYXD: jax.Array, rows: int, columns: int) -> jax.Array:
    """Return a map with zeros added below and on the right, so that its sizes are multiples of rows and columns."""
    _, Y, X, _ = x_BYXD.shape
    return jnp.pad(x_BYXD, ((0, 0), (0, -Y % rows), (0, -X % columns), (0, 0)))


def to_windows(x_BYXD: jax.Array, window: int, shift: int) -> jax.Array:
    """Return the windows of a map, shifted by ``shift`` down and right: [B, W, window * window, D].

    The map is padded to whole windows and then rolled: the last windows hold the rows and columns that the shift
    cut off at the start.
    """
    x_BYXD = pad_to_multiple(x_BYXD, window, window)
    B, Y, X, D = x_BYXD.shape
    if shift:
        x_BYXD = jnp.roll(x_BYXD, (-shift, -shift), axis=(1, 2))
    x = x_BYXD.reshape(B, Y // window, window, X // window, window, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, -1, window * window, D)


def from_windows(windows_BWTD: jax.Array, window: int, shift: int, rows: int, columns: int) -> jax.Array:
    """Return the map [B, rows, columns, D] of these windows: the inverse of :func:`to_windows`."""
    B, _, _, D = windows_BWTD.shape
    down, right = -(-rows // window), -(-columns // window)
    x = windows_BWTD.reshape(B, down, right, window, window, D).transpose(0, 1, 3, 2, 4, 5)
    x_BYXD = x.reshape(B, down * window, right * window, D)
    if shift:
        x_BYXD = jnp.roll(x_BYXD, (shift, shift), axis=(1, 2))
    return x_BYXD[:, :rows, :columns]


@cache
def shift_regions(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """Return the region, 0 to 8, of each position [rows, columns] of a rolled map.

    The roll puts positions side by side that were not neighbours before; such positions have different regions.
    """

    def part(size: int) -> np.ndarray:
        i = np.arange(size)
        return (i >= size - window).astype(np.int64) + (i >= size - shift)

    return 3 * part(rows)[:, None] + part(columns)[None, :]


@cache
def shift_mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """Return mask_WTS: True where two positions of a window of the rolled, padded map have the same region."""
    regions = shift_regions(rows + -rows % window, columns + -columns % window, window, shift)
    Y, X = regions.shape
    regions_WT = regions.reshape(Y // window, window, X // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return regions_WT[:, :, None] == regions_WT[:, None, :]


@cache
def log_distances(window: int, pretrained: int) -> np.ndarray:
    """Return eq. 1 for all distances between two positions of a window: [(2M - 1)^2, 2], rows then columns.

    ``pretrained`` is M'; 0 means the window itself.
    """
    distance = np.arange(-(window - 1), window, dtype=np.float32)
    scaled = 8 * distance / max((pretrained or window) - 1, 1)
    scaled = np.sign(scaled) * np.log2(np.abs(scaled) + 1) / np.log2(8)  # eq. 1
    return np.stack(np.meshgrid(scaled, scaled, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


@cache
def distance_index(window: int) -> np.ndarray:
    """Return index_TS: the row of :func:`log_distances` for each pair of positions of a window."""
    row, column = (i.ravel() for i in np.meshgrid(np.arange(window), np.arange(window), indexing="ij"))
    down, right = (i[:, None] - i[None, :] + window - 1 for i in (row, column))
    return down * (2 * window - 1) + right
