"""Records -> pandas: one row a run and checkpoint. Every table is a groupby or a pivot of this frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.errors import InputError
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RunRecord, read_all
from adalora_repro.records.selection import device_kind, metrics_of, percent, run_of, select
from adalora_repro.reports.spec import CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd

KEY = ("backbone", "task", "method", "budget", "protocol", "data", "lr", "seed", "total_steps", "max_examples")
CELL = ["backbone", "data", "protocol", "task", "method", "budget", "checkpoint"]  # what one selection is of
PARAMS = ("method", "head", "total", "at_init", "backbone")
TIMES = ("train_s", "eval_s", "s_per_step", "s_per_epoch", "tokens_per_s")
#: the columns that every frame has, in this order; ``metrics.*`` and ``holdout.*`` follow
COLUMNS = (
    *KEY,
    *("variant", "hash", "label", "role", "checkpoint", "step", "status", "error", "degenerate", "unusable"),
    *("metric", "score", "held_out", "shown", "lrs_tried", "chosen_on"),
    *(f"params.{name}" for name in PARAMS),
    *("params.share", "rank_entropy"),
    *(f"time.{name}" for name in TIMES),
    *("memory.peak", "kind", "device", "threads", "commit", "dirty", "updated", "record"),
)


def frame(results: str | Path = "results") -> pd.DataFrame:
    """All runs below a folder of results, as data to analyse.

    One row is a run at one checkpoint: ``final`` (the last step) or ``best`` (the best evaluation at the final budget).
    A run that is not finished has one row, with ``status`` and without figures. Every metric is in percent.

    ====================================== ============================================================================
    backbone, task, method, budget,        what identifies the run (``docs/records.md``); ``variant`` is the hash of
    protocol, data, lr, seed, total_steps, all settings but learning rate and seed; ``label`` the method's name in
    max_examples, variant, hash, label,    tables, ``role`` what it is in a comparison (paper, ablation, control,
    role                                   cross-check or other)
    checkpoint, step                       ``final`` or ``best``, and its step
    status, error, degenerate, unusable    ``running``, ``ok``, ``failed`` or ``cancelled``; whether all predictions of
                                           the final evaluation are the same; why the record does not count, or ""
    metric, score, held_out                the task's primary metric, its value on the reported split, and on the
                                           held-out split (NaN without one)
    shown, lrs_tried, chosen_on            by the rule of ``records/selection.py``: whether the tables show the run, how
                                           many learning rates its setting tried, and the split that chose among them
                                           (``held-out`` or ``reported``)
    metrics.NAME, holdout.NAME             every metric on the reported and on the held-out split
    params.method, .head, .total,          trained parameters of the method after pruning, of the task head, their sum;
    .at_init, .backbone, .share            of the method before pruning; of the frozen model; method over backbone (%)
    rank_entropy                           of AdaLoRA's final ranks r_i: -Σ p_i log p_i / log n with p_i = r_i / Σ r, 1
                                           for equal ranks and 0 for all of them in one matrix
    time.NAME                              seconds, or tokens per second
    memory.peak                            bytes
    kind, device, threads, commit, dirty   CPU or GPU and where and with which source the run was made
    updated, record                        Unix time of the last progress; the file of the record
    ====================================== ============================================================================

    ``frame.attrs["refused"]`` lists the files that are no valid records, each with the reason.

    Raises:
        InputError: no such folder, or one of other things; a misspelt one must not look like a folder without runs.

    Example (in a notebook, beside ``results/``)::

        import adalora_repro

        runs = adalora_repro.frame()
        shown = runs[runs.shown & (runs.checkpoint == "final")]
        shown.groupby(["task", "method", "budget"]).score.agg(["mean", "std", "count"]).round(2)
        shown.pivot_table(index=["label", "budget"], columns="task", values="score").plot.bar()
    """
    if not Path(results).is_dir():
        raise InputError(f"no folder '{results}': name the results.dir of the runs")
    if any(Path(results).iterdir()) and not Path(results, "runs").is_dir():
        raise InputError(f"'{results}' holds no runs/: name the results.dir of the runs")
    records, refused = read_all(Path(results))
    table = frame_of(records).drop(columns=["run", "selection"])
    table.attrs["refused"] = refused
    return table


def frame_of(
    records: Iterable[tuple[Path, RunRecord]], partial: bool = False, checkpoints: Sequence[str] = CHECKPOINTS
) -> pd.DataFrame:
    """The frame of these records, with two more columns: ``run``, the ``selection.Run`` that the row is of, and
    ``selection``, what the rule chose in its cell.

    Args:
        partial: runs that were evaluated on a part of the examples count too.
        checkpoints: those that have rows.
    """
    import pandas as pd

    rows = [
        row_of(path, record, checkpoint)
        for path, record in records
        for checkpoint in checkpoints
        if (metrics_of(record, checkpoint) if record.status == "ok" else checkpoint == "final")
    ]
    more = sorted({name for row in rows for name in row} - {*COLUMNS, "run"})
    table = pd.DataFrame(rows, columns=[*COLUMNS, *more, "run"]).assign(shown=False, chosen_on="", selection=None)
    countable = table[(table.status == "ok") & (table.unusable == "") & (table.max_examples.isna() | partial)]
    for _, cell in countable.groupby(CELL):
        chosen = select(cell.run)
        tried = cell.index[[run in chosen.by_lr.get(run.key["lr"], ()) for run in cell.run]]
        table.loc[tried, "lrs_tried"] = len(chosen.by_lr)
        table.loc[tried, "chosen_on"] = "held-out" if chosen.held_out else "reported"
        table.loc[tried, "selection"] = chosen
        table.loc[cell.index[[run in chosen.runs for run in cell.run]], "shown"] = True
    return table


def unusable(record: RunRecord, checkpoint: str, needed: Iterable[str] = ()) -> str | None:
    """Why a finished record does not count; None if it does.

    It was made with an earlier definition of its method, or its primary metric or one of ``needed`` is missing or in
    another unit: among fractions of 1, 87.3 is a percentage gone astray.
    """
    if reason := outdated(record):
        return reason
    low, high, unit = (-1.0, 1.0, "a fraction of 1") if percent(record) == 100 else (0.0, 100.0, "a percentage")
    names = {record.primary_metric, *needed}
    metrics, held_out = metrics_of(record, checkpoint), metrics_of(record, checkpoint, "holdout")
    for where, values, wanted in (("", metrics, names), ("held-out split: ", held_out, names & held_out.keys())):
        for name in sorted(wanted):
            if name not in values:
                return f"no metric '{name}'"
            if not low <= values[name] <= high:
                return f"{where}{name} is {values[name]!r}, not {unit}"
    return None


def row_of(path: Path, record: RunRecord, checkpoint: str) -> dict[str, Any]:
    run, entry = run_of(path, record, checkpoint), catalog.method(record.key["method"])
    environment = record.environment
    git = environment.get("git", {})
    method, backbone = (record.params.get(name) for name in ("method", "backbone"))
    return {
        **{name: record.key[name] for name in (*KEY, "variant", "hash")},
        "label": entry.label,
        "role": entry.role,
        "checkpoint": checkpoint,
        "step": ((record.final if checkpoint == "final" else record.best) or {}).get("step"),
        "status": record.status,
        "error": record.error or "",
        "degenerate": record.degenerate,
        "unusable": unusable(record, checkpoint) or "" if record.status == "ok" else "",
        "metric": record.primary_metric,
        "score": run.scores.get(record.primary_metric),
        "held_out": run.held_out.get(record.primary_metric),
        **{f"metrics.{name}": value for name, value in run.scores.items()},
        **{f"holdout.{name}": value for name, value in run.held_out.items()},
        **{f"params.{name}": record.params.get(name) for name in PARAMS},
        "params.share": 100 * method / backbone if method is not None and backbone else None,
        "rank_entropy": rank_entropy(record.rank_pattern or {}),
        **{f"time.{name}": record.time.get(name) for name in TIMES},
        "memory.peak": record.memory.get("peak"),
        "kind": device_kind(record),
        "device": environment.get("device", ""),
        "threads": environment.get("threads"),
        "commit": git.get("commit") or "",
        "dirty": git.get("dirty"),
        "updated": record.progress.get("updated"),
        "record": str(path),
        "run": run,
    }


def refusals(runs: pd.DataFrame) -> list[str]:
    """A line for each record of a frame that does not count, with the reason."""
    return [f"{run.record}: {run.unusable}" for run in runs[runs.unusable != ""].itertuples()]


def of_one_seed(runs: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Of each cell, named by the columns ``cell``, the runs of the seed that tried most learning rates, the smallest of
    such seeds: what compares rates on equal terms."""
    rates = runs.groupby([*cell, "seed"]).lr.transform("nunique")
    runs = runs[rates == rates.groupby([runs[name] for name in cell]).transform("max")]
    return runs[runs.seed == runs.groupby(cell).seed.transform("min")]


def rank_entropy(ranks: Mapping[str, int]) -> float | None:
    """See ``frame``; None where it has no value: without ranks, or for one matrix."""
    total = sum(ranks.values())
    if not total or len(ranks) < 2:
        return None
    shares = [rank / total for rank in ranks.values() if rank]
    return -sum(share * math.log(share) for share in shares) / math.log(len(ranks)) + 0.0
