"""Which runs the figures are about, and the cells that they draw. Needs no matplotlib."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import InputError, clean
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import RULE, Run
from adalora_repro.reports.cells import in_scope
from adalora_repro.reports.compare import read_run
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.notes import optimism
from adalora_repro.reports.spec import DATA_SOURCES, Scope
from adalora_repro.reports.status import real
from adalora_repro.reports.text import cell_name, fixed, lr_of_tried, seeds_text

if TYPE_CHECKING:
    import pandas as pd

Records = Sequence[tuple[Path, RunRecord]]


def scopes_of(records: Records, results: Path, **wanted: str | None) -> list[Scope]:
    """Backbones, data sources and protocols with a finished run, the one with most first; ``wanted`` narrows them."""
    counts = Counter(
        tuple(record.key[name] for name in ("backbone", "data", "protocol"))
        for _, record in records
        if record.status == "ok" and all(value in (None, record.key[name]) for name, value in wanted.items())
    )
    fullest = sorted(counts, key=lambda names: (-counts[names], names))
    return [Scope(backbone, data, protocol, results=results) for backbone, data, protocol in fullest]


def scope_of(records: Records, args: argparse.Namespace, backbone: str = "deberta-v3-base") -> Scope:
    """The fullest scope that the options let in; without one the paper's ``backbone``, data and protocol."""
    wanted = {"backbone": args.backbone, "data": args.data, "protocol": args.protocol}
    empty = Scope(args.backbone or backbone, args.data or DATA_SOURCES[0], args.protocol, results=args.folder)
    return next(iter(scopes_of(records, args.folder, **wanted)), empty)


def shown_runs(records: Records, scope: Scope) -> pd.DataFrame:
    """The frame of the runs that the tables show in this scope, at the last step."""
    frame = frame_of([(path, record) for path, record in records if in_scope(record, scope)])
    return frame[frame.shown & (frame.checkpoint == "final")]


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of ``shown_runs``: mean and sample standard deviation over seeds of the primary metric."""
    return (
        runs.sort_values("seed")
        .groupby(["task", "method", "budget"], sort=False)
        .agg(
            label=("label", "first"),
            metric=("metric", "first"),
            score=("score", "mean"),
            sd=("score", "std"),
            seeds=("seed", lambda seeds: seeds_text(seeds.tolist())),
            lr=("lr", "first"),
            lrs_tried=("lrs_tried", "first"),
            degenerate=("degenerate", "any"),
            params=("params.method", "mean"),
            share=("params.share", "mean"),
            record=("record", "first"),
        )
        .reset_index()
    )


def cell_notes(runs: pd.DataFrame) -> list[str]:
    """The rule of a cell, and how many cells chose a learning rate by the scores that they report."""
    cells = runs.drop_duplicates(["task", "method", "budget"])
    return [RULE, *optimism(zip(cells.lrs_tried, cells.chosen_on == "held-out", strict=True))]


def table_of(points: pd.DataFrame, **before: Callable[[Any], str]) -> pd.DataFrame:
    """``cells_of`` as a person reads it, after the columns ``before``, each of which is made of a cell."""
    import pandas as pd

    return pd.DataFrame(
        {
            **{name: text(cell) for name, text in before.items()},
            "score": fixed(cell.score) + flag(cell.degenerate),
            "± sd": fixed(cell.sd),
            "seeds": cell.seeds,
            "lr": lr_of_tried(cell.lr, int(cell.lrs_tried)),
        }
        for cell in points.itertuples()
    )


def flag(degenerate: bool) -> str:
    """Beside a score of a run whose predictions are all the same."""
    return " (degenerate)" if degenerate else ""


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs or their metrics.json; default: the newest AdaLoRA run"
    )


def named_runs(records: Records, args: argparse.Namespace) -> list[Run]:
    """The runs of the command line, or the newest finished AdaLoRA run that ``--backbone`` etc. let in.

    Raises:
        InputError: what is named is no finished run.
    """
    if args.runs:
        return [read_run(name, "final") for name in args.runs]
    wanted = {"protocol": args.protocol, "backbone": args.backbone, "data": args.data}
    ours = [
        (path, record)
        for path, record in records
        if all(value in (None, record.key[name]) for name, value in wanted.items())
    ]
    return [run for run in newest(ours) if run.key["method"] == PROPOSED][:1]


def newest(records: Records) -> list[Run]:
    """Finished runs with ranks, the one that ended last first."""
    runs = [Run(path, record) for path, record in records if record.status == "ok" and record.rank_pattern]
    return sorted(runs, key=lambda run: (-(real(run.record.progress.get("updated")) or 0.0), str(run.path)))


def newest_shown(records: Records, scope: Scope, points_of: Callable[[Sequence[Run]], pd.DataFrame]) -> list[Run]:
    """Runs with ranks that the tables show and that have points to draw, the one that ended last first.

    What a foreign record lacks does not keep the others from the page.
    """

    def drawable(run: Run) -> bool:
        try:
            return len(points_of([run])) > 0
        except InputError:
            return False

    return list(filter(drawable, newest([(run.path, run.record) for run in shown_runs(records, scope).run])))


def label(run: Run) -> str:
    """As short as tells a run from its neighbours in a figure."""
    key = run.key
    gamma = run.record.settings.get("method.gamma")
    gamma_text = f" γ={gamma:g}" if isinstance(gamma, int | float) else ""
    return clean(f"{cell_name(key)}{gamma_text} seed {key['seed']}{flag(run.record.degenerate)}")


def matrices(run: Run) -> list[str]:
    """Adapted matrices in the order of the rank pattern.

    Raises:
        InputError: the run has none.
    """
    if not run.record.rank_pattern:
        raise InputError(f"{run.path}: no rank_pattern: method '{run.key['method']}' has no ranks")
    return list(run.record.rank_pattern)
