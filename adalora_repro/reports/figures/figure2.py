"""Figure 2: score against budget, AdaLoRA beside LoRA on every matrix: MNLI-m, SQuAD 2.0 (F1), XSum (ROUGE-2)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.notes import caveat
from adalora_repro.reports.spec import Scope, Spec, commands, paper_rows
from adalora_repro.reports.tables.table1 import SPEC as GLUE
from adalora_repro.reports.tables.table2 import SPEC as SQUAD
from adalora_repro.reports.tables.table3 import SPEC as SUMMARIES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

METHODS = {"lora": "LoRA", "adalora": "AdaLoRA"}
PARAMETERS = 183_831_552  # of DeBERTaV3-base, for which budgets are counts (0.3M)
#: printed in section 4.4 alone: (task, method, budget, score); no table has this budget
PAPER_TEXT = (("squad_v2", "adalora", "4.65%", "88.89"),)
NOTES = (
    "x: trainable parameters as a share of the backbone's, without the task head, on a log axis. Our points stand at "
    "the share in their records (mean over seeds), the paper's at the share that the budget's label states. On SQuAD "
    "and MNLI that is the share of adapters without biases, one eighth less than LoRA and AdaLoRA train.",
    "paper: its Tables 1, 2 and 3. Of the budgets that only Figure 2 shows, the text gives one score: AdaLoRA's 88.89 "
    "F1 on SQuADv2.0 at 4.65%. adalora-run -m +sweep=figure2 makes the runs at all budgets.",
)
POINTS = ["panel", *data.CELL, "of", "share", *data.SHOWN, "params", "record"]


#: the panels: a task -> its title, and where the paper's numbers of its primary metric are
TASKS: dict[str, tuple[str, Spec, str]] = {
    "mnli": ("MNLI-m accuracy", GLUE, "mnli_m"),
    "squad_v2": ("SQuADv2.0 F1", SQUAD, "squad_v2_f1"),
    "xsum": ("XSum ROUGE-2", SUMMARIES, "xsum_r2"),
}


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """The paper's points and ours, of the tasks with runs in this scope; without any, of all its tasks."""
    import pandas as pd

    runs = data.shown_runs(runs, scope)
    runs = runs[runs.method.isin(METHODS) & runs.task.isin(TASKS) & runs.budget.map(share_named).notna()]
    ours, paper = data.cells_of(runs).assign(of="ours"), paper_points()
    summaries = scope.backbone == SUMMARIES.backbone
    of_backbone = {task for task, (_, spec, _) in TASKS.items() if (spec is SUMMARIES) == summaries}
    paper = paper[paper.task.isin(set(ours.task) or of_backbone)]
    points = pd.concat([part for part in (paper, ours) if len(part)], ignore_index=True).reindex(columns=POINTS)
    points["panel"] = points.task.map({task: title for task, (title, _, _) in TASKS.items()})
    points = points.sort_values(["panel", "method", "share", "budget", "of"], ignore_index=True)
    filled = set(map(tuple, ours[data.CELL].values.tolist()))
    gaps = [cell for cell in map(tuple, paper[data.CELL].values.tolist()) if cell not in filled]
    theirs = ", ".join(sorted({TASKS[task][1].backbone for task in paper.task}))
    names = {"ours": "ours", "paper": "paper" if theirs == scope.backbone else f"paper ({theirs})"}
    legend = {
        (method, of): replace(look, label=f"{look.label}, {names[of]}", line=line, filled=of == "ours")
        for method, look in drawing.looks(METHODS, METHODS.values()).items()
        for of, line in (("ours", "-"), ("paper", "--"))
    }
    return drawing.Figure(
        f"{data.scope_text(scope)}{caveat(scope, (run.record for run in runs.run))}",
        points,
        points[[*data.CELL, "of", "share", *data.SHOWN]],
        [
            drawing.Panel(panel, partial(draw, points=part, legend=legend))
            for panel, part in drawing.groups(points, "panel")
        ],
        list(legend.values()),
        [*NOTES, *data.cell_notes(runs)],
        commands(gaps, scope),
        names=4,
    )


def paper_points() -> pd.DataFrame:
    """The paper's own numbers."""
    import pandas as pd

    rows = [
        (task, row["method"], row["budget"], row[column])
        for task, (_, spec, column) in TASKS.items()
        for row in paper_rows(spec.paper_file)
    ]
    points = pd.DataFrame([*rows, *PAPER_TEXT], columns=[*data.CELL, "score"])
    points = points[points.method.isin(METHODS) & (points.score != "")].astype({"score": float})
    return points.assign(of="paper", share=points.budget.map(share_named), degenerate=False, seeds="", record="")


def share_named(budget: str) -> float | None:
    """The percentage that a budget's label states for the paper's backbone: 0.08% -> 0.08, 0.3M -> 0.163.

    None for a label that is no number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([M%])", budget, re.ASCII)
    return float(match[1]) * (1 if match[2] == "%" else 100e6 / PARAMETERS) if match else None


def draw(axes: Axes, points: pd.DataFrame, legend: dict[tuple[str, str], drawing.Look]) -> None:
    """Ours filled with a bar of one standard deviation, the paper's hollow and dashed."""
    for key, cells in drawing.groups(points, ["method", "of"]):
        drawing.draw_cells(axes, cells, "share", legend[key])
    axes.set_xscale("log")
    drawing.plain_log_axis(axes.xaxis, lambda share: f"{share:g}%")
    axes.grid(axis="y")
    axes.set_xlabel("trainable parameters, share of the backbone")


REPORT = drawing.report_of("figure2", "Figure 2: score against budget", figure)
