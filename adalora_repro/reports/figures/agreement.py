"""The ranks that AdaLoRA leaves with different seeds, side by side, and how much they agree."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.figures.figure3 import points_of
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.text import fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TITLE = "Final ranks of several seeds"


def figure(records: data.Records, scope: Scope) -> drawing.Figure:
    """One panel a cell with ranks of two or more seeds: a row a matrix, a column a seed.

    Agreement: Spearman's correlation of the ranks of two seeds, mean over all pairs; 1: the same order of matrices, 0:
    no agreement beyond chance.
    """
    runs = data.shown_runs(records, scope)
    runs = runs[runs.run.map(data.has_ranks).astype(bool)]
    cells = [cell for _, cell in drawing.groups(runs, ["task", "method", "budget"]) if len(cell) > 1]
    panels, lines, parts = [], [], [points_of([])]
    for cell in cells:
        first, points = cell.iloc[0], ranks_of(cell)
        points.index += sum(map(len, parts))  # numbers that tell the points of all panels apart
        parts.append(points)
        value = agreement(points)
        lines.append((first.task, first.label, first.budget, len(cell), value))
        size = (1.9 + 0.32 * len(cell), 1.0 + 0.17 * points.matrix.nunique())
        title = f"{first.task} {first.label}\nagreement {fixed(value)}"
        panels.append(drawing.Panel(title, partial(draw, cells=points, most=int(points["rank"].max())), size))
    import pandas as pd

    return drawing.Figure(
        "agreement",
        TITLE,
        f"{data.scope_text(scope)} Agreement: Spearman's correlation of the matrices' ranks, mean over pairs of seeds.",
        pd.concat(parts),
        pd.DataFrame(lines, columns=["task", "label", "budget", "n_seeds", "agreement"]),
        panels,
        commands=[] if cells else ["adalora-run -m task=cola method=adalora seed=0,1"],
        names=3,
    )


def ranks_of(cell: pd.DataFrame) -> pd.DataFrame:
    """``points_of`` its runs, with their seeds."""
    seeds = dict(zip(cell.record, cell.seed, strict=True))
    points = points_of(list(cell.sort_values("seed").run))
    return points.assign(seed=points.record.map(seeds))


def agreement(points: pd.DataFrame) -> float:
    """Mean over pairs of seeds of Spearman's correlation; NaN where all ranks of a seed are the same."""
    table = points.pivot_table(index="matrix", columns="seed", values="rank", sort=False)
    order = table.rank()
    values = [order[a].corr(order[b]) for a, b in combinations(table.columns, 2)]
    return float(sum(values) / len(values))


def draw(axes: Axes, cells: pd.DataFrame, most: int) -> None:
    """A square a matrix and seed with its rank in it."""
    from matplotlib.patches import Rectangle

    matrices, seeds = list(dict.fromkeys(cells.matrix)), sorted(set(cells.seed))
    for i, matrix, seed, rank in cells[["matrix", "seed", "rank"]].itertuples(name=None):
        x, y, shade = seeds.index(seed), -matrices.index(matrix), 0.03 + 0.62 * rank / max(most, 1)
        corner = (x - 0.5, y - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, color=drawing.SERIES[0], alpha=shade, linewidth=0, url=drawing.url(i)))
        axes.text(x, y, str(rank), ha="center", va="center", fontsize=6, color=drawing.INK)
    axes.set(xlim=(-0.5, len(seeds) - 0.5), ylim=(0.5 - len(matrices), 0.5), xlabel="seed")
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.set_yticks([-i for i in range(len(matrices))], [name.split(".", 1)[1] for name in matrices], fontsize=6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


REPORT = drawing.report_of("agreement", TITLE, figure)
