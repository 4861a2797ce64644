"""Figure 3: the rank that AdaLoRA left to every matrix, by layer and kind of matrix."""

from __future__ import annotations

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

PAPER_SAYS = (
    "The paper prints none of the ranks of its Figure 3 (MNLI). Its text says that feed-forward matrices and top "
    "layers keep more."
)
SHOWN = 4  # heat maps of a page; every run's ranks are in its details there


def figure(every: pd.DataFrame, scope: Scope, runs: Sequence[Run] = ()) -> drawing.Figure:
    """Of ``runs``, or of each task's newest AdaLoRA run that the tables show; of many tasks, those run last."""
    if not runs:
        ours = [run for run in data.newest_with_ranks(every, scope) if run.key["method"] == PROPOSED]
        tasks = [run.key["task"] for run in ours]
        runs = [run for i, run in enumerate(ours) if run.key["task"] not in tasks[:i]][:SHOWN]
    points = points_of(runs)
    most = int(points["rank"].max()) if len(points) else 0
    table = points.pivot_table(index=["record", "run", "stack", "role"], columns="layer", values="rank", sort=False)
    panels = []
    for (_, run, stack), cells in drawing.groups(points, ["record", "run", "stack"]):
        width = 0.3 * (cells.layer.max() + 1) + 1.1
        title = textwrap.fill(f"{run}, {stack}", round(9 * width))
        size = (width, 0.26 * cells.role.nunique() + 0.85 + 0.2 * title.count("\n"))
        panels.append(drawing.Panel(title, partial(draw, cells=cells, most=most), size))
    text = "; ".join(budget_text(run) for run in runs)
    return drawing.Figure(
        f"{text}. The stronger the colour, the higher the rank, up to {most}." if runs else "No AdaLoRA run yet.",
        points,
        table.reset_index().drop(columns="record"),
        panels,
        notes=[PAPER_SAYS],
        commands=[] if runs else ["adalora-run task=mnli method=adalora budget=0.3M"],
    )


def points_of(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a matrix; ``decoder.3.cross_q`` is layer 3 and role cross_q of the decoder.

    Raises:
        InputError: a run has no ranks.
    """
    import pandas as pd

    rows = []
    for run in runs:
        if not data.has_ranks(run):
            raise InputError(f"{run.path}: method '{run.key['method']}' has no ranks of matrices such as encoder.0.q")
        for matrix, rank in (run.record.rank_pattern or {}).items():
            stack, layer, role = matrix.split(".")
            rows.append((data.label(run), matrix, stack, int(layer), role, rank, str(run.path)))
    return pd.DataFrame(rows, columns=["run", "matrix", "stack", "layer", "role", "rank", "record"])


def budget_text(run: Run) -> str:
    budget = run.record.budget or {}
    counts = ", ".join(f"{name} {budget[name]}" for name in ("n", "b_0", "b_T") if budget.get(name) is not None)
    return f"{data.label(run)}, {run.key['backbone']}{f' ({counts})' if counts else ''}"


def draw(axes: Axes, cells: pd.DataFrame, most: int) -> None:
    """W_f2 on top as in the paper."""
    roles = [role for role in MATRIX_ROLES if role in set(cells.role)]
    drawing.draw_ranks(axes, cells, cells.layer, cells.role.map(roles.index), most, size=7)
    layers = cells.layer.max() + 1
    axes.set(xlim=(-0.5, layers - 0.5), ylim=(-0.5, len(roles) - 0.5), aspect="equal", xlabel="layer")
    axes.set_xticks(range(layers))
    axes.set_yticks(range(len(roles)), [drawing.SYMBOLS.get(role, role) for role in roles])


REPORT = drawing.report_of("figure3", "Figure 3: final rank of every weight matrix", figure, of_runs=True)
