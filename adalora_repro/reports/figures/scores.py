"""Score against trainable parameters: every cell that has finished runs, a colour for each method."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from adalora_repro.reports.figures.drawing import (
    Figure,
    Look,
    Panel,
    Records,
    cell_notes,
    cells_of,
    flag,
    gid,
    looks,
    lr_of,
    plain_log_axis,
    report_of,
    scope_of,
    shown_runs,
    thousands,
)
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.tables.table1 import SPEC
from adalora_repro.reports.text import count_text, fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Score against trainable parameters"


def figure(found: Records, scope: Scope) -> Figure:
    """One point a cell, by the rule of the tables, at the mean over seeds of score and trainable parameters."""
    import pandas as pd

    runs = shown_runs(found, scope)
    points = cells_of(runs[runs["params.method"] > 0])
    points = points.sort_values(["task", "params", "method"], ignore_index=True)
    style = looks(points.method, dict(zip(points.method, points.label, strict=True)))
    table = pd.DataFrame(
        [
            {
                "task": cell.task,
                "method": cell.label,
                "budget": cell.budget,
                "# params": count_text(round(cell.params)),
                "metric": cell.metric,
                "score": fixed(cell.score) + flag(cell.degenerate),
                "± sd": fixed(None if cell.sd != cell.sd else cell.sd),
                "seeds": cell.seeds,
                "lr": lr_of(cell),
            }
            for cell in points.itertuples()
        ]
    )
    hollow = " Hollow: a run's predictions are all the same (degenerate)." if points.degenerate.any() else ""
    return Figure(
        "scores",
        TITLE,
        f"Backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}. Mean over seeds, with one standard "
        f"deviation where there are several; the task head is not counted.{hollow}",
        points,
        table,
        tuple(
            Panel(f"{task}: {cells.metric.iloc[0]} (%)", lambda axes, cells=cells: draw(axes, cells, style))
            for task, cells in points.groupby("task", sort=False)
        ),
        tuple(replace(style[method], line="") for method in style if method in set(points.method)),
        tuple(cell_notes(runs)),
        () if len(points) else ("adalora-run task=cola method=adalora",),
    )


def draw(axes: Axes, cells: pd.DataFrame, style: dict[str, Look]) -> None:
    for i, cell in cells.iterrows():
        look = replace(style[cell.method], filled=not cell.degenerate)
        axes.errorbar(cell.params, cell.score, cell.sd, color=look.colour)
        axes.plot(cell.params, cell.score, gid=gid(i), **look.point)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    plain_log_axis(axes.xaxis, thousands)
    axes.grid()
    axes.set_xlabel("trainable parameters")


def compile_figure(found: Records, args: argparse.Namespace) -> Figure:
    return figure(found, scope_of(found, args, SPEC.backbone))


REPORT = report_of("scores", TITLE, compile_figure, figure)
