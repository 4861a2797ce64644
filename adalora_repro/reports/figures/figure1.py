"""Figure 1: LoRA on one kind of weight matrix (left) or on some layers (right), the number of parameters kept equal."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import clean
from adalora_repro.models.sites import MATRIX_ROLES
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.notes import CAVEATS
from adalora_repro.reports.spec import Scope, scope_words
from adalora_repro.reports.tables.table1 import SPEC
from adalora_repro.reports.text import count_text, fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Figure 1: LoRA on one kind of matrix, or on some layers, at 0.28M parameters"
PAPER_SAYS = (
    "The paper draws Figure 1 (MNLI-m, DeBERTaV3-base) and prints none of its numbers. Its text says that feed-forward "
    "matrices do better than attention's, and top layers better than bottom ones."
)
PANELS = {"method.targets": "one kind of matrix", "method.layers": "all matrices of some layers"}


def figure(records: data.Records, scope: Scope, task: str = "mnli") -> drawing.Figure:
    """One point for each choice of matrices that has finished runs, by the rule of the tables."""
    runs = data.shown_runs(records, scope)
    runs = runs[(runs.method == "lora") & (runs.task == task)]
    narrowed = [narrowing(run.record.settings) for run in runs.run]
    runs = runs.assign(panel=[panel for panel, _ in narrowed], choice=[choice for _, choice in narrowed])
    runs = runs[runs.panel != ""]
    points = data.cells_of(runs).merge(runs[["record", "panel", "choice"]], on="record")
    points = points.sort_values(["panel", "choice"], key=lambda column: column.map(order)).reset_index(drop=True)
    notes = [PAPER_SAYS, *data.cell_notes(runs)]
    if points.params.max() > 1.02 * points.params.min():
        notes.append("The numbers of parameters differ by more than 2%: they are not at one budget.")
    heading = next(column.heading for column in SPEC.columns if column.task == task)
    table = data.table_of(
        points,
        choice=lambda cell: "layers " * (cell.panel == "method.layers") + cell.choice,
        params=lambda cell: count_text(cell.params) if cell.params == cell.params else "?",
        metric=lambda cell: cell.metric,
    )
    where = f"{heading}, backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}"
    empty = points.empty
    return drawing.Figure(
        "figure1",
        TITLE,
        f"{where}{': no record yet' if empty else ''}.{'' if empty else CAVEATS.get(scope.data, '')}",
        points,
        table,
        tuple(
            drawing.Panel(title, partial(draw, points=points, name=name, colour=colour, heading=heading))
            for (name, title), colour in zip(PANELS.items(), drawing.SERIES, strict=False)
            if name in set(points.panel)
        ),
        notes=tuple(notes),
        commands=(" ".join(["adalora-run", "-m", "+sweep=figure1", *scope_words(scope)]),) * (empty and task == "mnli"),
    )


def narrowing(settings: dict[str, Any]) -> tuple[str, str]:
    """The one setting of ``PANELS`` that a run has, and its value; ("", "") for all matrices, or for both settings."""
    chosen = [(name, settings[name]) for name in PANELS if settings.get(name)]
    if len(chosen) != 1:
        return "", ""
    name, choice = chosen[0]
    return name, ", ".join(map(str, choice)) if isinstance(choice, list) else str(choice)


def order(text: str) -> tuple[bool, tuple[int, ...]]:
    """Roles as the paper orders them, layers from the bottom; of panels the one of roles first."""
    parts = text.split(", ")
    ranks = (
        MATRIX_ROLES.index(part) if part in MATRIX_ROLES else int(part) if part.isdecimal() else 99 for part in parts
    )
    return text == "method.layers", tuple(ranks)


def draw(axes: Axes, points: pd.DataFrame, name: str, colour: str, heading: str) -> None:
    """Points, each with its standard deviation: the axis does not begin at zero, where bars would have to."""
    chosen, look = points[points.panel == name], drawing.Look(name, colour)
    for x, (i, cell) in enumerate(chosen.iterrows()):
        drawing.draw_cell(axes, x, i, cell, look)
        axes.annotate(fixed(cell.score), (x, cell.score), (7, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(chosen)), [symbols(choice) for choice in chosen.choice])
    axes.set_xlim(-0.5, len(chosen) - 0.2)
    spread = points.sd.fillna(0)
    low, high = (points.score - spread).min(), (points.score + spread).max()
    room = 0.1 * ((high - low) or 1.0)
    axes.set_ylim(low - room, high + room)  # the same in both panels
    axes.grid(axis="y")
    axes.set_ylabel(f"{heading}, {chosen.metric.iloc[0]} (%)")


def symbols(choice: str) -> str:
    """The paper's names of matrices; layers as they are."""
    return ", ".join(drawing.SYMBOLS.get(part, clean(part)) for part in choice.split(", "))


def compile_figure(records: data.Records, args: argparse.Namespace) -> drawing.Figure:
    return figure(records, data.scope_of(records, args), args.task)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = [column.task for column in SPEC.columns]
    parser.add_argument("--task", choices=tasks, default="mnli", help="the paper's: %(default)s")


REPORT = drawing.report_of("figure1", TITLE, figure, compile_figure, add_arguments)
