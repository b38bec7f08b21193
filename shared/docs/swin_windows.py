"""Draw Swin V2's windows, their shift and its mask, from the functions that the model runs.

    uv run --all-packages python shared/docs/swin_windows.py [FILE.png]

Left: the windows of a block. Middle: the windows of the next block, shifted by half a window; what left at the top
and on the left has come in at the bottom and on the right. Right: who may read whom within the last shifted window
(black: blocked), because the roll has brought together what is far apart in the image.
"""

import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw
from scratch_swin.windows import from_windows, shift_mask, shift_regions, to_windows

SIZE, WINDOW, SHIFT, CELL = 8, 4, 2, 32
COLOURS = ["#e6a23c", "#409eff", "#67c23a", "#f56c6c", "#9b8cff", "#3cc8b4", "#c0a080", "#ff9ecf", "#909399"]


def window_map(shift: int) -> np.ndarray:
    """Return the number of the window that each position of the map is read in."""
    count = (SIZE // WINDOW) ** 2
    numbers = jnp.broadcast_to(jnp.arange(count)[None, :, None, None], (1, count, WINDOW**2, 1))
    return np.asarray(from_windows(numbers, WINDOW, shift, SIZE, SIZE))[0, :, :, 0]


def grid(draw: ImageDraw.ImageDraw, left: int, title: str, colour, text) -> None:
    draw.text((left, 10), title, fill="black")
    for y in range(SIZE):
        for x in range(SIZE):
            box = (left + x * CELL, 34 + y * CELL, left + (x + 1) * CELL - 2, 34 + (y + 1) * CELL - 2)
            draw.rectangle(box, fill=COLOURS[int(colour(y, x)) % len(COLOURS)])
            draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), str(text(y, x)), fill="white", anchor="mm")


def main() -> None:
    width = SIZE * CELL
    picture = Image.new("RGB", (3 * width + 80, width + 64), "white")
    draw = ImageDraw.Draw(picture)
    plain, shifted, regions = window_map(0), window_map(SHIFT), shift_regions(SIZE, SIZE, WINDOW, SHIFT)
    grid(draw, 20, "windows of one block", lambda y, x: plain[y, x], lambda y, x: plain[y, x])
    # The regions are of the rolled map: bring them back to where their positions are in the image.
    rolled = to_windows(jnp.asarray(regions)[None, :, :, None], WINDOW, 0)
    where = np.asarray(from_windows(rolled, WINDOW, SHIFT, SIZE, SIZE))[0, :, :, 0]
    grid(
        draw,
        40 + width,
        "shifted windows (number), regions (colour)",
        lambda y, x: where[y, x],
        lambda y, x: shifted[y, x],
    )
    mask = shift_mask(SIZE, SIZE, WINDOW, SHIFT)[-1]
    side, left = len(mask), 60 + 2 * width
    draw.text((left, 10), f"mask of shifted window {shifted.max()}: white may read", fill="black")
    step = width // side
    for t in range(side):
        for s in range(side):
            box = (left + s * step, 34 + t * step, left + (s + 1) * step - 1, 34 + (t + 1) * step - 1)
            draw.rectangle(box, fill="white" if mask[t, s] else "black", outline="#b0b0b0")
    target = sys.argv[1] if len(sys.argv) > 1 else "swin_windows.png"
    picture.save(target)
    print(target)


if __name__ == "__main__":
    main()
