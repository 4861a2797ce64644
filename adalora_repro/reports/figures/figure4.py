"""Figure 4: how orthogonal P and Q are, ||PᵀP - I||² and ||QQᵀ - I||² (squared Frobenius norms), step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.records.selection import Run
from adalora_repro.reports.curves import curve, evenly
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAPER_SAYS = (
    "The paper's Figure 4 (SST-2, γ = 0.1) is drawn without numbers. Its text says that both norms fall to about 0.001 "
    "early in training."
)
NORMS = {
    "P": drawing.Look("‖PᵀP − I‖²", drawing.SERIES[0], "o"),
    "Q": drawing.Look("‖QQᵀ − I‖²", drawing.SERIES[1], "s"),
}
ROLES = (".0.attn_out", ".0.ffn_out")  # the paper's Wo and Wf2, of the first layer
LINES = ("-", "--", ":", "-.")
MARKED = 40  # points of a line that can be pointed at
CURVE = ["record", "run", "matrix", "norm"]


def figure(every: pd.DataFrame, scope: Scope, runs: Sequence[Run] = ()) -> drawing.Figure:
    """Of ``runs``, or of the newest AdaLoRA run and, of the same task, the newest with another γ."""
    if not runs:
        newest = data.newest_with_ranks(every, scope)
        first = [run for run in newest[:1] if run.key["method"] == PROPOSED]
        seen = [None, *(gamma(run) for run in first)]
        others = [run for run in newest if run.key["task"] == newest[0].key["task"] and gamma(run) not in seen]
        runs = first + others[: len(first)]
    points = points_of(runs)
    legend = {
        (str(run.path), norm): replace(
            look,
            label=f"{look.label}, {data.label(run)}" if len(runs) > 1 else look.label,
            line=LINES[number % len(LINES)],
        )
        for number, run in enumerate(runs)
        for norm, look in NORMS.items()
    }
    table = points.groupby(CURVE, sort=False).agg(
        **{"first step": ("step", "first"), "first": ("value", "first")},
        **{"last step": ("step", "last"), "last": ("value", "last"), "smallest": ("value", "min")},
    )
    return drawing.Figure(
        "; ".join(f"{data.label(run)}, {run.key['backbone']}" for run in runs) + "." if runs else "No AdaLoRA run yet.",
        points,
        table.reset_index().drop(columns="record"),
        [
            drawing.Panel(matrix, partial(draw, points=part, legend=legend))
            for matrix, part in drawing.groups(points, "matrix")
        ],
        list(legend.values()),
        [PAPER_SAYS],
        [] if len(points) else ["adalora-run task=sst2 method=adalora budget=0.3M"],
    )


def gamma(run: Run) -> object:
    return run.record.settings.get("method.gamma")


def points_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Every logged value of W_o and W_f2 of the first layer; zero, which a log axis cannot show, is left out."""
    import pandas as pd

    rows = [
        (str(run.path), data.label(run), matrix, norm, step, value)
        for run in runs
        for number, matrix in enumerate(run.record.rank_pattern or {})
        if matrix.endswith(ROLES)
        for norm in NORMS
        for step, value in curve(run.path.parent, f"orthogonality_{norm}", itemgetter(number))
        if value > 0
    ]
    return pd.DataFrame(rows, columns=[*CURVE, "step", "value"])


def draw(axes: Axes, points: pd.DataFrame, legend: dict[tuple[str, str], drawing.Look]) -> None:
    """A colour for P and for Q, a dash for each run."""
    for key, part in drawing.groups(points, ["record", "norm"]):
        look = legend[key]
        axes.plot(part.step, part.value, color=look.colour, linestyle=look.line)
        drawing.draw_points(axes, part.loc[evenly(list(part.index), MARKED)], "step", "value", look, size=10)
    axes.set_yscale("log")
    drawing.plain_log_axis(axes.yaxis, lambda value: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
    axes.grid(axis="y")
    axes.set_xlabel("step")


REPORT = drawing.report_of("figure4", "Figure 4: how orthogonal P and Q are", figure, of_runs=True)
