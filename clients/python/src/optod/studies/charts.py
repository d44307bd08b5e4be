"""Curves of a study as CSV, and as PNG where matplotlib is installed, else as SVG: one picture, or a panel each where the study names panels."""

from __future__ import annotations

import csv
import html
import math
import pathlib
from typing import Any, Dict, List, Mapping, Sequence, Tuple

__all__ = ["write", "draw"]

_COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b1fa2", "#b8860b", "#455a64", "#d81b60", "#00838f", "#5d4037", "#9e9d24")

Curves = Mapping[str, Sequence[Tuple[float, float]]]      # label: points (step, value)
Panels = Mapping[str, Curves]                             # title: what it shows; one panel without a title is the whole picture


def write(folder: pathlib.Path, study: Any, best: Mapping[str, Any]) -> List[str]:
    """The curve of the middle seed of every setting of a gradient study; returns the files' paths."""
    curves = {}
    for label, b in best.items():
        middle = sorted(b.runs, key=lambda run: run["metric"])[len(b.runs) // 2]
        curves[label] = [(float(x), float(y)) for x, y in middle.get("curve", [])]
    metric = study.METRIC
    table = folder / f"{study.NAME}.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "lr", "step", metric])
        for label, points in curves.items():
            writer.writerows([label, best[label].lr, x, y] for x, y in points)
    return [str(table), _picture(folder, study.NAME, study.TITLE, metric, _panels(study, curves), True)]


def draw(folder: pathlib.Path, name: str, title: str, metric: str, curves: Curves, log: bool = True) -> str:
    """One line a label over steps, as FOLDER/NAME.png or .svg; returns its path.  log: the metric's axis is logarithmic, values <= 0 are left out."""
    return _picture(folder, name, title, metric, {"": curves}, log)


def _picture(folder: pathlib.Path, name: str, title: str, metric: str, panels: Panels, log: bool) -> str:
    return str(_matplotlib(folder, name, title, metric, panels, log) or _svg(folder, name, title, metric, panels, log))


def _panels(study: Any, curves: Curves) -> Panels:
    """In a panel, a label is what the panel's title does not say already."""
    if not hasattr(study, "panel"):
        return {"": curves}
    panels: Dict[str, Dict[str, Any]] = {}
    for label, points in curves.items():
        title = study.panel(label)
        short = "/".join(part for part in label.split("/") if part not in title.split(", "))
        panels.setdefault(title, {})[short] = points
    return panels


def _columns(panels: Panels) -> int:
    return min(4, len(panels))


def _matplotlib(folder: pathlib.Path, name: str, title: str, metric: str, panels: Panels, log: bool) -> Any:
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    columns = _columns(panels)
    rows = -(-len(panels) // columns)
    size = (8, 5) if len(panels) == 1 else (4 * columns, 3 * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.remove()
    for axes, (panel, curves) in zip(grid.flat, panels.items()):
        for i, (label, points) in enumerate(curves.items()):
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, color=_COLOURS[i % len(_COLOURS)])
        axes.set(xlabel="step", ylabel=metric, title=panel or title, yscale="log" if log else "linear")
        if axes is grid.flat[0]:
            axes.legend(fontsize="small")
    if len(panels) > 1:
        figure.suptitle(title)
        figure.tight_layout()
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _svg(folder: pathlib.Path, name: str, title: str, metric: str, panels: Panels, log: bool) -> pathlib.Path:
    columns, (width, height) = _columns(panels), (760, 420) if len(panels) == 1 else (380, 250)
    rows = -(-len(panels) // columns)
    legend = 0 if len(panels) == 1 else 110
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * width + legend}" height="{rows * height + 30}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="60" y="20">{html.escape(title)}</text>']
    for i, (panel, curves) in enumerate(panels.items()):
        out.append(f'<g transform="translate({i % columns * width},{i // columns * height + 20})">')
        out += _svg_panel(panel, metric, curves, log, width, height, right=170 if len(panels) == 1 else 20)
        out.append("</g>")
    first = next(iter(panels.values()), {})
    out += [f'<text x="{columns * width + (10 if legend else -160)}" y="{75 + 15 * i}" fill="{_COLOURS[i % len(_COLOURS)]}">{html.escape(label)}</text>'
            for i, label in enumerate(first)]
    target = folder / f"{name}.svg"
    target.write_text("\n".join(out) + "\n</svg>\n")
    return target


def _svg_panel(title: str, metric: str, curves: Curves, log: bool, width: int, height: int, right: int) -> List[str]:
    def shown(y: float) -> bool:
        return math.isfinite(y) and (y > 0 or not log)
    up, back = (math.log, math.exp) if log else (float, float)
    points = [(x, y) for line in curves.values() for x, y in line if shown(y)]
    end = max((x for x, _ in points), default=1.0) or 1.0
    low, high = (up(f(y for _, y in points)) if points else f((0.0, 1.0)) for f in (min, max))
    high = high if high > low else low + 1
    left, top = 60, 40

    def place(x: float, y: float) -> str:
        return f"{left + x / end * (width - left - right):.1f},{top + (high - up(y)) / (high - low) * (height - top - 40):.1f}"
    out = [f'<text x="{left}" y="25">{html.escape(title)}</text>']
    for i in range(5):
        value = back(low + (high - low) * i / 4)
        y = place(0, value).split(",")[1]
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="5" y="{y}">{value:.3g}</text>')
    scale = ", log scale" if log else ""
    out.append(f'<text x="{left}" y="{height - 12}">step 0 to {end:g}; {html.escape(metric)}{scale}</text>')
    for i, line in enumerate(curves.values()):
        path = " ".join(place(x, y) for x, y in line if shown(y))
        out.append(f'<polyline fill="none" stroke="{_COLOURS[i % len(_COLOURS)]}" stroke-width="1.5" points="{path}"/>')
    return out
