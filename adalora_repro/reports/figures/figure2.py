"""Figure 2: score against budget, AdaLoRA beside LoRA on every matrix: MNLI-m, SQuAD 2.0 (F1), XSum (ROUGE-2)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.notes import CAVEATS
from adalora_repro.reports.spec import Scope, Spec, command, paper_rows
from adalora_repro.reports.tables.table1 import SPEC as GLUE
from adalora_repro.reports.tables.table2 import SPEC as SQUAD
from adalora_repro.reports.tables.table3 import SPEC as SUMMARIES
from adalora_repro.reports.text import signed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Figure 2: score against budget"
METHODS = {"lora": "LoRA", "adalora": "AdaLoRA"}
#: parameters of the backbone for which budgets are counts (0.3M); on the others they are shares
PARAMETERS = {"deberta-v3-base": 183_831_552}
#: printed in section 4.4 alone: (task, method, budget, score); no table has this budget
PAPER_TEXT = (("squad_v2", "adalora", "4.65%", "88.89"),)
NOTES = (
    "x: trainable parameters as a share of the backbone's, without the task head, on a log axis. Our points stand at "
    "the share in their records (mean over seeds), the paper's at the share that the budget's label states. On SQuAD "
    "and MNLI that is the share of adapters without biases, one eighth less than LoRA and AdaLoRA train.",
    "paper: its Tables 1, 2 and 3. Of the budgets that only Figure 2 shows, the text gives one score: AdaLoRA's 88.89 "
    "F1 on SQuADv2.0 at 4.65%. adalora-run -m +sweep=figure2 makes the runs at all budgets.",
)
POINTS = ["panel", "task", "of", "method", "budget", "share", "score", "sd", "printed"]
POINTS += ["seeds", "lr", "lrs_tried", "degenerate", "params", "record"]


class Task(NamedTuple):
    """One panel: a task, its primary metric, and where the paper's numbers of it are."""

    task: str
    title: str
    spec: Spec
    column: str


TASKS = (
    Task("mnli", "MNLI-m accuracy", GLUE, "mnli_m"),
    Task("squad_v2", "SQuADv2.0 F1", SQUAD, "squad_v2_f1"),
    Task("xsum", "XSum ROUGE-2", SUMMARIES, "xsum_r2"),
)


def figure(records: data.Records, scopes: Sequence[tuple[Task, Scope]]) -> drawing.Figure:
    """The paper's points and ours of each task, ours in its scope."""
    import pandas as pd

    parts, notes, gaps = [], [], []
    for task, scope in scopes:
        runs = data.shown_runs([(path, record) for path, record in records if record.key["task"] == task.task], scope)
        named = runs.budget.map(lambda budget, task=task: share_named(budget, task.spec)).astype(float)
        runs = runs[runs.method.isin(METHODS) & named.notna()].assign(named=named)
        runs["params.share"] = runs["params.share"].fillna(runs.named)
        ours, paper = data.cells_of(runs).assign(of="ours", panel=task.title), paper_points(task)
        parts += [paper, ours]
        notes += data.cell_notes(runs)
        gaps += missing(task, scope, ours)
    points = pd.concat([part for part in parts if len(part)], ignore_index=True)[POINTS]
    points = points.sort_values(["panel", "method", "share", "budget", "of"], ignore_index=True)
    where = "; ".join(f"{t.title} {s.backbone}, data {s.data}, protocol {s.protocol}" for t, s in scopes)
    with_runs = set(points[points.of == "ours"].panel)
    caveats = dict.fromkeys(CAVEATS.get(scope.data, "") for task, scope in scopes if task.title in with_runs)
    style = drawing.looks(METHODS, METHODS)
    legend = {
        (method, of): replace(style[method], label=f"{METHODS[method]}, {of}", line=line, filled=of == "ours")
        for method in METHODS
        for of, line in (("ours", "-"), ("paper", "--"))
    }
    return drawing.Figure(
        "figure2",
        TITLE,
        f"{where}.{''.join(caveats)}",
        points,
        table_of(points),
        tuple(
            drawing.Panel(task.title, partial(draw, points=points[points.panel == task.title], legend=legend))
            for task, _ in scopes
        ),
        tuple(legend.values()),
        (*NOTES, *dict.fromkeys(notes)),
        tuple(gaps),
        names=3,
    )


