"""Pictures of how training went, drawn with Pillow."""

from typing import Any

import numpy as np

from scratch_core.vision.images import pillow


def draw_confusion(counts: np.ndarray, labels: tuple[str, ...], cell: int = 36) -> Any:
    """Return a picture of a confusion matrix: a row for each true class, a column for each answer.

    Above 40 classes the cells shrink and carry no numbers.
    """
    Image = pillow("drawing a confusion matrix")
    from PIL import ImageDraw

    number = len(labels)
    named = number <= 40
    cell = cell if named else max(1, 1400 // number)
    margin = 12 + (6 * max(len(name[:20]) for name in labels) if named else 0) + 14
    edge = margin + cell * number + 10
    picture = Image.new("RGB", (max(edge, 200), edge), "white")  # at least as wide as the words on top
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(number, dtype=bool)
    strength = np.where(right | (shares == 0), shares, 0.25 + 0.75 * shares)
    tint = np.where(right[..., None], (60, 130, 200), (215, 70, 60))
    cells = np.round(255 + (tint - 255) * strength[..., None]).astype(np.uint8)
    pixels = cells.repeat(cell, axis=0).repeat(cell, axis=1)
    draw = ImageDraw.Draw(picture)
    if named:
        for border in (0, cell - 1):
            pixels[border::cell] = pixels[:, border::cell] = 225
    picture.paste(Image.fromarray(pixels), (margin, margin))
    if named:
        for row, column in np.argwhere(counts):
            ink = "white" if strength[row, column] > 0.6 else "black"
            middle = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
            draw.text(middle, str(counts[row, column]), fill=ink, anchor="mm")
        for number, label in enumerate(labels):
            middle = margin + (number + 0.5) * cell
            draw.text((margin - 5, middle), label[:20], fill="black", anchor="rm")
            draw.text((middle, margin - 8), label[: max(1, cell // 6)], fill="black", anchor="mm")
    draw.text((4, 4), "rows: true class, columns: answer", fill="gray")
    return picture
