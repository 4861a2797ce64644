"""Score against trainable parameters: every cell that has finished runs, a colour for each method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Score against trainable parameters"


def figure(records: data.Records, scope: Scope) -> drawing.Figure:
    """One point a cell, by the rule of the tables, at the mean over seeds of score and trainable parameters."""
    runs = data.shown_runs(records, scope)
    points = data.cells_of(runs[runs["params.method"] > 0])
    points = points.sort_values(["task", "params", "method"], ignore_index=True)
    style = drawing.looks(points.method, points.label)
    hollow = " Hollow: a run's predictions are all the same (degenerate)." if points.degenerate.any() else ""
    return drawing.Figure(
        "scores",
        TITLE,
        f"{data.scope_text(scope)} Mean over seeds, with one standard deviation where there are several; the task head "
        f"is not counted.{hollow}",
        points,
        points[["task", "label", "budget", "params", "metric", *data.CELL]],
        [
            drawing.Panel(f"{task}: {cells.metric.iloc[0]} (%)", partial(draw, cells=cells, style=style))
            for task, cells in drawing.groups(points, "task")
        ],
        list(style.values()),
        data.cell_notes(runs),
        [] if len(points) else ["adalora-run task=cola method=adalora"],
        names=3,
    )


def draw(axes: Axes, cells: pd.DataFrame, style: dict[str, drawing.Look]) -> None:
    for method, part in drawing.groups(cells, "method"):
        drawing.draw_cells(axes, part, "params", style[method])
    axes.set_xscale("log")
    axes.margins(x=0.12)
    drawing.plain_log_axis(axes.xaxis, lambda count: f"{count / 1e6:g}M" if count >= 1e5 else f"{count / 1e3:g}K")
    axes.grid()
    axes.set_xlabel("trainable parameters")


REPORT = drawing.report_of("scores", TITLE, figure)
