"""Curves of a study as CSV, and as PNG where matplotlib is installed, else as SVG."""

from __future__ import annotations

import csv
import html
import math
import pathlib
from typing import Any, List, Mapping, Sequence, Tuple

__all__ = ["write", "draw"]

_COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b1fa2", "#b8860b", "#455a64", "#d81b60", "#00838f", "#5d4037", "#9e9d24")


def write(folder: pathlib.Path, study: Any, best: Mapping[str, Any]) -> List[str]:
    """The curve of the middle seed of every setting of a gradient study; returns the files' paths."""
    curves = {}
    for label, b in best.items():
        middle = sorted(b.runs, key=lambda run: run["metric"])[len(b.runs) // 2]
        curves[label] = [(float(x), float(y)) for x, y in middle.get("curve", [])]
    table = folder / f"{study.NAME}.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "lr", "step", study.METRIC])
        for label, points in curves.items():
            writer.writerows([label, best[label].lr, x, y] for x, y in points)
    return [str(table), draw(folder, study.NAME, study.TITLE, study.METRIC, curves)]


def draw(folder: pathlib.Path, name: str, title: str, metric: str, curves: Mapping[str, Sequence[Tuple[float, float]]], log: bool = True) -> str:
    """One line a label over steps, as FOLDER/NAME.png or .svg; returns its path.  log: the metric's axis is logarithmic, values <= 0 are left out."""
    return str(_matplotlib(folder, name, title, metric, curves, log) or _svg(folder, name, title, metric, curves, log))


def _matplotlib(folder: pathlib.Path, name: str, title: str, metric: str, curves: Mapping[str, Any], log: bool) -> Any:
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for label, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=label)
    axes.set(xlabel="step", ylabel=metric, title=title, yscale="log" if log else "linear")
    axes.legend(fontsize="small")
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _svg(folder: pathlib.Path, name: str, title: str, metric: str, curves: Mapping[str, Any], log: bool) -> pathlib.Path:
    def shown(y: float) -> bool:
        return math.isfinite(y) and (y > 0 or not log)
    up, back = (math.log, math.exp) if log else (float, float)
    points = [(x, y) for line in curves.values() for x, y in line if shown(y)]
    right = max((x for x, _ in points), default=1.0) or 1.0
    low, high = (up(f(y for _, y in points)) if points else f((0.0, 1.0)) for f in (min, max))
    high = high if high > low else low + 1
    width, height, left, top = 760, 420, 60, 40

    def place(x: float, y: float) -> str:
        return f"{left + x / right * (width - left - 170):.1f},{top + (high - up(y)) / (high - low) * (height - top - 40):.1f}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="20">{html.escape(title)}</text>']
    for i in range(5):
        value = back(low + (high - low) * i / 4)
        y = place(0, value).split(",")[1]
        out.append(f'<line x1="{left}" x2="{width - 170}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="5" y="{y}">{value:.3g}</text>')
    scale = ", log scale" if log else ""
    out.append(f'<text x="{left}" y="{height - 8}">step 0 to {right:g}; {html.escape(metric)}{scale}</text>')
    for i, (label, line) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(place(x, y) for x, y in line if shown(y))
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
                   f'<text x="{width - 160}" y="{top + 15 * i + 10}" fill="{colour}">{html.escape(label)}</text>')
    target = folder / f"{name}.svg"
    target.write_text("\n".join(out) + "\n</svg>\n")
    return target
