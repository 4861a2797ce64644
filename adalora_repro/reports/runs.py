"""Any runs as a table, also of tasks that are in no table of the paper: grouped by keys or settings of one's choice."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adalora_repro.errors import InputError, one_of
from adalora_repro.records.selection import Run
from adalora_repro.reports.cells import differing
from adalora_repro.reports.frame import COLUMNS, frame_of, refusals
from adalora_repro.reports.notes import CONSTANT, DEGENERATE
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import FORMATS, Sheet, render_sheet, texts_sheet, to_csv
from adalora_repro.reports.spec import CHECKPOINTS, Report, Request
from adalora_repro.reports.text import fixed, number

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Runs"
MIXED = "†"  # on a mean over runs of different settings
MOST_NAMES = 5  # of these settings, in a terminal
OWN = ("metric", "score", "held_out", "degenerate")  # columns of the table itself
BY = "backbone,data,task,method,protocol,budget,lr"
NOTE = (
    "Mean over the finished runs of a line ± sample standard deviation (number of runs), in percent: the primary "
    "metric of the task at the checkpoint on the reported split, and its mean on the held-out split if all of them "
    "have one. Runs of one line may differ in whatever --by does not name."
)


def runs_table(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row a group of finished runs: the values of ``by``, metric, mean, sd, n, the held-out mean, degenerate runs,
    and the settings in which its runs differ, the seed apart.

    Raises:
        InputError: a name that is neither a column of ``frame`` nor a setting of a run.
    """
    runs = runs[(runs.status == "ok") & (runs.unusable == "")].reset_index(drop=True)
    valid = {*COLUMNS, *(name for run in runs.run for name in run.record.settings)} - {*OWN}
    for name in by:
        if name not in valid:
            raise one_of("name in --by", name, sorted(valid))
    for name in by:
        if name not in COLUMNS:
            runs[name] = [run.record.settings.get(name) for run in runs.run]
        runs[name] = [value if isinstance(value, str | int | float) else str(value) for value in runs[name]]
    groups = runs.groupby([*by, "metric"], dropna=False, sort=True)
    table = groups.agg(
        mean=("score", "mean"),
        sd=("score", "std"),
        n=("score", "size"),
        held_out=("held_out", lambda scores: scores.astype(float).mean(skipna=False)),
        degenerate=("degenerate", "sum"),
        differ=("run", mixed),
    )
    return table.reset_index()


def mixed(runs: Iterable[Run]) -> str:
    """Names of what a mean over these runs mixes."""
    rates = {run.key["lr"] for run in runs}
    return " ".join([*differing(runs), *["lr"] * (len(rates) > 1)])


def sheet_of(table: pd.DataFrame, by: list[str], checkpoint: str) -> Sheet:
    import pandas as pd

    lines = []
    for row in table.to_dict("records"):
        names = [value_text(row[name]) for name in by]
        spread = "" if number(row["sd"]) is None else f" ± {fixed(row['sd'])}"
        marks = CONSTANT * bool(row["degenerate"]) + MIXED * bool(row["differ"])
        score = f"{fixed(row['mean'])}{spread} ({row['n']}){marks}"
        lines.append([*names, score, fixed(row["held_out"]), row["metric"]])
    frame = pd.DataFrame(lines, columns=[*by, "score", "held out", "metric"])
    caption = f"{TITLE} by {', '.join(by)}; checkpoint {checkpoint}; {table.n.sum()} finished runs."
    warnings = [f"{CONSTANT} {DEGENERATE}."] if table.degenerate.any() else []
    if names := sorted({name for of_line in table.differ for name in of_line.split()}):
        named = f"{', '.join(names[:MOST_NAMES])}{', …' * (len(names) > MOST_NAMES)}"
        warnings.append(f"{MIXED} The runs of the line differ in settings: {named}. --by NAME,… tells them apart.")
    return Sheet("runs", TITLE, caption, frame, notes=[*warnings, NOTE], warnings=warnings, names=len(by))


def value_text(value: str | int | float) -> str:
    """A value of ``--by``; counts with separators."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str | bool) else f"{value:,}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", default=BY, metavar="NAME,…", help="keys or settings, train.epochs say (%(default)s)")
    parser.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")
    add_format(parser, FORMATS)
    parser.add_argument("--notes", action="store_true", help="print the note in text output too")


def make(request: Request) -> str:
    args = request.args
    form = form_of(args.format, args.out, FORMATS)
    by = list(dict.fromkeys(name.strip() for name in args.by.split(",") if name.strip()))
    if not by:
        raise InputError("--by: name at least one key or setting")
    runs = frame_of(request.records, checkpoints=[args.select])
    table = runs_table(runs, by)
    request.refused.extend(refusals(runs))
    if form == "csv":
        return to_csv(table)
    return render_sheet(texts_sheet(sheet_of(table, by, args.select), form), form, args.notes)


REPORT = Report("runs", "Any runs, grouped by keys or settings", add_arguments, make, reads="results")
