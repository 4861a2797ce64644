"""Score against trainable parameters: every cell that has finished runs, a colour for each method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.text import count_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Score against trainable parameters"


def figure(records: data.Records, scope: Scope) -> drawing.Figure:
    """One point a cell, by the rule of the tables, at the mean over seeds of score and trainable parameters."""
    runs = data.shown_runs(records, scope)
    points = data.cells_of(runs[runs["params.method"] > 0])
    points = points.sort_values(["task", "params", "method"], ignore_index=True)
    style = drawing.looks(points.method, dict(zip(points.method, points.label, strict=True)))
    table = data.table_of(
        points,
        task=lambda cell: cell.task,
        method=lambda cell: cell.label,
        budget=lambda cell: cell.budget,
        params=lambda cell: count_text(cell.params),
    )
    names = points.drop_duplicates("task")
    metrics = f" Scores: {', '.join(names.task + ' ' + names.metric)}." if len(points) else ""
    hollow = " Hollow: a run's predictions are all the same (degenerate)." if points.degenerate.any() else ""
    return drawing.Figure(
        "scores",
        TITLE,
        f"Backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}. Mean over seeds, with one standard "
        f"deviation where there are several; the task head is not counted.{hollow}{metrics}",
        points,
        table,
        tuple(
            drawing.Panel(f"{task}: {cells.metric.iloc[0]} (%)", partial(draw, cells=cells, style=style))
            for task, cells in drawing.groups(points, "task")
        ),
        tuple(replace(style[method], line="") for method in style if method in set(points.method)),
        tuple(data.cell_notes(runs)),
        () if len(points) else ("adalora-run task=cola method=adalora",),
        names=3,
    )


def draw(axes: Axes, cells: pd.DataFrame, style: dict[str, drawing.Look]) -> None:
    for i, cell in cells.iterrows():
        drawing.draw_cell(axes, cell.params, i, cell, style[cell.method])
    axes.set_xscale("log")
    axes.margins(x=0.12)
    drawing.plain_log_axis(axes.xaxis, drawing.thousands)
    axes.grid()
    axes.set_xlabel("trainable parameters")


REPORT = drawing.report_of("scores", TITLE, figure)
