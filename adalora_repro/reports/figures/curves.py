"""Curves over steps of the runs that the tables show: development score, training loss, and the budget b(t)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from adalora_repro.records.selection import percent
from adalora_repro.reports.curves import curve
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCORE, BUDGET, LOSS = "development score", "b(t)", "training loss"
AXES = {SCORE: "{metric} (%)", BUDGET: "triplets kept, b(t)", LOSS: "training loss"}
THIN = 100  # points of a curve; logs can be long
CURVE = ["quantity", *data.CELL]


def points_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a step of a cell: the mean over those of its seeds that logged it."""
    import pandas as pd

    rows = []
    for row in runs.itertuples():
        folder, scale = row.run.path.parent, percent(row.run.record)
        quantities: dict[str, list[Any]] = {
            SCORE: [(step, scale * value) for step, value in curve(folder, "evaluation", itemgetter(row.metric))],
            BUDGET: curve(folder, "b_t", most=THIN),
            LOSS: curve(folder, "loss", most=THIN),
        }
        cell = (row.task, row.method, row.label, row.budget, row.metric, row.degenerate, str(row.run.path))
        rows += [(*cell, name, step, value) for name, points in quantities.items() for step, value in points]
    columns = ["task", "method", "label", "budget", "metric", "degenerate", "record", "quantity", "step", "value"]
    points = pd.DataFrame(rows, columns=columns)
    points["quantity"] = pd.Categorical(points.quantity, list(AXES))
    means = points.groupby([*CURVE, "step"], sort=True, observed=True)
    return means.agg(
        label=("label", "first"),
        metric=("metric", "first"),
        value=("value", "mean"),
        seeds=("value", "size"),
        degenerate=("degenerate", "any"),
        record=("record", "first"),
    ).reset_index()


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    points = points_of(data.shown_runs(runs, scope))
    style = drawing.looks(points.method, points.label)
    table = points.groupby(CURVE, sort=False, observed=True).agg(
        steps=("step", "max"),
        first=("value", "first"),
        last=("value", "last"),
        seeds=("seeds", "max"),
        degenerate=("degenerate", "any"),
    )
    return drawing.Figure(
        f"{data.scope_text(scope)} The runs that the tables show, mean over seeds. The development score is on the "
        "reported split; AdaLoRA's before its final budget is of a model with more parameters.",
        points,
        table.reset_index(),
        [
            drawing.Panel(f"{task}: {quantity}", partial(draw, points=part, style=style))
            for (quantity, task), part in drawing.groups(points, ["quantity", "task"])
        ],
        [replace(look, line="-") for look in style.values()],
        commands=[] if len(points) else ["adalora-run task=cola method=adalora"],
        names=len(CURVE),
    )


def draw(axes: Axes, points: pd.DataFrame, style: dict[str, drawing.Look]) -> None:
    quantity = points.quantity.iloc[0]
    for (method, _), part in drawing.groups(points, ["method", "budget"]):
        axes.plot(part.step, part.value, linestyle="--" if part.degenerate.any() else "-", color=style[method].colour)
        if quantity == SCORE:
            drawing.draw_points(axes, part, "step", "value", style[method], size=16)
    axes.grid(axis="y")
    axes.set_xlabel("step")
    axes.set_ylabel(AXES[quantity].format(metric=points.metric.iloc[0]))


REPORT = drawing.report_of("curves", "Curves over steps", figure)
