"""Which runs the figures are about, and the cells that they draw. Needs no matplotlib."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import clean
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import RULE, Run
from adalora_repro.reports.cells import in_scope
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.notes import optimism
from adalora_repro.reports.spec import DATA_SOURCES, PAPER_BACKBONE, Scope
from adalora_repro.reports.text import cell_name, seeds_text

if TYPE_CHECKING:
    import pandas as pd

Records = Sequence[tuple[Path, RunRecord]]
CELL = ["task", "method", "budget"]  # within a scope
#: columns of ``cells_of`` that a person reads after those that name the cell
SHOWN = ("score", "sd", "seeds", "lr", "lrs_tried", "degenerate")


def scopes_of(records: Records, results: Path, **wanted: str | None) -> list[Scope]:
    """Backbones, data sources and protocols with a finished run, the one with most first; ``wanted`` narrows them."""
    counts = Counter(
        tuple(record.key[name] for name in ("backbone", "data", "protocol"))
        for _, record in records
        if record.status == "ok" and all(value in (None, record.key[name]) for name, value in wanted.items())
    )
    fullest = sorted(counts, key=lambda names: (-counts[names], names))
    return [Scope(backbone, data, protocol, results=results) for backbone, data, protocol in fullest]


def scope_of(records: Records, args: argparse.Namespace, results: Path) -> Scope:
    """The fullest scope that the options let in; without one the paper's backbone, data and protocol."""
    scopes = scopes_of(records, results, backbone=args.backbone, data=args.data, protocol=args.protocol)
    empty = Scope(args.backbone or PAPER_BACKBONE, args.data or DATA_SOURCES[0], args.protocol, results=results)
    return scopes[0] if scopes else empty


def scope_text(scope: Scope) -> str:
    return f"Backbone {scope.backbone}, data {scope.data}, protocol {scope.protocol}."


def shown_runs(records: Records, scope: Scope) -> pd.DataFrame:
    """The frame of the runs that the tables show in this scope, at the last step."""
    frame = frame_of([(path, record) for path, record in records if in_scope(record, scope)])
    return frame[frame.shown & (frame.checkpoint == "final")]


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


def newest_with_ranks(records: Records, scope: Scope) -> list[Run]:
    """Runs with ranks that the tables show, the one that ended last first; AdaLoRA's own before the others."""
    runs = [run for run in shown_runs(records, scope).run if has_ranks(run)]
    runs.sort(key=lambda run: (-run.record.progress.get("updated", 0.0), str(run.path)))
    return sorted(runs, key=lambda run: run.key["method"] != PROPOSED)


def label(run: Run) -> str:
    """As short as tells a run from its neighbours in a figure."""
    gamma = run.record.settings.get("method.gamma")
    gamma_text = f" γ={gamma:g}" if isinstance(gamma, int | float) else ""
    degenerate = " (degenerate)" * run.record.degenerate
    return clean(f"{cell_name(run.key)}{gamma_text} seed {run.key['seed']}{degenerate}")


def run_name(path: Path, results: Path) -> str:
    """How the page calls a run: the folder of its record below ``runs``."""
    return path.parent.relative_to(results / "runs").as_posix()
