"""What an update of one Kronecker factor costs by width: MKOR's rank-1 update (quadratic) against KFAC's inversions (cubic).

    build/bin/rules_bench --factors 256,512,1024,2048 --json 1 | PYTHON tests/bench/factors_plot.py factors.png

Draws milliseconds over width on two logarithmic axes (PNG or SVG by the name's ending) with lines of slope 2 and 3 through the first points,
and prints the slope between neighbouring widths.  PYTHON needs matplotlib.
"""
import json
import math
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402

KINDS = {"mkor_ms": ("MKOR, rank-1 update", 2), "inverse_ms": ("KFAC, Cholesky inverse", 3), "eigen_ms": ("KFAC, eigendecomposition", 3)}


def slopes(widths, times):
    """Exponents of growth between neighbours: 2 = quadratic."""
    return [math.log(b / a) / math.log(w / v) for v, w, a, b in zip(widths, widths[1:], times, times[1:])]


def main():
    rows = sorted((json.loads(line) for line in sys.stdin if line.startswith("{")), key=lambda row: row["width"])
    if len(sys.argv) != 2 or len(rows) < 2:
        sys.exit(__doc__)
    widths = [row["width"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for key, (name, power) in KINDS.items():
        times = [row[key] for row in rows]
        colour = axes.plot(widths, times, marker="o", label=name)[0].get_color()
        axes.plot(widths, [times[0] * (w / widths[0]) ** power for w in widths], linestyle=":", color=colour, label=f"width^{power}")
        print(f"{name:26s} " + "  ".join(f"{w}: {t:.3f} ms" for w, t in zip(widths, times)) + "  slopes "
              + " ".join(f"{s:.2f}" for s in slopes(widths, times)))
    axes.set(xscale="log", yscale="log", xlabel="width of the factor", ylabel="milliseconds", title="One update of one factor")
    axes.set_xticks(widths, [str(w) for w in widths])
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(fontsize="small")
    figure.savefig(sys.argv[1], dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
