"""Learning curves of one or several runs as an SVG. Any browser shows it, and writing it needs no library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scratch_core.errors import ConfigError
from scratch_core.train.evaluation import HELD_OUT
from scratch_core.train.metrics import MetricsLog

COLOURS = ("#1f6fb2", "#d1495b", "#3a8f5c", "#8a5bb5", "#c98a1b", "#4a5a6a")
PANELS = {"loss": "training loss", "held_out_loss": "held-out loss", "gradient_norm": "norm of the gradient"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 240, 64, 34, 46


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the SVG of {name of a run: lines of its metrics.jsonl}: a panel for each measured quantity, by step.

    These are the training loss, the held-out loss and metrics, and the norm of the gradient. Numbers that are not
    finite are left out. Raises ConfigError if there is nothing to draw.
    """
    panels = []
    keys = {key for records in runs.values() for record in records for key in record if key.startswith(HELD_OUT)}
    metrics = {key: f"held-out {key.removeprefix(HELD_OUT)}" for key in sorted(keys - PANELS.keys())}
    for key, title in (PANELS | metrics).items():
        lines = {
            name: [(r["step"], r[key]) for r in records if key in r and r[key] is not None and math.isfinite(r[key])]
            for name, records in runs.items()
        }
        if any(lines.values()):
            panels.append((title, lines))
    if not panels:
        raise ConfigError("there is nothing to draw: no run has a logged step yet")
    names = list(runs)
    top = TOP + 18 * (len(names) - 1)
    parts = [
        f'<text x="{LEFT}" y="{20 + 18 * i}" fill="{COLOURS[i % len(COLOURS)]}">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    for number, (title, lines) in enumerate(panels):
        parts += _panel(title, lines, names, top + number * (HEIGHT + GAP))
    size = f'width="{WIDTH}" height="{top + len(panels) * (HEIGHT + GAP)}"'
    style = 'font-family="sans-serif" font-size="12"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{body}\n</svg>\n'


def plot_runs(folders: Sequence[str], out: str | Path) -> Path:
    """Write the curves of some run folders to a file and return its path. Raises ConfigError."""
    runs = {folder: MetricsLog(Path(folder, "metrics.jsonl")).read() for folder in folders}
    if empty := [folder for folder, records in runs.items() if not records]:
        raise ConfigError(f"{empty[0]} has no logged step (metrics.jsonl): name folders of `scratch train`")
    picture = draw_curves(runs)
    try:
        Path(out).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the picture cannot be written to {out}: {error}") from error
    return Path(out)


def _panel(title: str, lines: Mapping[str, list[tuple[int, float]]], names: list[str], top: float) -> list[str]:
    points = [point for line in lines.values() for point in line]
    xs, ys = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
    right, bottom = WIDTH - 20, top + HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (right - LEFT),
            bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - 24),
        )

    parts = [f'<text x="{LEFT}" y="{top + 12}" font-weight="bold">{title}</text>']
    for y in ys:
        height = place(xs[0], y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        parts.append(f'<text x="{place(x, ys[0])[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    for name, line in lines.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        if len(line) == 1:  # a line of one point would be invisible
            x, y = place(*line[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers, evenly spaced, from below the smallest value to above the largest."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
