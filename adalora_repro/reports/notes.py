"""What a reader must know not to misread a table: caption, notes, and the commands that fill its empty cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adalora_repro.config.words import lr_text
from adalora_repro.records.run_record import RunRecord, stated
from adalora_repro.records.selection import HOLDOUT, RULE, device_kind
from adalora_repro.reports.cells import Table
from adalora_repro.reports.significance import FULL_MARK, MARK
from adalora_repro.reports.spec import Scope, commands, on_the_papers_data
from adalora_repro.reports.text import plural, seed_phrase, short

UNEQUAL = "‡"  # on bold or significant figures: the two sides tried different numbers of learning rates
CONSTANT = "!"  # on the figures of a degenerate run, or of several runs with one among them
DEGENERATE = "A run gave every example the same prediction"
PARTIAL = " Evaluations on a part of the examples are included."
CAVEATS = {
    "local": " Scores of runs on a part of the data, or cut short, are not comparable with the paper's.",
    "sample": " Sample data are generated English, NOT the paper's data.",
}
#: settings that change the training, its precision or the evaluation, and in which methods have no reason to differ
ALIKE: tuple[str, ...] = ("total_steps", HOLDOUT, "eval.max_examples")
ALIKE += ("train.precision", "train.attention", "train.batch_size", "train.group_by_length")


def caption_of(table: Table) -> str:
    """What the numbers are: backbone, data, protocol, checkpoint, records, seeds; each run counts once."""
    scope, runs = table.scope, table.runs
    checkpoint = "the last step" if scope.select == "final" else "the best evaluation at the final budget"
    seeds = seed_phrase(run.key["seed"] for run in runs)
    used = f"{plural(len(runs), 'record')}, {seeds}" if runs else "no record yet: the paper's numbers alone"
    warning = caveat(scope, (run.record for run in runs)) + PARTIAL * scope.include_partial
    return f"{table.head[0]}; checkpoint {scope.select} ({checkpoint}); {used}.{warning}"


def caveat(scope: Scope, records: Iterable[RunRecord]) -> str:
    """A sentence of ``CAVEATS`` if one of the runs is not on all of the paper's data."""
    return "" if all(map(on_the_papers_data, records)) else CAVEATS.get(scope.data, "")


def warnings_of(table: Table) -> list[str]:
    """The notes that every form of the table shows, in a terminal too: without them it is read wrongly."""
    notes = list(table.scope.remarks)
    if table.runs and not table.comparable:
        spec, scope = table.spec, table.scope
        same = "on all of the data" if scope.backbone == spec.backbone else f"of {spec.backbone}"
        notes.append(f"The paper's numbers are {same}, ours of {scope.backbone} on {scope.data} data: not shown here.")
    constant = [f"{row.name} {column.heading}" for row, column, cell in table.filled() if cell.degenerate]
    if constant:
        notes.append(f"{CONSTANT} {DEGENERATE}: {', '.join(constant)}.")
    marks = "".join(map(marks_of, table.figures.itertuples()))
    for mark, other in ((MARK, "the best baseline of its budget"), (FULL_MARK, "full fine-tuning")):
        notes += [f"{mark} Differs significantly from {other}; the means say which is better."] if mark in marks else []
    if UNEQUAL in marks:
        notes.append(
            f"{UNEQUAL} Unequal tuning: the rows compared tried different numbers of learning rates (in --notes), and "
            "the best of more is higher by chance alone."
        )
    for i, column in enumerate(table.spec.columns):
        different = unlike(records_of(table, i))
        notes += [f"{column.heading}: rows differ in {name}: {values}." for name, values in different.items()]
    notes += [f"Not in the table: {plural(count, 'record')} {why}." for why, count in sorted(table.left_out.items())]
    if table.refused:
        notes.append(f"Refused and not counted: {plural(len(table.refused), 'record')}, named on stderr.")
    return notes


def notes_of(table: Table) -> list[str]:
    """All notes, the most surprising first."""
    notes = [*warnings_of(table), *column_notes(table)]
    notes += [f"{row.name}, {column.heading}: {note}." for row, column, cell in table.filled() for note in cell.notes]
    notes.append(
        "Ours: mean over seeds ± sample standard deviation (number of seeds). Paper: as printed there, in brackets the "
        "difference ours - paper in points. Bold: our best in a column, over all budgets, where several rows have one."
    )
    notes += table.tests
    notes.append(
        "# Params: trainable parameters of the method, counted in the run; with head: with the task's head, which "
        "every method trains; a range where tasks or seeds differ (--format csv has the exact counts)."
    )
    if table.spec.shares:
        notes.append(
            "Shares: ours are # Params over the parameters of the backbone; the paper's are the labels it prints."
        )
    if table.scope.select == "best" and not all(cell.held_out for _, _, cell in table.filled()):
        notes.append(
            "Checkpoint best is a maximum over evaluations on the data reported here, so it is optimistic, and the "
            "more so the more evaluations there are. Only evaluations at the final budget count, so AdaLoRA and other "
            "methods that prune have fewer of them than LoRA has in as many steps."
        )
    return [*notes, *table.spec.notes, RULE, *optimism_of(table), *settings_notes(table)]


