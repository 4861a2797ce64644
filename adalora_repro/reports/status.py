"""What has been run: how many of the paper's cells are filled, and of each table what is done, running or missing.

Records are read while runs write them; each is whole (written atomically) and at worst a few seconds old.
"""

from __future__ import annotations

import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adalora_repro.config.words import lr_text
from adalora_repro.errors import clean, duration, first_line
from adalora_repro.records import lock, slurm
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports.cells import Table, compile_scoped, in_scope, rows_wanted
from adalora_repro.reports.choose import choices
from adalora_repro.reports.frame import unusable
from adalora_repro.reports.notes import commands_of, optimism_of
from adalora_repro.reports.spec import Record, Report, Request, Spec, add_partial, in_the_papers_setting, paper_rows
from adalora_repro.reports.text import aligned, cell_name, plural, wrapped

STALE_S = 600.0  # a run reports its progress far more often: after this silence it is taken for dead
SYMBOLS = {"running": "r", "queued": "q", "interrupted": "i", "failed": "f", "cancelled": "c"}
WORDS = {"ok": "finished"} | {status: status for status in SYMBOLS}
HEADINGS = {
    "running": "Running:",
    "queued": "Queued (submitted to a cluster, not begun):",
    "interrupted": "Interrupted (the process is gone or silent; the same command resumes):",
    "failed": "Failed:",
    "cancelled": "Cancelled (the same command resumes):",
}
LEGEND = (
    "3: seeds done, as the table shows them; r1: one run is running; likewise q queued, i interrupted, f failed, "
    "c cancelled; . missing"
)
BRIEF = "adalora-report {} --notes lists the commands"  # instead of the empty grid of a table without a run


def as_seen(
    path: Path, record: RunRecord, now: float, host: str, alive: Callable[[Path], bool | None] = lock.alive
) -> RunRecord:
    """The record, with the status ``interrupted`` if it says running and its process is gone.

    On this host it is gone when nobody has the lock of the run's folder; on another, or with a lock that does not tell
    (of an earlier boot), when it is silent for STALE_S.
    """
    if record.status != "running":
        return record
    held = alive(path.parent) if record.progress.get("host") == host else None
    gone = now - updated(record) > STALE_S if held is None else not held
    return replace(record, status="interrupted") if gone else record


def updated(record: RunRecord) -> float:
    """Unix time of the last progress."""
    return float(record.progress.get("updated", 0.0))


def seconds_left(record: RunRecord, now: float) -> float | None:
    """Time to the last step, by the run's own seconds per step; None before it has one."""
    progress, per_step = record.progress, record.time.get("s_per_step")
    if not progress.get("step") or "total_steps" not in progress or per_step is None:
        return None
    left = (progress["total_steps"] - progress["step"]) * per_step
    return max(0.0, left - max(0.0, now - updated(record)))  # a clock may have been set back


# --- the paper as a whole ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperState:
    """How much of the paper is reproduced: ``filled`` of its ``cells``; ``runs`` are finished, ``counted`` of them so.

    A cell is a row of one of the paper's tables in one column. It is filled in the paper's setting by a finished run
    with the table's backbone on all of the data for its epochs (``in_the_papers_setting``).
    """

    filled: int
    cells: int
    runs: int
    counted: int

    def __str__(self) -> str:
        others = self.runs - self.counted
        rest = f"; {plural(others, 'finished run')} in other settings" if others else ""
        return (
            f"{self.filled} of the paper's {self.cells} cells {'is' if self.filled == 1 else 'are'} filled in the "
            f"paper's setting (its backbone, data and epochs; one seed or more){rest}"
        )


def paper_state(specs: Iterable[Spec], records: Iterable[Record]) -> PaperState:
    finished = [record for _, record in records if record.status == "ok"]
    whole = [record for record in finished if in_the_papers_setting(record) and not unusable(record, "final")]
    cells, filled, counted = 0, set(), set()
    for spec in (spec for spec in specs if spec.printed):
        rows = {(row["method"], row["budget"]) for row in paper_rows(spec.paper_file)}
        cells += len(rows) * len(spec.columns)
        for record in whole:
            key = record.key
            if key["backbone"] == spec.backbone and (key["method"], key["budget"]) in rows:
                places = [i for i, column in enumerate(spec.columns) if column.task == key["task"]]
                filled |= {(spec.name, key["method"], key["budget"], i) for i in places}
                counted |= {id(record)} if places else set()
    return PaperState(len(filled), cells, len(finished), len(counted))


# --- one table --------------------------------------------------------------------------------------------------------


def render_status(tables: Sequence[Table], records: Sequence[Record], now: float, host: str) -> str:
    """The state of the paper, then of every table, with the runs that are under way or need a hand."""
    runs = [(path, as_seen(path, record, now, host)) for path, record in records]
    parts = ["\n".join(wrapped(f"{paper_state([table.spec for table in tables], records)}."))]
    parts += [table_status(table, runs, now) for table in tables]
    wanted = [rows_wanted(table.spec) for table in tables]
    if rest := [run for run in runs if not any(of_table(run[1].key) for of_table in wanted)]:
        counts = f"In no table: {plural(len(rest), 'run')}: {statuses_text(record.status for _, record in rest)}"
        parts.append("\n".join([f"{counts}; adalora-report runs shows the finished", *attention(rest, now)]))
    return "\n\n".join(parts) + "\n"


