"""Pictures of sample-order studies: a heat map, and lines over a scale; PNG where matplotlib is installed and asked for, else SVG."""

from __future__ import annotations

import html
import math
import pathlib
from typing import Any, Mapping, Sequence, Tuple

import numpy as np

__all__ = ["heat_map", "lines"]

_COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b1fa2", "#b8860b", "#455a64")


def _pyplot(path: pathlib.Path) -> Any:
    if path.suffix != ".png":
        return None
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot


def heat_map(path: pathlib.Path, values: np.ndarray, title: str) -> str:
    """values [rows, columns]: batch (row) at position (column). Returns the path written; .png becomes .svg without matplotlib."""
    pyplot = _pyplot(path)
    if pyplot is not None:
        figure, axes = pyplot.subplots(figsize=(5.5, 4.5))
        figure.colorbar(axes.imshow(values, cmap="viridis"))
        axes.set(xlabel="position", ylabel="batch", title=title)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        return str(path)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    rows, columns = values.shape
    cell = max(4, min(40, 480 // max(rows, columns)))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * cell + 160}" height="{rows * cell + 70}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="40" y="20">{html.escape(title)}</text>']
    for i in range(rows):
        for j in range(columns):
            share = (values[i, j] - low) / (high - low) if high > low else 0.0
            out.append(f'<rect x="{40 + j * cell}" y="{30 + i * cell}" width="{cell}" height="{cell}" fill="{_shade(share)}"/>')
    out += [f'<text x="{50 + columns * cell}" y="45">{high:.4g}</text>', f'<text x="{50 + columns * cell}" y="{30 + rows * cell}">{low:.4g}</text>',
            f'<text x="40" y="{50 + rows * cell}">position 0 to {columns - 1}; rows: batch 0 to {rows - 1}</text>', "</svg>"]
    target = path.with_suffix(".svg")
    target.write_text("\n".join(out) + "\n")
    return str(target)


def _shade(share: float) -> str:
    """Dark blue (0) over green to yellow (1)."""
    stops = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
    at = max(0.0, min(share, 1.0)) * (len(stops) - 1)
    k = min(int(at), len(stops) - 2)
    return "#" + "".join(f"{round(a + (b - a) * (at - k)):02x}" for a, b in zip(stops[k], stops[k + 1]))


def lines(path: pathlib.Path, curves: Mapping[str, Sequence[Tuple[float, float]]], title: str, x: str, y: str) -> str:
    """Both axes logarithmic; points that are not > 0 are left out. Returns the path written."""
    curves = {label: [(a, b) for a, b in points if a > 0 and b > 0 and math.isfinite(b)] for label, points in curves.items()}
    pyplot = _pyplot(path)
    if pyplot is not None:
        figure, axes = pyplot.subplots(figsize=(6.5, 4.5))
        for i, (label, points) in enumerate(curves.items()):
            axes.plot([a for a, _ in points], [b for _, b in points], marker="o", label=label, color=_COLOURS[i % len(_COLOURS)])
        axes.set(xlabel=x, ylabel=y, title=title, xscale="log", yscale="log")
        axes.legend(fontsize="small")
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        return str(path)
    every = [point for points in curves.values() for point in points] or [(1.0, 1.0)]
    (left, right), (low, high) = ([f(math.log(p[k]) for p in every) for f in (min, max)] for k in (0, 1))

    def place(a: float, b: float) -> Tuple[float, float]:
        return (70 + (math.log(a) - left) / ((right - left) or 1) * 400, 340 - (math.log(b) - low) / ((high - low) or 1) * 290)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="680" height="400" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="70" y="20">{html.escape(title)}</text>',
           f'<text x="70" y="380">{html.escape(x)}: {math.exp(left):.3g} to {math.exp(right):.3g}, log</text>',
           f'<text x="5" y="55">{math.exp(high):.3g}</text><text x="5" y="340">{math.exp(low):.3g}</text><text x="5" y="200">{html.escape(y)}</text>']
    for i, (label, points) in enumerate(curves.items()):
        colour, spots = _COLOURS[i % len(_COLOURS)], [place(*point) for point in points]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in spots)}"/>'
                   f'<text x="490" y="{60 + 16 * i}" fill="{colour}">{html.escape(label)}</text>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in spots]
    target = path.with_suffix(".svg")
    target.write_text("\n".join(out) + "\n</svg>\n")
    return str(target)
