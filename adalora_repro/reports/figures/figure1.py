"""Figure 1: LoRA on one kind of weight matrix (left) or on some layers (right), the number of parameters kept equal."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import clean
from adalora_repro.models.sites import MATRIX_ROLES
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.notes import caveat
from adalora_repro.reports.spec import Scope, scope_words
from adalora_repro.reports.text import fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAPER_SAYS = (
    "The paper draws Figure 1 (MNLI-m, DeBERTaV3-base) and prints none of its numbers. Its text says that feed-forward "
    "matrices do better than attention's, and top layers better than bottom ones."
)
PANELS = {"method.targets": "one kind of matrix", "method.layers": "all matrices of some layers"}


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """One point for each choice of matrices that has finished runs on MNLI, by the rule of the tables."""
    runs = data.shown_runs(runs, scope)
    runs = runs[(runs.method == "lora") & (runs.task == "mnli")]
    narrowed = [narrowing(run.record.settings) for run in runs.run]
    runs = runs.assign(panel=[panel for panel, _ in narrowed], choice=[choice for _, choice in narrowed])
    runs = runs[runs.panel != ""]
    points = data.cells_of(runs).merge(runs[["record", "panel", "choice"]], on="record")
    points = points.assign(order=points.choice.map(order)).sort_values(["panel", "order"], ascending=[False, True])
    points = points.drop(columns="order").reset_index(drop=True)
    notes = [PAPER_SAYS, *data.cell_notes(runs)]
    if points.params.max() > 1.02 * points.params.min():
        notes.append("The numbers of parameters differ by more than 2%: they are not at one budget.")
    return drawing.Figure(
        f"MNLI. {data.scope_text(scope)}{caveat(scope, (run.record for run in runs.run))}",
        points,
        points[["panel", "choice", "params", "metric", *data.SHOWN]],
        [
            drawing.Panel(PANELS[panel], partial(draw, cells=cells, points=points, colour=colour))
            for (panel, cells), colour in zip(drawing.groups(points, "panel"), drawing.SERIES, strict=False)
        ],
        notes=notes,
        commands=[] if len(points) else [" ".join(["adalora-run", "-m", "+sweep=figure1", *scope_words(scope)])],
        names=2,
    )


def narrowing(settings: dict[str, Any]) -> tuple[str, str]:
    """The one setting of ``PANELS`` that a run has, and its value; ("", "") for all matrices, or for both settings."""
    chosen = [(name, settings[name]) for name in PANELS if settings.get(name)]
    return (chosen[0][0], ", ".join(map(str, chosen[0][1]))) if len(chosen) == 1 else ("", "")


def order(choice: str) -> int:
    """Roles as the paper orders them, layers from the bottom."""
    first = choice.partition(",")[0]
    return MATRIX_ROLES.index(first) if first in MATRIX_ROLES else int(first)


def draw(axes: Axes, cells: pd.DataFrame, points: pd.DataFrame, colour: str) -> None:
    """Points, each with its standard deviation: the axis does not begin at zero, where bars would have to."""
    cells = cells.assign(x=range(len(cells)))
    drawing.draw_cells(axes, cells, "x", drawing.Look("", colour))
    for cell in cells.itertuples():
        axes.annotate(fixed(cell.score), (cell.x, cell.score), (7, 0), textcoords="offset points", va="center")
    axes.set_xticks(cells.x, [", ".join(drawing.SYMBOLS.get(p, clean(p)) for p in c.split(", ")) for c in cells.choice])
    axes.set_xlim(-0.5, len(cells) - 0.2)
    room = points.sd.max(skipna=True) if points.sd.notna().any() else 0.0
    axes.set_ylim(points.score.min() - room - 0.5, points.score.max() + room + 0.5)  # the same in both panels
    axes.grid(axis="y")
    axes.set_ylabel(f"{cells.metric.iloc[0]} (%)")


TITLE = "Figure 1: LoRA on one kind of matrix, or on some layers, at 0.28M parameters"
REPORT = drawing.report_of("figure1", TITLE, figure)
