"""Figure 1: LoRA on one kind of weight matrix (left) or on some layers (right), the number of parameters kept equal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_repro.models.backbones import MATRIX_ROLES
from adalora_repro.records.selection import RULE
from adalora_repro.reports.figures.drawing import (
    INK,
    MARKERS,
    SERIES,
    SYMBOLS,
    Figure,
    Records,
    gid,
    inline,
    report_of,
    titled,
)
from adalora_repro.reports.layout import CAVEATS, count_text, fixed, lr_of_tried, optimism, scope_words, seeds_text
from adalora_repro.reports.spec import Cell, Column, Request, Scope, add_partial, cell_of, choose_scope, sort_in
from adalora_repro.reports.tables.table1 import SPEC
from adalora_repro.terminal import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TITLE = "Figure 1: LoRA on one kind of matrix, or on some layers, at 0.28M parameters"
PAPER_SAYS = (
    "The paper draws Figure 1 (MNLI-m, DeBERTaV3-base) and prints none of its numbers: there is nothing to put beside "
    "ours. Its text says that feed-forward matrices do better than attention's, and top layers better than bottom ones."
)
PANELS = (("method.targets", "one kind of matrix"), ("method.layers", "all matrices of some layers"))


def figure(found: Records, scope: Scope, task: str) -> Figure:
    """One point for each choice of matrices that has finished runs, by the rule of the tables."""
    column = next(column for column in SPEC.columns if column.task == task)
    shown, refused = points_of(found, scope, column)
    points = tuple(point for point, _ in shown)
    heading = ("choice", "# params", *column.metrics, "± sd", "seeds", "lr")
    unequal = {point["params"] for point in points if point["params"] is not None}
    notes = [PAPER_SAYS]
    notes += [f"{line(point, column)[0]}: {note}." for point, cell in shown for note in cell.notes]
    notes += [RULE, *optimism(cell for _, cell in shown)]
    if unequal and max(unequal) > 1.02 * min(unequal):
        notes.append("The numbers of parameters differ by more than 2%: they are not at one budget.")
    where = f"{column.heading}, backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}"
    return Figure(
        "figure1",
        TITLE,
        f"{where}{'' if points else ': no record yet'}.{CAVEATS.get(scope.data, '') if points else ''}",
        points,
        (heading, *(line(point, column) for point in points)),
        lambda canvas: draw(canvas, points, column),
        (7.2, 3.0),
        tuple(notes),
        () if points or task != "mnli" else (command(scope),),
        tuple(refused),
    )


def points_of(found: Records, scope: Scope, column: Column) -> tuple[list[tuple[dict[str, Any], Cell]], list[str]]:
    """Cells whose runs adapt only one list of roles or of layers, each with its point; and what was refused."""
    cells, _, refused = sort_in(SPEC, found, scope)
    points = []
    for (method, budget, task), runs in cells.items():
        settings = runs[0].record.settings
        narrowed = [(name, settings[name]) for name, _ in PANELS if settings.get(name)]
        if method != "lora" or task != column.task or len(narrowed) != 1:
            continue
        name, choice = narrowed[0]
        cell = cell_of(column, runs, {})
        points.append((point(name, choice, budget, cell, column), cell))
    return sorted(points, key=lambda shown: order(shown[0])), refused


def point(name: str, choice: Any, budget: str, cell: Cell, column: Column) -> dict[str, Any]:
    first = cell.runs[0]
    means = {metric: value.mean for metric, value in zip(column.metrics, cell.values, strict=True)}
    return {
        "panel": name,
        "choice": ", ".join(map(str, choice)) if isinstance(choice, list) else str(choice),
        "budget": budget,
        "params": first.record.params.get("method"),
        **means,
        "sd": cell.values[0].sd,
        "seeds": seeds_text(cell.seeds),
        "lr": float(first.key["lr"]),
        "lrs_tried": len(cell.lrs),
        "record": str(first.path),
    }


def order(point: dict[str, Any]) -> tuple[Any, ...]:
    """Roles as the paper orders them, then layers from the bottom."""
    parts = point["choice"].split(", ")
    if point["panel"] == "method.targets":
        places: list[int] = [MATRIX_ROLES.index(part) if part in MATRIX_ROLES else len(MATRIX_ROLES) for part in parts]
    else:
        places = [int(part) if part.isdecimal() else 0 for part in parts]
    return point["panel"] != "method.targets", places, point["budget"]


def line(point: dict[str, Any], column: Column) -> tuple[str, ...]:
    what = "layers " if point["panel"] == "method.layers" else ""
    count = NO_COUNT if point["params"] is None else count_text(point["params"])
    scores = (fixed(point[metric]) for metric in column.metrics)
    lr = lr_of_tried(point["lr"], point["lrs_tried"])
    return (what + point["choice"], count, *scores, fixed(point["sd"]), point["seeds"], lr)


NO_COUNT = "?"


def draw(canvas: Canvas, points: Sequence[dict[str, Any]], column: Column) -> None:
    """Points, each with its standard deviation: the axis does not begin at zero, where bars would have to."""
    metric = column.metrics[0]
    panels = [(title, [i for i, p in enumerate(points) if p["panel"] == name]) for name, title in PANELS]
    panels = [(title, places) for title, places in panels if places]
    grid = canvas.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=[len(p) + 1 for _, p in panels])
    lows = [p[metric] - (p["sd"] or 0.0) for p in points]
    highs = [p[metric] + (p["sd"] or 0.0) for p in points]
    room = max(highs) - min(lows) or 1.0
    for axes, (title, places), colour in zip(grid[0], panels, SERIES, strict=False):
        for x, place in enumerate(places):
            score = points[place][metric]
            axes.plot(x, score, MARKERS[0], color=colour, markersize=7, gid=gid(place))
            if points[place]["sd"] is not None:
                axes.errorbar(x, score, points[place]["sd"], color=colour, capsize=3, linewidth=1)
            axes.annotate(
                fixed(score), (x, score), (7, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.set_xticks(range(len(places)), [symbols(points[place]["choice"]) for place in places])
        axes.set_xlim(-0.5, len(places) - 0.2)
        axes.grid(axis="y")
        titled(axes, title)
    grid[0][0].set_ylim(min(lows) - 0.1 * room, max(highs) + 0.1 * room)
    grid[0][0].set_ylabel(f"{column.heading}, {metric}")


def symbols(choice: str) -> str:
    """The paper's names of matrices; layers as they are."""
    return ", ".join(SYMBOLS.get(part, clean(part)) for part in choice.split(", "))


def command(scope: Scope) -> str:
    return " ".join(["adalora-run", "-m", "+sweep=figure1", *scope_words(scope)])


def compile_figure(found: Records, request: Request) -> Figure:
    args = request.args
    wish = Scope("", "", args.protocol, include_partial=args.include_partial, results=request.results)
    return figure(found, choose_scope(SPEC, found, args.backbone, args.data, wish), args.task)


def section(found: Records, scope: Scope) -> str:
    drawn = figure(found, scope, "mnli")
    return inline(drawn, scope.results) if drawn.points else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = [column.task for column in SPEC.columns]
    parser.add_argument("--task", choices=tasks, default="mnli", help="the paper's: %(default)s")
    add_partial(parser)


REPORT = report_of("figure1", TITLE, compile_figure, section, add_arguments)
