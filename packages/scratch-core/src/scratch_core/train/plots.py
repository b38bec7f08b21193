"""Pictures of how training went, drawn with Pillow."""

from typing import Any

import numpy as np

from scratch_core.data.images import pillow


def draw_confusion(counts: np.ndarray, labels: tuple[str, ...], cell: int = 36) -> Any:
    """Return a picture of a confusion matrix: a row for each true class, a column for each answer.

    Above 40 classes the cells shrink and carry no numbers.
    """
    Image = pillow("drawing a confusion matrix")
    from PIL import ImageDraw

    number = len(labels)
    cell = cell if number <= 40 else max(1, 1400 // number)
    named = number <= 40
    margin = 12 + (6 * max(len(name[:20]) for name in labels) if named else 0) + 14
    edge = margin + cell * number + 10
    picture = Image.new("RGB", (max(edge, 200), edge), "white")  # at least as wide as the words on top
    draw = ImageDraw.Draw(picture)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row in range(number):
        for column in range(number):
            share, x, y = shares[row, column], margin + column * cell, margin + row * cell
            right = row == column
            tint = (60, 130, 200) if right else (215, 70, 60)
            strength = share if right or share == 0 else 0.25 + 0.75 * share
            colour = tuple(round(255 + (t - 255) * strength) for t in tint)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour, outline=(225, 225, 225) if named else None)
            if named and counts[row, column]:
                ink = "white" if strength > 0.6 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(counts[row, column]), fill=ink, anchor="mm")
        if named:
            middle = margin + row * cell + cell / 2
            draw.text((margin - 5, middle), labels[row][:20], fill="black", anchor="rm")
            draw.text((middle, margin - 8), labels[row][: max(1, cell // 6)], fill="black", anchor="mm")
    draw.text((4, 4), "rows: true class, columns: answer", fill="gray")
    return picture
