"""Score against trainable parameters: every cell that has finished runs, a colour for each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Against:
    """What scores are drawn against: a column of the cells.

    Attributes:
        name: of the report.
        unit: the label of the axis.
        text: writes a tick of a log axis; None: the axis is linear.
        apart: columns of which each panel has one value.
    """

    name: str
    title: str
    column: str
    unit: str
    text: Callable[[float], str] | None
    caption: str
    apart: tuple[str, ...] = ("task",)

    def figure(self, points: pd.DataFrame, runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
        """One point a cell of ``runs``, by the rule of the tables, at the mean over its seeds."""
        points = points.sort_values([*self.apart, self.column, "method"], ignore_index=True)
        style = drawing.looks(points.method, points.label)
        hollow = " Hollow: a run's predictions are all the same (degenerate)." if points.degenerate.any() else ""
        panels = [
            drawing.Panel("\n".join([f"{task}: {cells.metric.iloc[0]} (%)", *others]), partial(self.draw, cells, style))
            for (task, *others), cells in drawing.groups(points, [*self.apart])
        ]
        return drawing.Figure(
            self.name,
            self.title,
            f"{data.scope_text(scope)} Mean over seeds, with one standard deviation where there are several; "
            f"{self.caption}{hollow}",
            points,
            points[["task", "label", "budget", *self.apart[1:], self.column, "metric", *data.CELL]],
            panels,
            list(style.values()),
            data.cell_notes(runs),
            [] if len(points) else ["adalora-run task=cola method=adalora"],
            names=3,
        )

    def draw(self, cells: pd.DataFrame, style: dict[str, drawing.Look], axes: Axes) -> None:
        for method, part in drawing.groups(cells, "method"):
            drawing.draw_cells(axes, part, self.column, style[method])
        axes.set_xscale("log" if self.text else "linear")
        axes.margins(x=0.12)
        if self.text:
            drawing.plain_log_axis(axes.xaxis, self.text)
        axes.grid()
        axes.set_xlabel(self.unit)


PARAMETERS = Against(
    "scores",
    "Score against trainable parameters",
    "params",
    "trainable parameters",
    lambda count: f"{count / 1e6:g}M" if count >= 1e5 else f"{count / 1e3:g}K",
    "the task head is not counted.",
)


def figure(records: data.Records, scope: Scope) -> drawing.Figure:
    runs = data.shown_runs(records, scope)
    return PARAMETERS.figure(data.cells_of(runs[runs["params.method"] > 0]), runs, scope)


REPORT = drawing.report_of(PARAMETERS.name, PARAMETERS.title, figure)
