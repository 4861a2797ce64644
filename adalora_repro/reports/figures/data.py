"""Which runs the figures are about, and the cells that they draw. Needs no matplotlib.

``runs`` is ``frame_of`` all records at the last step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import clean
from adalora_repro.records.selection import RULE, Run
from adalora_repro.reports.notes import PARTIAL, optimism
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.text import cell_name, seeds_text

if TYPE_CHECKING:
    import pandas as pd

CELL = ["task", "method", "budget"]  # within a scope
#: columns of ``cells_of`` that a person reads after those that name the cell
SHOWN = ("score", "sd", "seeds", "lr", "lrs_tried", "degenerate")


def scope_text(scope: Scope) -> str:
    about = f"Backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}.{PARTIAL * scope.include_partial}"
    return " ".join([about, *scope.remarks])


def of_scope(runs: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    names = (runs.backbone == scope.backbone) & (runs.data == scope.data) & (runs.protocol == scope.protocol)
    return runs[names]


def shown_runs(runs: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """The runs that the tables show in this scope."""
    return of_scope(runs[runs.shown], scope)


def cells_of(runs: pd.DataFrame, *apart: str, **more: tuple[str, str]) -> pd.DataFrame:
    """One row a cell of ``shown_runs``: mean and sample standard deviation over seeds of the primary metric.

    Args:
        apart: columns whose values divide a cell into several rows.
        more: further columns, as pandas's ``agg`` takes them.
    """
    return (
        runs.sort_values("seed")
        .groupby([*CELL, *apart], sort=False)
        .agg(
            label=("label", "first"),
            metric=("metric", "first"),
            n=("seed", "size"),
            score=("score", "mean"),
            sd=("score", "std"),
            seeds=("seed", lambda seeds: seeds_text(seeds.tolist())),
            lr=("lr", "first"),
            lrs_tried=("lrs_tried", "first"),
            degenerate=("degenerate", "any"),
            params=("params.method", "mean"),
            share=("params.share", "mean"),
            record=("record", "first"),
            **more,
        )
        .reset_index()
    )


def cell_notes(runs: pd.DataFrame) -> list[str]:
    """The selection rule, and how many cells chose a learning rate by the scores that they report."""
    cells = runs.drop_duplicates(CELL)
    return [RULE, *optimism(zip(cells.lrs_tried, cells.chosen_on == "held-out", strict=True))]


def has_ranks(run: Run) -> bool:
    """Whether it has ranks by the names of ``models.sites``, ``encoder.0.q``: a method of one's own may have others."""
    pattern = run.record.rank_pattern or {}
    return bool(pattern) and all(re.fullmatch(r"\w+\.\d+\.\w+", name, re.ASCII) for name in pattern)


def newest_with_ranks(runs: pd.DataFrame, scope: Scope) -> list[Run]:
    """Runs with ranks that the tables show, the one that ended last first; AdaLoRA's own before the others."""
    ranked = [run for run in shown_runs(runs, scope).run if has_ranks(run)]
    ranked.sort(key=lambda run: (-run.record.progress.get("updated", 0.0), str(run.path)))
    return sorted(ranked, key=lambda run: run.key["method"] != PROPOSED)


def label(run: Run) -> str:
    """As short as tells a run from its neighbours in a figure."""
    gamma = run.record.settings.get("method.gamma")
    gamma_text = f" γ={gamma:g}" if isinstance(gamma, int | float) else ""
    degenerate = " (degenerate)" * run.record.degenerate
    return clean(f"{cell_name(run.key)}{gamma_text} seed {run.key['seed']}{degenerate}")


def run_name(path: Path, results: Path) -> str:
    """How the page calls a run: the folder of its record below ``runs``."""
    return path.parent.relative_to(results / "runs").as_posix()
