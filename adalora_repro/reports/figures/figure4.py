"""Figure 4: how orthogonal P and Q are, ||PᵀP - I||² and ||QQᵀ - I||² (squared Frobenius norms), step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import InputError
from adalora_repro.records.selection import Run
from adalora_repro.reports.curves import evenly, orthogonality
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Figure 4: how orthogonal P and Q are"
PAPER_SAYS = (
    "The paper's Figure 4 (SST-2, γ = 0.1) is drawn without numbers. Its text says that both norms fall to about 0.001 "
    "early in training."
)
NORMS = {
    "P": drawing.Look("‖PᵀP − I‖²", drawing.SERIES[0], "o"),
    "Q": drawing.Look("‖QQᵀ − I‖²", drawing.SERIES[1], "s"),
}
ROLES = ("attn_out", "ffn_out")  # the paper's Wo and Wf2
FILL = "adalora-run task=sst2 method=adalora budget=0.3M"
LINES = ("-", "--", ":", "-.")
MARKED = 40  # points of a line that can be pointed at
CURVE = ["record", "run", "matrix", "norm"]


def chosen_matrices(run: Run, asked: Sequence[str]) -> list[str]:
    """Names in the rank pattern: those asked for, or W_o and W_f2 of the first layer.

    Raises:
        InputError: the run has no such matrix.
    """
    names = data.matrices(run)
    if not asked:
        layer = names[0].rpartition(".")[0]
        return [name for name in names if name in {f"{layer}.{role}" for role in ROLES}] or names[:1]
    matches = [[name for name in names if wish in (name, name.partition(".")[2])] for wish in asked]
    for wish, match in zip(asked, matches, strict=True):
        if not match:
            raise InputError(f"--matrix: {run.path} has no matrix '{wish}'; valid: {', '.join(names)}")
    return [match[0] for match in matches]


def points_of(runs: Sequence[Run], asked: Sequence[str] = ()) -> pd.DataFrame:
    """Every logged value; zero, which a log axis cannot show, is left out.

    Raises:
        InputError: a run has no such matrix, or its log no such values.
    """
    import pandas as pd

    points = pd.DataFrame(
        [
            (str(run.path), data.label(run), name, norm, step, value)
            for run in runs
            for name in chosen_matrices(run, asked)
            for norm in NORMS
            for step, value in orthogonality(run.path.parent, norm, data.matrices(run).index(name))
            if value > 0
        ],
        columns=[*CURVE, "step", "value"],
    )
    for run in runs:
        if str(run.path) not in set(points.record):
            raise InputError(f"{run.path}: its log.jsonl has no orthogonality of '{run.key['method']}' to draw")
    return points


def figure(runs: Sequence[Run], asked: Sequence[str] = ()) -> drawing.Figure:
    points = points_of(runs, asked)
    records = list(dict.fromkeys(points.record))
    legend = {
        (record, norm): replace(
            look,
            label=f"{look.label}, {data.label(run)}" if len(runs) > 1 else look.label,
            line=LINES[records.index(record) % len(LINES)],
        )
        for run in runs
        for record in [str(run.path)]
        for norm, look in NORMS.items()
    }
    curves = points.groupby(CURVE, sort=False)
    table = curves.agg(**{"first step": ("step", "first"), "first": ("value", "first")})
    table = table.join(curves.agg(**{"last step": ("step", "last"), "last": ("value", "last")}))
    table = table.join(curves.agg(smallest=("value", "min"))).reset_index().drop(columns="record")
    table = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
    return drawing.Figure(
        "figure4",
        TITLE,
        "; ".join(f"{data.label(run)}, {run.key['backbone']}" for run in runs) + "."
        if runs
        else "No finished AdaLoRA run yet.",
        points,
        table.assign(norm=[NORMS[norm].label for norm in table.norm]),
        tuple(
            drawing.Panel(matrix, partial(draw, points=cells, legend=legend))
            for matrix, cells in drawing.groups(points, "matrix")
        ),
        tuple(legend.values()),
        (PAPER_SAYS,),
        () if runs else (FILL,),
        names=3,
    )


def draw(axes: Axes, points: pd.DataFrame, legend: dict[tuple[str, str], drawing.Look]) -> None:
    """A colour for P and for Q, a dash for each run."""
    for (record, norm), curve in drawing.groups(points, ["record", "norm"]):
        look = legend[record, norm]
        axes.plot(curve.step, curve.value, **look.style)
        for i in evenly(list(curve.index), MARKED):
            axes.plot(curve.step[i], curve.value[i], gid=drawing.gid(i), markersize=3, **look.point)
    axes.set_yscale("log")
    drawing.plain_log_axis(axes.yaxis, drawing.power)
    axes.grid(axis="y")
    axes.set_xlabel("step")


def compile_figure(records: data.Records, args: argparse.Namespace) -> drawing.Figure:
    return figure(data.named_runs(records, args), args.matrix or ())


def section(records: data.Records, scope: Scope) -> drawing.Figure | None:
    """The newest AdaLoRA run that the tables show and, of the same task, the newest with another γ."""
    runs = data.newest_shown(records, scope, points_of)
    first = next((run for run in runs if run.key["method"] == PROPOSED), None)
    if first is None:
        return None
    others = [run for run in runs if run.key["task"] == first.key["task"] and gamma(run) != gamma(first)]
    return figure([first, *others[:1]])


def gamma(run: Run) -> object:
    return run.record.settings.get("method.gamma")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    data.add_runs(parser)
    parser.add_argument(
        "--matrix",
        action="append",
        metavar="NAME",
        help="encoder.0.attn_out or 0.attn_out; several times for several (default: Wo and Wf2 of the first layer)",
    )


REPORT = drawing.report_of("figure4", TITLE, section, compile_figure, add_arguments)