def paper_points(task: Task) -> pd.DataFrame:
    """The paper's own numbers, ``printed`` as they stand there."""
    import pandas as pd

    rows = [(row["method"], row["budget"], row[task.column]) for row in paper_rows(task.spec.paper_file)]
    rows += [(method, budget, score) for name, method, budget, score in PAPER_TEXT if name == task.task]
    rows = [row for row in rows if row[0] in METHODS and row[2]]
    points = pd.DataFrame(rows, columns=["method", "budget", "printed"]).reindex(columns=POINTS)
    share = [share_named(budget, task.spec) for budget in points.budget]
    new: dict[str, Any] = {
        "panel": task.title,
        "task": task.task,
        "of": "paper",
        "share": share,
        "seeds": "",
        "record": "",
    }
    return points.assign(**new, score=points.printed.astype(float), degenerate=False)


def share_named(budget: str, spec: Spec) -> float | None:
    """The percentage that a budget's label states for the paper's backbone: 0.08% -> 0.08, 0.3M -> 0.163.

    None for a label that is not a number, or is a count where the backbone's size is not listed.
    """
    backbone = PARAMETERS.get(spec.backbone)
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?[M%]", budget, re.ASCII) or not (number := float(budget[:-1])):
        return None
    if budget.endswith("%"):
        return number
    return None if backbone is None else 100e6 * number / backbone


def table_of(points: pd.DataFrame) -> pd.DataFrame:
    """Ours and the paper's of one budget in one line."""
    import pandas as pd

    key = ["task", "method", "budget"]
    ours, paper = (points[points.of == of].set_index(key) for of in ("ours", "paper"))
    shown = data.table_of(
        ours.reset_index(),
        task=lambda cell: cell.task,
        method=lambda cell: cell.method,
        budget=lambda cell: cell.budget,
        share=lambda cell: f"{cell.share:.3f}%",
    ).reindex(columns=[*key, "share", "score", "± sd", "seeds", "lr"])
    lines = points[key].drop_duplicates()
    rows = pd.MultiIndex.from_frame(lines)
    lines = lines.merge(shown.astype(object), how="left", on=key)
    lines["paper"] = paper.printed.reindex(rows).to_numpy()
    difference = (ours.score - paper.score).reindex(rows)
    lines["difference"] = [signed(value) if value == value else "" for value in difference]
    return lines.replace({"method": METHODS}).fillna("")


def missing(task: Task, scope: Scope, ours: pd.DataFrame) -> list[str]:
    """The command for the paper's budgets without a run of ours; none where every budget has one."""
    there = set(zip(ours.method, ours.budget, strict=True))
    rows = [(row["method"], row["budget"]) for row in paper_rows(task.spec.paper_file) if row["method"] in METHODS]
    gaps = [row for row in rows if row not in there]
    methods = [method for method in METHODS if any(method == one for one, _ in gaps)]
    return [command([task.task], methods, list(dict.fromkeys(b for _, b in gaps)), scope)] if gaps else []


def draw(axes: Axes, points: pd.DataFrame, legend: dict[tuple[str, str], drawing.Look]) -> None:
    """Ours filled with a bar of one standard deviation, the paper's hollow and dashed."""
    for (method, of), look in legend.items():
        cells = points[(points.method == method) & (points.of == of)]
        axes.plot(cells.share, cells.score, **look.style)
        for i, cell in cells.iterrows():
            drawing.draw_cell(axes, cell.share, i, cell, look)
    axes.set_xscale("log")
    drawing.plain_log_axis(axes.xaxis, lambda share: f"{share:g}%")
    axes.grid(axis="y")
    axes.set_xlabel("trainable parameters, share of the backbone")


def compile_figure(records: data.Records, args: argparse.Namespace) -> drawing.Figure:
    def scope(task: Task) -> Scope:
        return data.scope_of(
            [(p, record) for p, record in records if record.key["task"] == task.task], args, task.spec.backbone
        )

    return figure(records, [(task, scope(task)) for task in TASKS])


def section(records: data.Records, scope: Scope) -> drawing.Figure | None:
    """Only panels with a run of ours: the others would show the paper alone."""
    runs = data.shown_runs(records, scope)
    ours = runs[runs.method.isin(METHODS)]
    tasks = [
        task
        for task in TASKS
        if any(share_named(budget, task.spec) is not None for budget in ours.budget[ours.task == task.task])
    ]
    return figure(records, [(task, scope) for task in tasks]) if tasks else None


REPORT = drawing.report_of("figure2", TITLE, section, compile_figure)
