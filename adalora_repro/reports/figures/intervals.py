"""Score of each method at each size: every seed, the mean, and the 95% interval of the mean."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.significance import half_width
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.text import fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """One point a seed, one line a cell, by the rule of the tables; the interval is Student's t over seeds:

    mean ± t(0.975, n - 1) sd / √n
    """
    runs = data.shown_runs(runs, scope)
    points = runs[["task", "metric", "method", "label", "budget", "seed", "score", "lr", "degenerate", "record"]]
    points = points.sort_values(["task", "method", "budget", "seed"], ignore_index=True)
    cells = data.cells_of(runs).sort_values(["task", "score"], ignore_index=True)  # the best of a task on top
    half = half_width(cells.sd, cells.n)
    cells = cells.assign(low=cells.score - half, high=cells.score + half)
    style = drawing.looks(cells.method, cells.label)
    return drawing.Figure(
        f"{data.scope_text(scope)} Points are seeds, lines the 95% interval of the mean over seeds.",
        points,
        cells[["task", "label", "budget", "metric", "score", "low", "high", "seeds", "lr", "lrs_tried"]],
        [
            drawing.Panel(
                f"{task}: {part.metric.iloc[0]} (%){of_one_budget(part)}",
                partial(draw, cells=part, points=points[points.task == task], style=style),
                (6.4, 0.9 + 0.27 * len(part)),
            )
            for task, part in drawing.groups(cells, "task")
        ],
        notes=data.cell_notes(runs),
        commands=[] if len(points) else ["adalora-run task=cola method=adalora"],
    )


def of_one_budget(cells: pd.DataFrame) -> str:
    """ " at 0.3M" where all methods that have a budget have this one, else ""."""
    budgets = set(cells.budget[cells.budget != cells.method])
    return f" at {budgets.pop()}" if len(budgets) == 1 else ""


def draw(axes: Axes, cells: pd.DataFrame, points: pd.DataFrame, style: dict[str, drawing.Look]) -> None:
    for y, cell in enumerate(cells.itertuples()):
        look = style[cell.method]
        axes.plot([cell.low, cell.high], [y, y], color=look.colour)
        axes.plot([cell.score], [y], color=look.colour, marker="|", markersize=9)
        own = points[(points.method == cell.method) & (points.budget == cell.budget)].assign(y=y)
        drawing.draw_points(axes, own, "score", "y", look, size=14)
    several = not of_one_budget(cells)
    names = [
        f"{cell.label}{f' {cell.budget}' if several and cell.budget != cell.method else ''}  {fixed(cell.score, 1)}"
        for cell in cells.itertuples()
    ]
    axes.set_yticks(range(len(cells)), names)
    axes.grid(axis="x")


REPORT = drawing.report_of("intervals", "Scores with 95% intervals", figure)
