"""Figure 3: the rank that AdaLoRA left to every matrix, by layer and kind of matrix."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import InputError
from adalora_repro.models.sites import MATRIX_ROLES
from adalora_repro.records.selection import Run
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Figure 3: final rank of every weight matrix"
PAPER_SAYS = (
    "The paper prints none of the ranks of its Figure 3 (MNLI). Its text says that feed-forward matrices and top "
    "layers keep more."
)
SITE = re.compile(r"(\w+)\.(\d{1,3})\.(\w+)", re.ASCII)
FILL = "adalora-run task=mnli method=adalora budget=0.3M"
SHOWN = 4  # heat maps of a page; every run's ranks are in its details there
POINTS = ["run", "matrix", "stack", "layer", "role", "rank", "record"]


def site(name: str) -> tuple[str, int, str]:
    """``decoder.3.cross_q`` -> stack, layer, role.

    Raises:
        InputError: the name is none of a matrix.
    """
    match = SITE.fullmatch(name)
    if match is None or match[3] not in drawing.SYMBOLS:
        raise InputError(f"'{name}' names no matrix; STACK.LAYER.ROLE with a role of {', '.join(drawing.SYMBOLS)}")
    return match[1], int(match[2]), match[3]


def points_of(runs: Sequence[Run]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (data.label(run), name, *site(name), (run.record.rank_pattern or {})[name], str(run.path))
        for run in runs
        for name in data.matrices(run)
    ]
    return pd.DataFrame(rows, columns=POINTS)


def figure(runs: Sequence[Run]) -> drawing.Figure:
    points = points_of(runs)
    most = int(points["rank"].max()) if len(points) else 0
    table = points.assign(
        matrix=points.role.map(drawing.SYMBOLS), order=points.role.map(list(MATRIX_ROLES).index)
    ).pivot_table(
        index=["record", "run", "stack", "order", "matrix"], columns="layer", values="rank", sort=False, observed=True
    )
    table = (
        table.map(lambda rank: "" if rank != rank else f"{rank:.0f}").reset_index().drop(columns=["record", "order"])
    )
    both = points["stack"].nunique() > 1
    panels = []
    for (_, run, stack), cells in drawing.groups(points, ["record", "run", "stack"]):
        width = 0.3 * (cells.layer.max() + 1) + 1.1
        title = textwrap.fill(f"{run}{f', {stack}' * both}", round(9 * width))
        size = (width, 0.26 * cells.role.nunique() + 0.65 + 0.2 * (1 + title.count("\n")))
        panels.append(drawing.Panel(title, partial(draw, cells=cells, most=most), size))
    text = "; ".join(budget_text(run) for run in runs)
    return drawing.Figure(
        "figure3",
        TITLE,
        f"{text}. The stronger the colour, the higher the rank, up to {most}."
        if runs
        else "No finished AdaLoRA run yet.",
        points,
        table.rename(columns=str),
        tuple(panels),
        notes=(PAPER_SAYS,),
        commands=() if runs else (FILL,),
        names=3,
    )


def budget_text(run: Run) -> str:
    budget = run.record.budget or {}
    counts = ", ".join(f"{name} {budget[name]}" for name in ("n", "b_0", "b_T") if budget.get(name) is not None)
    return f"{data.label(run)}, {run.key['backbone']}{f' ({counts})' if counts else ''}"


def draw(axes: Axes, cells: pd.DataFrame, most: int) -> None:
    """Squares of one colour whose opacity is the rank, so that a page may be light or dark; each has its number."""
    from matplotlib.patches import Rectangle

    roles = [role for role in MATRIX_ROLES if role in set(cells.role)]
    for i, cell in cells.iterrows():
        x, y, rank = cell.layer, roles.index(cell.role), cell["rank"]
        shade = 0.03 + 0.62 * rank / most if most else 0.0
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, color=drawing.SERIES[0], alpha=shade, linewidth=0, gid=drawing.gid(i))
        )
        axes.text(x, y, str(rank), ha="center", va="center", fontsize=7, color=drawing.INK)
    layers = cells.layer.max() + 1
    axes.set(xlim=(-0.5, layers - 0.5), ylim=(-0.5, len(roles) - 0.5), aspect="equal", xlabel="layer")
    axes.set_xticks(range(layers))
    axes.set_yticks(range(len(roles)), [drawing.SYMBOLS[role] for role in roles])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def compile_figure(records: data.Records, args: argparse.Namespace) -> drawing.Figure:
    return figure(data.named_runs(records, args))


def section(records: data.Records, scope: Scope) -> drawing.Figure:
    """Of each task the newest AdaLoRA run that the tables show."""
    by_task: dict[str, Run] = {}
    for run in data.newest_shown(records, scope, points_of):
        if run.key["method"] == PROPOSED:
            by_task.setdefault(run.key["task"], run)
    return figure(list(by_task.values())[:SHOWN])


REPORT = drawing.report_of("figure3", TITLE, section, compile_figure, data.add_runs)
