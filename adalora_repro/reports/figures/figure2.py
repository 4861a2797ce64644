"""Figure 2: score against budget, AdaLoRA beside LoRA on every matrix: MNLI-m, SQuAD 2.0 (F1), XSum (ROUGE-2)."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_repro.records.selection import RULE
from adalora_repro.reports.figures.drawing import MARKERS, SERIES, Figure, Records, gid, inline, report_of, titled
from adalora_repro.reports.layout import CAVEATS, command, fixed, lr_of_tried, optimism, seeds_text, signed
from adalora_repro.reports.spec import (
    METHOD_NAMES,
    Cell,
    Request,
    Row,
    Scope,
    Spec,
    Table,
    Value,
    add_partial,
    choose_scope,
    compile_table,
)
from adalora_repro.reports.tables.table1 import SPEC as GLUE
from adalora_repro.reports.tables.table2 import SPEC as SQUAD
from adalora_repro.reports.tables.table3 import SPEC as SUMMARIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TITLE = "Figure 2: score against budget"
METHODS = ("lora", "adalora")
#: parameters of the backbone for which budgets are counts (0.3M); on the others they are shares
PARAMETERS = {"deberta-v3-base": 183_831_552}
#: printed in section 4.4 alone: (task, method, budget, score); no table has this budget
PAPER_TEXT = (("squad_v2", "adalora", "4.65%", 88.89),)
NOTES = (
    "x: trained parameters as a share of the backbone's, without the task head, on a log axis. Our points are plotted "
    "at the share in their records (mean over seeds), the paper's at the share that the budget's label states. On "
    "SQuAD and MNLI that is the share of adapters without biases, one eighth less than LoRA and AdaLoRA train. Runs of "
    "other sizes are not shown.",
    "paper: its Tables 1, 2 and 3. Of the budgets that only Figure 2 shows, the text gives one score: AdaLoRA's 88.89 "
    "F1 on SQuADv2.0 at 4.65%. adalora-run -m +sweep=figure2 makes the runs at all budgets.",
)


@dataclass(frozen=True)
class Panel:
    """One metric of one table: ``place`` is the index of its column, ``metric`` that of the column's metric."""

    title: str
    spec: Spec
    place: int
    metric: int

    @property
    def task(self) -> str:
        return self.spec.columns[self.place].task


def panel(title: str, spec: Spec, task: str, metric: str) -> Panel:
    place = next(i for i, column in enumerate(spec.columns) if column.task == task)
    return Panel(title, spec, place, spec.columns[place].metrics.index(metric))


PANELS = (
    panel("MNLI-m accuracy", GLUE, "mnli", "accuracy_m"),
    panel("SQuADv2.0 F1", SQUAD, "squad_v2", "f1"),
    panel("XSum ROUGE-2", SUMMARIES, "xsum", "rouge2"),
)


def figure(tables: Sequence[tuple[Panel, Table]]) -> Figure:
    points = tuple(point for panel, table in tables for point in points_of(panel, table))
    cells = [
        (panel, row, row.cells[panel.place])
        for panel, table in tables
        for row in table.rows
        if row.method in METHODS and share_named(row.budget, panel) is not None
    ]
    notes = [f"{row.name}, {panel.title}: {note}." for panel, row, cell in cells for note in cell.notes]
    heading = ("task", "method", "budget", "share", "ours", "± sd", "seeds", "lr", "paper", "difference")
    where = "; ".join(
        f"{panel.title} {table.scope.backbone}, data {table.scope.data}, protocol {table.scope.protocol}"
        for panel, table in tables
    )
    caveats = dict.fromkeys(
        CAVEATS[table.scope.data]
        for panel, table in tables
        if table.scope.data in CAVEATS and any(row.cells[panel.place].runs for row in table.rows)
    )
    return Figure(
        "figure2",
        TITLE,
        f"{where}.{''.join(caveats)}",
        points,
        (heading, *lines(points)),
        lambda canvas: draw(canvas, points, [panel for panel, _ in tables]),
        (3.4 * len(tables) + 0.4, 3.2),
        (*NOTES, *notes, RULE, *optimism(cell for *_, cell in cells)),
        tuple(gaps(panel, table) for panel, table in tables if gaps(panel, table)),
        tuple(dict.fromkeys(line for _, table in tables for line in table.refused)),
    )


def points_of(panel: Panel, table: Table) -> list[dict[str, Any]]:
    points = []
    for row in table.rows:
        if row.method in METHODS and share_named(row.budget, panel) is not None:
            cell = row.cells[panel.place]
            value = cell.values[panel.metric]
            if value.paper is not None:
                points.append(paper_point(panel, row.method, row.budget, value.paper))
            if cell.runs:
                points.append(our_point(panel, row, value))
    points += [paper_point(panel, m, budget, score) for task, m, budget, score in PAPER_TEXT if task == panel.task]

    def order(point: dict[str, Any]) -> tuple[Any, ...]:
        return METHODS.index(point["method"]), share_named(point["budget"], panel), point["budget"], point["of"]

    return sorted(points, key=order)


def share_named(budget: str, panel: Panel) -> float | None:
    """The percentage that a budget's label states for the paper's backbone: 0.08% -> 0.08, 0.3M -> 0.163.

    None for a label that is not a number, or is a count where the backbone's size is not listed.
    """
    backbone = PARAMETERS.get(panel.spec.backbone)
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?[M%]", budget, re.ASCII) or not (number := float(budget[:-1])):
        return None
    if budget.endswith("%"):
        return number
    return None if backbone is None else 100e6 * number / backbone