def marks_of(figure: Any) -> str:
    """Marks of significance, then ``UNEQUAL`` where it applies to one of them or to the bold type of the figure."""
    marks = [(figure.mark, figure.baseline_lrs), (figure.full_mark, figure.full_baseline_lrs)]
    marks = [(mark, lrs) for mark, lrs in marks if isinstance(mark, str) and mark]
    unequal = figure.best_unequal or any(lrs != figure.n_lrs_tried for _, lrs in marks)
    return "".join(mark for mark, _ in marks) + UNEQUAL * bool(unequal)


def column_notes(table: Table) -> list[str]:
    """Data of the columns, and the settings of their evaluation."""
    notes, rows = [], []
    for i, column in enumerate(table.spec.columns):
        records = records_of(table, i)
        if not records:
            continue
        counts = {rows_text(record.data) for record in records}
        rows.append(f"{column.heading} {' or '.join(sorted(counts))}")
        evaluated = [
            f"{name} {' or '.join(dict.fromkeys(short(record.settings.get(name)) for record in records))}"
            for name in column.settings
        ]
        notes += [f"{column.heading}: evaluated with {', '.join(evaluated)}."] if evaluated else []
    return [*([f"Rows of the local data: {'; '.join(rows)}."] if rows and table.scope.data == "local" else []), *notes]


def records_of(table: Table, position: int) -> list[RunRecord]:
    """The records shown in a column."""
    return [run.record for row in table.rows if (cell := row.cells[position]) for run in cell.runs]


def unlike(records: Iterable[RunRecord]) -> dict[str, str]:
    """The settings of ``ALIKE``, the kind of device and the training data in which runs differ, with their values."""
    records = list(records)
    settings = [
        stated(record.settings) | {"total_steps": record.key["total_steps"], "device": device_kind(record)}
        for record in records
    ]
    values = {name: list(dict.fromkeys(short(of.get(name, "unset")) for of in settings)) for name in (*ALIKE, "device")}
    sums = (record.data.get("rows_sha256", {}).get("train") for record in records)  # older records have none
    values["rows of train (SHA-256)"] = list(dict.fromkeys(digest[:8] for digest in sums if digest))
    return {name: ", ".join(of) for name, of in values.items() if len(of) > 1}


def rows_text(data: Mapping[str, Any]) -> str:
    """ "train 8,551, validation 1,043"."""
    parts = [f"{split} {count:,}" for split, count in sorted(data.get("rows", {}).items())]
    parts += [f"{count:,} bad ones of {split} left out" for split, count in sorted(data.get("skipped", {}).items())]
    return ", ".join(parts) or "not recorded"


def optimism(cells: Iterable[tuple[int, bool]]) -> list[str]:
    """One sentence if a learning rate was chosen by the scores that are reported, or would be.

    Args:
        cells: of each cell with runs how many learning rates were tried, and whether the held-out split chose.
    """
    cells = list(cells)
    if chosen := sum(lrs > 1 and not held_out for lrs, held_out in cells):
        return [
            f"Optimistic: in {chosen} of {plural(len(cells), 'cell')} the learning rate was chosen by the reported "
            f"scores, because not every run has a held-out split ({HOLDOUT})."
        ]
    if all(held_out for _, held_out in cells):
        return []
    return [
        f"Without a held-out split ({HOLDOUT}), choosing among several learning rates makes a score optimistic; "
        "no cell here did so."
    ]


def optimism_of(table: Table) -> list[str]:
    return optimism((len(cell.lrs), cell.held_out) for _, _, cell in table.filled())


def settings_notes(table: Table) -> list[str]:
    """Learning rate, steps and seeds of every cell, and where its records lie."""
    scope = table.scope
    shown: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, column, cell in table.filled():
        steps = plural(cell.key["total_steps"], "step")
        text = f"(lr {lr_text(cell.lr)}, {cell.tried}, {steps}, {seed_phrase(cell.seeds)})"
        shown[row.method, row.name][text].append(column.heading)
    lines = []
    for (_, name), of in shown.items():
        parts = [f"{', '.join(headings)} {text}" for text, headings in of.items()]
        lines.append(f"Shown for {name}: {'; '.join(parts)}.")
    if lines:
        lines.append(f"Records: below {scope.results}/runs/{scope.backbone} (--format csv names each).")
    return lines


def commands_of(table: Table) -> list[str]:
    """The fewest commands that fill the empty cells of the paper's rows."""
    gaps = [(row, column) for row, column, cell in table.cells() if row.in_paper and not cell]
    return commands(
        [(column.task, row.method, "" if row.fixed_size else row.budget) for row, column in gaps], table.scope
    )


def fill_title(lines: Sequence[str]) -> str:
    """The sentence before the commands, which are the shortest form: settings that a user varied are not in them."""
    where = "DIR is the folder with the data; " if any("data.dir=DIR" in line for line in lines) else ""
    return f"To fill empty cells ({where}add the settings that the existing runs changed)"
