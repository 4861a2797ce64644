"""Learning rates that were tried: score on the held-out split, which chose among them, and on the reported one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.config.words import lr_text
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.frame import of_one_seed
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SPLITS = {
    "held_out": drawing.Look("held-out split", drawing.SERIES[0], "o", "-"),
    "score": drawing.Look("reported split", drawing.SERIES[1], "s", "--"),
}


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """One panel a cell that tried several rates: the runs of the seed that has most of them."""
    points = tried(runs, scope)
    shown = [column for column in SPLITS if points[column].notna().any()]
    panels = [
        drawing.Panel(title(task, method, budget, cells.label.iloc[0]), partial(draw, cells=cells), (3.1, 2.2))
        for (task, method, budget), cells in drawing.groups(points, data.CELL)
    ]
    return drawing.Figure(
        f"{data.scope_text(scope)} Primary metric in percent; the dotted line is the rate that the rule chose.",
        points,
        points[["task", "label", "budget", "seed", "lr", "metric", "held_out", "score", "chosen", "degenerate"]],
        panels,
        [SPLITS[column] for column in shown],
        commands=[] if len(points) else ["adalora-run -m +sweep=lr task=cola method=lora"],
    )


def title(task: str, method: str, budget: str, label: str) -> str:
    return f"{task} {label}" + ("" if budget == method else f"\n{budget}")


def tried(runs: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """The runs of cells with several rates, of the one seed that tried most; ``chosen``: at the rate of the tables."""
    runs = data.of_scope(runs[runs.lrs_tried > 1], scope)
    runs = runs.assign(chosen=[selection.lr == lr for selection, lr in zip(runs.selection, runs.lr, strict=True)])
    names = [*data.CELL, "label", "seed", "lr", "metric", "held_out", "score", "degenerate", "record", "chosen"]
    return of_one_seed(runs, data.CELL)[names].sort_values([*data.CELL, "lr"], ignore_index=True)


def draw(axes: Axes, cells: pd.DataFrame) -> None:
    for column, look in SPLITS.items():
        part = cells[cells[column].notna()]
        axes.plot(part.lr, part[column], color=look.colour, linestyle=look.line)
        drawing.draw_points(axes, part, "lr", column, look)
    for rate in cells.lr[cells.chosen]:
        axes.axvline(rate, color=drawing.MUTED, linestyle=":")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    drawing.plain_log_axis(axes.xaxis, lr_text)
    axes.grid()


REPORT = drawing.report_of("rates", "Learning rates tried", figure)