def share_held(cell: Cell) -> float | None:
    """Percentage of the backbone's parameters that a cell's runs train, averaged over runs; None if not recorded."""
    counts = [(run.record.params.get("method"), run.record.params.get("backbone")) for run in cell.runs]
    shares = [100 * method / backbone for method, backbone in counts if method and backbone]
    return statistics.fmean(shares) if shares else None


def paper_point(panel: Panel, method: str, budget: str, score: float) -> dict[str, Any]:
    return common(panel, "paper", method, budget, share_named(budget, panel)) | {
        "mean": score,
        "sd": None,
        "seeds": "",
        "lr": None,
        "lrs_tried": None,
        "params": None,
        "record": "",
    }


def our_point(panel: Panel, row: Row, value: Value) -> dict[str, Any]:
    cell = row.cells[panel.place]
    first = cell.runs[0]
    share = share_held(cell) or share_named(row.budget, panel)
    return common(panel, "ours", row.method, row.budget, share) | {
        "mean": value.mean,
        "sd": value.sd,
        "seeds": seeds_text(cell.seeds),
        "lr": float(first.key["lr"]),
        "lrs_tried": len(cell.lrs),
        "params": first.record.params.get("method"),
        "record": str(first.path),
    }


def common(panel: Panel, of: str, method: str, budget: str, share: float | None) -> dict[str, Any]:
    names = {"panel": panel.title, "task": panel.task, "of": of, "method": method, "budget": budget}
    return names | {"share": share}


def lines(points: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Ours and the paper's of one budget in one line."""
    decimals = {panel.task: panel.spec.decimals for panel in PANELS}
    places: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for point in points:
        places.setdefault((point["task"], point["method"], point["budget"]), {})[point["of"]] = point
    told: list[tuple[str, ...]] = []
    for (task, method, budget), of in places.items():
        ours, paper = of.get("ours", {}), of.get("paper", {})
        value = Value(ours.get("mean"), ours.get("sd"), paper.get("mean"))
        told.append(
            (
                task,
                METHOD_NAMES[method],
                budget,
                f"{ours['share']:.3f}%" if ours else "",
                fixed(value.mean),
                fixed(value.sd),
                ours.get("seeds", ""),
                lr_of_tried(ours["lr"], ours["lrs_tried"]) if ours else "",
                printed(value.paper, decimals[task]),
                "" if value.difference is None else signed(value.difference),
            )
        )
    return told


def printed(score: float | None, decimals: int) -> str:
    """With the decimals of the paper's table, or the two that its text has."""
    return fixed(score, decimals if score is None or round(score, decimals) == score else 2)


def gaps(panel: Panel, table: Table) -> str:
    """The command for the paper's budgets without a run of ours."""
    rows = [row for row in table.rows if row.method in METHODS and row.in_paper and not row.cells[panel.place].runs]
    budgets = list(dict.fromkeys(row.budget for row in rows))
    methods = [method for method in METHODS if any(row.method == method for row in rows)]
    return command([panel.task], methods, budgets, table.scope) if rows else ""


def draw(canvas: Canvas, points: Sequence[dict[str, Any]], panels: Sequence[Panel]) -> None:
    """Ours filled with a bar of one standard deviation, the paper's hollow and dashed."""
    from matplotlib.ticker import LogLocator, NullLocator

    grid = canvas.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for method, colour, marker in zip(METHODS, SERIES, MARKERS, strict=False):
            for of, style in (("paper", "--"), ("ours", "-")):
                chosen = [
                    (point["share"], i)
                    for i, point in enumerate(points)
                    if (point["panel"], point["method"], point["of"]) == (panel.title, method, of)
                ]
                if not chosen:
                    continue
                chosen.sort()
                x, places = [x for x, _ in chosen], [i for _, i in chosen]
                face = "none" if of == "paper" else colour
                name = f"{METHOD_NAMES[method]}, {of}"
                look = {"color": colour, "linewidth": 1.2, "linestyle": style}
                axes.plot(x, [points[i]["mean"] for i in places], **look)
                axes.plot([], [], marker=marker, markerfacecolor=face, label=name, **look)
                for at, i in chosen:
                    if points[i]["sd"] is not None:
                        axes.errorbar(at, points[i]["mean"], points[i]["sd"], color=colour, capsize=3, linewidth=1)
                    axes.plot(
                        at, points[i]["mean"], marker, color=colour, markerfacecolor=face, markersize=6, gid=gid(i)
                    )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}%")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
        axes.set_xlabel("trained parameters, share of the backbone")
        titled(axes, panel.title)
    handles, names = grid[0][0].get_legend_handles_labels()
    for axes in grid[0][1:]:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name not in names:
                handles.append(handle)
                names.append(name)
    canvas.legend(handles, names, loc="outside lower center", ncols=2 if len(panels) == 1 else 4)


def compile_figure(found: Records, request: Request) -> Figure:
    args = request.args
    wish = Scope("", "", args.protocol, include_partial=args.include_partial, results=request.results)
    scopes = [(panel, choose_scope(panel.spec, found, args.backbone, args.data, wish)) for panel in PANELS]
    return figure([(panel, compile_table(panel.spec, found, scope)) for panel, scope in scopes])


def section(found: Records, scope: Scope) -> str:
    """Only panels with a run of ours: the others would show the paper alone."""
    tables = [(panel, compile_table(panel.spec, found, scope)) for panel in PANELS]
    filled = [
        (panel, table)
        for panel, table in tables
        if any(row.cells[panel.place].runs for row in table.rows if row.method in METHODS)
    ]
    return inline(figure(filled), scope.results) if filled else ""


REPORT = report_of("figure2", TITLE, compile_figure, section, add_partial)
