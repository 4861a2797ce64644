"""Score against trainable parameters: every cell that has finished runs, a colour for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Text = Callable[[float], str]
CAPTION = "the task head is not counted."


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    runs = data.shown_runs(runs, scope)
    cells = data.cells_of(runs[runs["params.method"] > 0])
    return against("params", "trainable parameters", CAPTION, cells, runs, scope, text=in_millions)


def in_millions(count: float) -> str:
    return f"{count / 1e6:g}M" if count >= 1e5 else f"{count / 1e3:g}K"


def against(
    column: str,
    unit: str,
    caption: str,
    cells: pd.DataFrame,
    runs: pd.DataFrame,
    scope: Scope,
    apart: Sequence[str] = ("task",),
    text: Text | None = None,
) -> drawing.Figure:
    """The score of each cell against a column of ``cells``, which are those of ``runs``.

    Args:
        unit: the label of the axis.
        apart: columns of which each panel has one value.
        text: writes a tick of a log axis; None: the axis is linear.
    """
    cells = cells.sort_values([*apart, column, "method"], ignore_index=True)
    style = drawing.looks(cells.method, cells.label)
    return drawing.Figure(
        f"{data.scope_text(scope)} Mean over seeds, with one standard deviation where there are several; {caption}",
        cells,
        cells[["task", "label", "budget", *apart[1:], column, "metric", *data.SHOWN]],
        [
            drawing.Panel(
                "\n".join([f"{task}: {part.metric.iloc[0]} (%)", *others]),
                partial(draw, cells=part, column=column, unit=unit, text=text, style=style),
            )
            for (task, *others), part in drawing.groups(cells, [*apart])
        ],
        list(style.values()),
        data.cell_notes(runs),
        [] if len(cells) else ["adalora-run task=cola method=adalora"],
    )


def draw(
    axes: Axes, cells: pd.DataFrame, column: str, unit: str, text: Text | None, style: dict[str, drawing.Look]
) -> None:
    for method, part in drawing.groups(cells, "method"):
        drawing.draw_cells(axes, part, column, style[method])
    axes.margins(x=0.12)
    if text:
        axes.set_xscale("log")
        drawing.plain_log_axis(axes.xaxis, text)
    axes.grid()
    axes.set_xlabel(unit)


REPORT = drawing.report_of("scores", "Score against trainable parameters", figure)
