"""Pictures of a graph as SVG: nodes coloured by class, edges as dark as their attention weight.

The layout is Fruchterman and Reingold's (1991, https://doi.org/10.1002/spe.4380211102): edges pull by $d^2 / k$, all
nodes push by $k^2 / d$, and the steps shrink.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

COLOURS = ("#3b6fb6", "#d9822b", "#4a9d5b", "#b8455a", "#7d5ba6", "#8a6d4b", "#d67bb0", "#6e7781", "#a8a83a", "#3aa6b0")
LARGEST = 600
"""Largest number of nodes that is drawn: the layout compares all pairs, and more nodes could not be distinguished."""


def layout(num_nodes: int, edge_index_2E: np.ndarray, steps: int = 200) -> np.ndarray:
    """Return a position in the unit square for each node [N, 2]; it is the same in every run."""
    place = np.random.default_rng(0).uniform(size=(num_nodes, 2))
    k = num_nodes**-0.5 if num_nodes else 1.0
    for step in range(steps):
        apart = place[:, None] - place[None]
        distance = np.maximum(np.linalg.norm(apart, axis=-1), 1e-3)
        force = (apart * (k / distance)[:, :, None] ** 2).sum(axis=1)
        along = place[edge_index_2E[0]] - place[edge_index_2E[1]]
        pull = along * np.linalg.norm(along, axis=1, keepdims=True) / k
        np.add.at(force, edge_index_2E[0], -pull / 2)
        np.add.at(force, edge_index_2E[1], pull / 2)
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        place = place + force / length * np.minimum(length, 0.1 * (1 - step / steps))
    low, high = (place.min(axis=0), place.max(axis=0)) if num_nodes else (0, 1)
    return (place - low) / np.maximum(high - low, 1e-9)


def draw_graph(
    edge_index_2E: np.ndarray,
    classes_N: np.ndarray,
    labels: Sequence[str],
    *,
    names: Sequence[str] = (),
    wrong_N: np.ndarray | None = None,
    weights_E: np.ndarray | None = None,
    size: int = 800,
) -> str:
    """Return an SVG: a colour for each class, a black rim where ``wrong_N``, edges as dark as ``weights_E``."""
    place = 20 + (size - 40) * layout(len(classes_N), edge_index_2E)
    strength = np.full(edge_index_2E.shape[1], 0.35)
    if weights_E is not None and len(weights_E):
        strength = 0.05 + 0.95 * weights_E / max(float(weights_E.max()), 1e-9)
    high = size + 20 * len(labels)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{high}" font-family="sans-serif">']
    lines.append(f'<rect width="{size}" height="{high}" fill="white"/>')
    for (source, target), alpha in zip(edge_index_2E.T, strength):
        (x1, y1), (x2, y2) = place[source], place[target]
        line = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        lines.append(f'<line {line} stroke="#333" stroke-opacity="{alpha:.3f}"/>')
    for number, (x, y) in enumerate(place):
        rim = "black" if wrong_N is not None and wrong_N[number] else "white"
        fill = COLOURS[int(classes_N[number]) % len(COLOURS)]
        title = f"<title>{escape(names[number])}</title>" if names else ""
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{fill}" stroke="{rim}">{title}</circle>')
    for number, label in enumerate(labels):
        y = size + 20 * number
        lines.append(f'<circle cx="14" cy="{y}" r="6" fill="{COLOURS[number % len(COLOURS)]}"/>')
        lines.append(f'<text x="26" y="{y + 4}" font-size="12">{escape(label)}</text>')
    return "\n".join([*lines, "</svg>\n"])
