"""The ranks that AdaLoRA leaves with different seeds, side by side, and how much they agree."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.figures.figure3 import points_of
from adalora_repro.reports.figures.rates import title
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.text import fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """One panel a cell with ranks of two or more seeds: a row a matrix, a column a seed.

    Agreement: Spearman's correlation of the ranks of two seeds, mean over all pairs; 1: the same order of matrices, 0:
    no agreement beyond chance.
    """
    import pandas as pd

    runs = data.shown_runs(runs, scope)
    runs = runs[runs.run.map(data.has_ranks).astype(bool)]
    runs = runs[runs.groupby(data.CELL).seed.transform("size") > 1].sort_values([*data.CELL, "seed"])
    points = points_of(list(runs.run)).merge(runs[[*data.CELL, "label", "seed", "record"]], on="record")
    panels, lines = [], []
    for (task, method, budget, label), part in drawing.groups(points, [*data.CELL, "label"]):
        seeds, value = part.seed.nunique(), agreement(part)
        lines.append((task, label, budget, seeds, value))
        size = (1.9 + 0.32 * seeds, 1.0 + 0.17 * part.matrix.nunique())
        name = f"{title(task, method, budget, label)}\nagreement {fixed(value)}"
        panels.append(drawing.Panel(name, partial(draw, cells=part, most=int(part["rank"].max())), size))
    return drawing.Figure(
        f"{data.scope_text(scope)} Agreement: Spearman's correlation of the matrices' ranks, mean over pairs of seeds.",
        points.drop(columns=[*data.CELL, "label"]),
        pd.DataFrame(lines, columns=["task", "label", "budget", "n_seeds", "agreement"]),
        panels,
        commands=[] if panels else ["adalora-run -m task=cola method=adalora seed=0,1"],
    )


def agreement(points: pd.DataFrame) -> float:
    """Mean over pairs of seeds of Spearman's correlation; NaN where all ranks of a seed are the same."""
    table = points.pivot_table(index="matrix", columns="seed", values="rank", sort=False)
    order = table.rank()
    values = [order[a].corr(order[b]) for a, b in combinations(table.columns, 2)]
    return float(sum(values) / len(values))


def draw(axes: Axes, cells: pd.DataFrame, most: int) -> None:
    matrices, seeds = list(dict.fromkeys(cells.matrix)), sorted(set(cells.seed))
    drawing.draw_ranks(axes, cells, cells.seed.map(seeds.index), -cells.matrix.map(matrices.index), most, size=6)
    axes.set(xlim=(-0.5, len(seeds) - 0.5), ylim=(0.5 - len(matrices), 0.5), xlabel="seed")
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    stacks = {name.partition(".")[0] for name in matrices}
    names = matrices if len(stacks) > 1 else [name.partition(".")[2] for name in matrices]
    axes.set_yticks([-i for i in range(len(matrices))], names, fontsize=6)


REPORT = drawing.report_of("agreement", "Final ranks of several seeds", figure)