def table_status(table: Table, runs: Sequence[Record], now: float) -> str:
    spec, scope, wanted = table.spec, table.scope, rows_wanted(table.spec)
    runs = [(path, record) for path, record in runs if wanted(record.key) and in_scope(record, scope)]
    head = [line for text in table.head for line in wrapped(text)]
    cells = [cell for row in table.rows if row.in_paper for cell in row.cells]
    whose = "paper's" if spec.printed else "table's"
    counts = f"{sum(map(bool, cells))} of the {whose} {plural(len(cells), 'cell')} done; {plural(len(runs), 'run')}"
    if not runs:
        return "\n".join([*head, f"{counts}; {BRIEF.format(spec.name)}"])
    counts += f": {statuses_text(record.status for _, record in runs)}"
    lines = [*head, "", *aligned(grid(table, [record for _, record in runs])), "", *wrapped(LEGEND), "", counts]
    lines += attention(runs, now)
    lines += notices([record for _, record in runs], table)
    gaps = commands_of(table)
    lines += ["", "Commands for cells without a finished run:", *(f"  {clean(line)}" for line in gaps)] if gaps else []
    return "\n".join(lines)


def grid(table: Table, records: Sequence[RunRecord]) -> list[list[str]]:
    """A line for each row of the table and for each method and budget that has no finished run yet."""
    others: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.status in SYMBOLS:
            key = record.key
            others[key["method"], key["budget"], key["task"]][record.status] += 1
    shown = {(row.method, row.budget): (row.name, row.cells) for row in table.rows}
    for method, budget, _ in others:
        shown.setdefault((method, budget), (f"{method} {budget}", (None,) * len(table.spec.columns)))
    rows = [["", *(column.heading for column in table.spec.columns)]]
    for row, (name, cells) in shown.items():
        symbols = [
            cell_symbols(len(cell.seeds) if cell else 0, others[*row, column.task])
            for column, cell in zip(table.spec.columns, cells, strict=True)
        ]
        rows.append([clean(name), *symbols])
    return rows


def cell_symbols(seeds: int, others: Counter[str]) -> str:
    """ "3 r1" for three seeds done and one run under way."""
    words = [str(seeds)] if seeds else []
    words += [f"{symbol}{others[status]}" for status, symbol in SYMBOLS.items() if others[status]]
    return " ".join(words) or "."


def statuses_text(statuses: Iterable[str]) -> str:
    """ "3 finished, 1 running"."""
    counts = Counter(statuses)
    return ", ".join(f"{counts[status]:,} {word}" for status, word in WORDS.items() if counts[status])


def attention(runs: Sequence[Record], now: float) -> list[str]:
    """One line for each run that is not finished: running first, then those that the same command takes up again."""
    lines = []
    for status in SYMBOLS:
        chosen = sorted((run for run in runs if run[1].status == status), key=lambda run: str(run[0]))
        lines += ["", HEADINGS[status]] if chosen else []
        for run in chosen:
            lines += wrapped(f"  {describe(*run, now)}", "    ")
    return lines


def notices(records: Sequence[RunRecord], table: Table) -> list[str]:
    """What is wrong with finished runs: those in no cell, degenerate ones, optimistic choices of a learning rate."""
    lines = [
        f"Not in a cell: {plural(count, 'run')} {why}" for why, count in table.left_out.items() if why not in SYMBOLS
    ]
    constant: dict[str, list[str]] = defaultdict(list)
    for key in (record.key for record in records if record.status == "ok" and record.degenerate):
        constant[cell_name(key)].append(f"lr {lr_text(key['lr'])} seed {key['seed']}")
    lines += ["Degenerate (the same prediction for every example of the final evaluation):"] if constant else []
    lines += [line for cell, runs in constant.items() for line in wrapped(f"  {cell}: {', '.join(runs)}", "    ")]
    lines += [line for sentence in optimism_of(table) for line in wrapped(sentence)]
    edge = [cell for cell in choices(table) if cell.edge]
    lines += ["", "Chosen at the edge of the grid (try more learning rates):"] if edge else []
    lines += [f"  {clean(cell_name(cell.key))}: lr {lr_text(cell.lr)}; {cell.tried}" for cell in edge]
    return ["", *lines] if lines else []


def describe(path: Path, record: RunRecord, now: float) -> str:
    key, progress = record.key, record.progress
    words = [f"step {progress['step']:,}/{progress['total_steps']:,}"] if {"step", "total_steps"} <= {*progress} else []
    if record.status == "running" and (left := seconds_left(record, now)) is not None:
        words.append(f"about {duration(left)} left")
    if record.status == "interrupted":
        words.append(f"silent for {duration(max(0.0, now - updated(record)))}")
    if record.error:
        words.append(first_line(record.error))
    if record.status == "failed":
        words.append(f"see {path.parent}")
    name = f"{cell_name(key)} lr {lr_text(key['lr'])} seed {key['seed']}"
    return clean(f"{name}: {', '.join(words)}" if words else name)


def make(request: Request) -> str:
    waiting, refused = slurm.queued(request.results, [path for path, _ in request.records])
    request.refused.extend(refused)
    tables = [compile_scoped(request, spec, waiting) for spec in request.specs.values()]
    return render_status(tables, [*request.records, *waiting], time.time(), socket.gethostname())


REPORT = Report("status", "What is done, running, failed, missing", add_partial, make, writes=False)
