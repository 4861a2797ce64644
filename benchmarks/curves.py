"""Draws how things grow, from the figures of ``benchmarks.growth``, ``.sizes`` and ``.reports``: growth.svg.

python -m benchmarks.curves
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import parser, start

AXES = {"batch": "examples", "tokens": "tokens of an example", "rank": "rank r", "matrices": "adapted matrices"}
Curves = dict[str, dict[float, float]]  # name -> {x: y}


def panels(folder: Path) -> list[tuple[str, str, Curves]]:
    """(label of x, label of y, curves) of what the folder holds."""
    made = []
    for axis, methods in figures(folder, "growth", "seconds").items():
        curves = {
            name: {float(x): statistics.median(times) for x, times in points.items()}
            for name, points in methods.items()
        }
        made.append((AXES[axis], "seconds of a step", curves))
    sizes: Curves = {}
    for method, ranks in figures(folder, "sizes", "bytes").items():
        for kind in ("checkpoint", "record"):
            sizes[f"{kind}, {method}"] = {float(r): found[kind] / 1e6 for r, found in ranks.items()}
    if sizes:
        made.append((AXES["rank"], "MB", sizes))
    times: Curves = {}
    for count, reports in figures(folder, "reports", "cpu_s").items():
        for report, seconds in reports.items():
            times.setdefault(report, {})[float(count)] = seconds
    if times:
        made.append(("records", "CPU seconds", times))
    return made


def figures(folder: Path, name: str, part: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[part] if path.exists() else {}
    return found


def draw(found: list[tuple[str, str, Curves]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "growth", "font.size": 8}
    from matplotlib import pyplot

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.2 * columns, 2.6 * rows), layout="constrained", squeeze=False
    )
    for place in axes.flat[len(found) :]:
        place.set_axis_off()
    for place, (x_label, y_label, curves) in zip(axes.flat, found, strict=False):
        for name, points in curves.items():
            place.plot(list(points), list(points.values()), marker="o", ms=3, label=name)
        first = next(iter(curves.values()))
        start_x, start_y = next(iter(first.items()))
        line = [start_y * x / start_x for x in first]
        if x_label != AXES["rank"]:  # to which neither a step nor a record is expected to be proportional
            place.plot(list(first), line, color="grey", lw=0.8, ls=":", label="linear from the first")
        place.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        if max(first.values()) < 2 * min(first.values()):  # hardly grows: a logarithm would show the noise
            place.set(yscale="linear", ylim=(0, None))
        place.set_xticks(list(first), [f"{x:,.0f}" for x in first], rotation=30 if max(first) > 999 else 0)
        place.minorticks_off()
        place.legend(frameon=False, fontsize=6)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    args = start(parser(__doc__, model=False))
    found = panels(args.out)
    if not found:
        print(f"no growth.json, sizes.json or reports.json in {args.out}", file=sys.stderr)
        return 1
    draw(found, args.out / "growth.svg")
    print(f"written: {args.out / 'growth.svg'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
