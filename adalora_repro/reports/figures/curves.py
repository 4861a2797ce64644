"""Curves over steps of the runs that the tables show: development score, training loss, and the budget b(t)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adalora_repro.records.selection import percent
from adalora_repro.reports.curves import curve, evaluations
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Curves over steps"
SCORE, BUDGET, LOSS = "development score", "b(t)", "training loss"
AXES = {SCORE: "{metric} (%)", BUDGET: "triplets kept, b(t)", LOSS: "training loss"}
THIN = 100  # points of a curve; logs can be long
CURVE = ["quantity", "task", "method", "budget"]


def points_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a step of a cell: the mean over those of its seeds that logged it."""
    import pandas as pd

    rows = []
    for row in runs.itertuples():
        folder = row.run.path.parent
        scale = percent(row.run.record)
        quantities: dict[str, list[Any]] = {
            SCORE: [(step, scale * value) for step, value in evaluations(folder, row.metric)],
            LOSS: curve(folder, "loss", THIN),
            BUDGET: curve(folder, "b_t", THIN),
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


def figure(records: data.Records, scope: Scope) -> drawing.Figure:
    points = points_of(data.shown_runs(records, scope))
    style = drawing.looks(points.method, dict(zip(points.method, points.label, strict=True)))
    curves = points.groupby(CURVE, sort=False, observed=True)
    table = curves.agg(steps=("step", "max"), first=("value", "first"), last=("value", "last"), seeds=("seeds", "max"))
    table["degenerate"] = [data.flag(any_).strip(" ()") for any_ in curves.degenerate.any()]
    table = table.reset_index().map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))
    return drawing.Figure(
        "curves",
        TITLE,
        f"Backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}. The runs that the tables show, mean "
        "over seeds. The development score is on the reported split; AdaLoRA's before its final budget is of a model "
        "with more parameters.",
        points,
        table,
        tuple(
            drawing.Panel(f"{task}: {quantity}", partial(draw, points=cells, style=style))
            for (quantity, task), cells in drawing.groups(points, ["quantity", "task"])
        ),
        tuple(style[method] for method in style if method in set(points.method)),
        commands=() if len(points) else ("adalora-run task=cola method=adalora",),
        names=len(CURVE),
    )


def draw(axes: Axes, points: pd.DataFrame, style: dict[str, drawing.Look]) -> None:
    scores = points.quantity.iloc[0] == SCORE
    for (method, _), part in drawing.groups(points, ["method", "budget"]):
        look = style[method]
        axes.plot(part.step, part.value, linestyle="--" if part.degenerate.any() else "-", color=look.colour)
        for i in list(part.index) if scores else []:
            axes.plot(part.step[i], part.value[i], gid=drawing.gid(i), markersize=4, **look.point)
    axes.grid(axis="y")
    axes.set_xlabel("step")
    axes.set_ylabel(AXES[points.quantity.iloc[0]].format(metric=points.metric.iloc[0]))


REPORT = drawing.report_of("curves", TITLE, figure)
