"""What a reader must know not to misread a table: caption, notes, and the commands that fill its empty cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from adalora_repro.config.words import lr_text
from adalora_repro.records.run_record import stated
from adalora_repro.records.selection import HOLDOUT, RULE, Run, primary_mean
from adalora_repro.reports.cells import AVERAGE, Cell, Table
from adalora_repro.reports.curves import evaluations_at_budget
from adalora_repro.reports.spec import commands
from adalora_repro.reports.text import plural, seed_phrase, short

UNEQUAL = "‡"  # on bold or significant figures: the two sides tried different numbers of learning rates
CONSTANT = "!"  # on the figures of a cell with a degenerate run
CAVEATS = {
    "local": " Scores on subsets of the data are not comparable with the paper's.",
    "sample": " Sample data are generated English, NOT the paper's data.",
}
FILL = "To fill empty cells"
#: settings that change the training or its precision, and in which methods have no reason to differ
ALIKE = (HOLDOUT, "train.precision", "train.attention", "train.batch_size", "train.group_by_length")


def caption_of(table: Table) -> str:
    """What the numbers are: backbone, data, protocol, checkpoint, records, seeds; each run counts once."""
    scope, runs = table.scope, table.runs
    checkpoint = "the last step" if scope.select == "final" else "the best evaluation at the final budget"
    used = f"{plural(len(runs), 'record')}, {seed_phrase(runs)}" if runs else "no record yet: the paper's numbers alone"
    warning = CAVEATS.get(scope.data, "") if runs and not table.comparable else ""
    warning += " Evaluations on a part of the examples are included." if scope.include_partial else ""
    return (
        f"{table.spec.title}. Backbone {scope.backbone}; data {scope.data}; protocol {scope.protocol}; checkpoint "
        f"{scope.select} ({checkpoint}); {used}.{warning}"
    )


def warnings_of(table: Table) -> list[str]:
    """The notes that every form of the table shows, in a terminal too: without them it is read wrongly."""
    notes = list(table.scope.remarks)
    if table.runs and not table.comparable:
        spec, scope = table.spec, table.scope
        same = "on all of the data" if scope.backbone == spec.backbone else f"of {spec.backbone}"
        notes.append(f"The paper's numbers are {same}, ours of {scope.backbone} on {scope.data} data: not shown here.")
    constant = [f"{row.name} {column.heading}" for row, column, cell in table.filled() if cell.degenerate]
    if constant:
        notes.append(f"{CONSTANT} A run gave every example the same prediction: {', '.join(constant)}.")
    if table.figures.best_unequal.any():
        notes.append(f"{UNEQUAL} The rows compared tried different numbers of learning rates; --notes has the numbers.")
    notes += [f"Not in the table: {plural(count, 'record')} {why}." for why, count in sorted(table.left_out.items())]
    if table.refused:
        notes.append(f"Refused and not counted: {plural(len(table.refused), 'record')}, named on stderr.")
    return notes


def notes_of(table: Table) -> list[str]:
    """All notes, the most surprising first."""
    notes = [*warnings_of(table), *column_notes(table)]
    notes += [f"{row.name}, {column.heading}: {note}." for row, column, cell in table.cells() for note in cell.notes]
    notes.append(
        "Ours: mean over seeds ± sample standard deviation (number of seeds). Paper: as printed there, in brackets the "
        "difference ours - paper in points. Bold: best of ours in a column, over all budgets, where two rows have it."
    )
    notes += [*table.tests, *unequal_notes(table)]
    notes.append(
        "# Params: trainable parameters of the method, counted in the run; with head: with the task's head, which "
        "every method trains; a range where tasks or seeds differ (--format csv has the exact counts)."
    )
    if table.spec.shares:
        notes.append(
            "Shares: ours are # Params over the parameters of the backbone; the paper's are the labels it prints."
        )
    notes += [*best_notes(table), *table.spec.notes, RULE]
    return [*notes, *optimism_of(table), *settings_notes(table)]


def column_notes(table: Table) -> list[str]:
    """Data of the columns, and how their rows were trained and evaluated where that is not the same everywhere."""
    notes, rows = [], []
    for i, column in enumerate(table.spec.columns):
        records = [run.record for row in table.rows for run in row.cells[i].runs]
        if not records:
            continue
        counts = [record.data["rows"] for record in records if "rows" in record.data]
        alike = bool(counts) and all(one == counts[0] for one in counts)
        unknown = "differ between records" if counts else "not recorded"
        rows.append(f"{column.heading} {splits_text(counts[0]) if alike else unknown}")
        steps = {record.key["total_steps"] for record in records}
        if len(steps) > 1:
            notes.append(f"{column.heading}: rows were trained for {min(steps):,} to {max(steps):,} steps, not alike.")
        for name in ALIKE:
            different = sorted({short(stated(record.settings).get(name, "unset")) for record in records})
            if len(different) > 1:
                notes.append(f"{column.heading}: rows differ in {name}: {', '.join(different)}.")
        values = [f"{name} {distinct(record.settings.get(name) for record in records)}" for name in column.settings]
        notes += [f"{column.heading}: evaluated with {', '.join(values)}."] if values else []
        skipped = [record.data["skipped"] for record in records if "skipped" in record.data]
        if skipped:
            most = {split: max(one.get(split, 0) for one in skipped) for one in skipped for split in one}
            notes.append(f"{column.heading}: bad rows were left out (data.skip_invalid), at most {splits_text(most)}.")
    return [*([f"Rows of the local data: {'; '.join(rows)}."] if rows and table.scope.data == "local" else []), *notes]


def splits_text(counts: dict[str, int]) -> str:
    """ "train 8,551, validation 1,043"."""
    ordered = sorted(counts.items(), key=lambda item: (not item[0].startswith("train"), item[0]))
    return ", ".join(f"{split} {count:,}" for split, count in ordered)


def distinct(values: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(short(value) for value in values))


def unequal_notes(table: Table) -> list[str]:
    """What ``UNEQUAL`` means, with the numbers, where the table shows it."""
    bold: list[str] = []
    tests: list[str] = []
    for figure in table.figures.itertuples():
        if figure.position == AVERAGE:
            bold += [f"{figure.method_name}, average"] if figure.best_unequal else []
            continue
        name = f"{figure.method_name} {table.spec.columns[figure.position].heading}"
        bold += [f"{name} {figure.n_lrs_tried:.0f}"] if figure.best_unequal else []
        sides = [(figure.test, figure.baseline_lrs, figure.baseline)]
        sides += [(figure.full_test, figure.full_baseline_lrs, "full fine-tuning")]
        tests += [
            f"{name} {figure.n_lrs_tried:.0f} against {lrs:.0f} of {other}"
            for test, lrs, other in sides
            if isinstance(test, str) and lrs != figure.n_lrs_tried
        ]
    if not bold and not tests:
        return []
    parts = [f"tests: {', '.join(dict.fromkeys(tests))}"] if tests else []
    parts += [f"bold: {', '.join(dict.fromkeys(bold))} (other rows of the column have another number)"] if bold else []
    return [
        f"{UNEQUAL} Unequal tuning: the two sides tried different numbers of learning rates, and the best of more "
        f"is higher by chance alone. Learning rates with a finished run; {'; '.join(parts)}."
    ]


def optimism(cells: Iterable[tuple[int, bool]]) -> list[str]:
    """One sentence if a learning rate was chosen by the scores that are reported.

    Args:
        cells: of each cell with runs how many learning rates were tried, and whether the held-out split chose.
    """
    cells = list(cells)
    chosen = sum(lrs > 1 and not held_out for lrs, held_out in cells)
    if chosen:
        return [
            f"Optimistic: in {chosen} of {plural(len(cells), 'cell')} the learning rate was chosen by the reported "
            f"scores, because not every run has a held-out split ({HOLDOUT})."
        ]
    if not all(held_out for _, held_out in cells):
        return [
            f"Without a held-out split ({HOLDOUT}), choosing among several learning rates makes a score optimistic; "
            "no cell here did so."
        ]
    return []


def optimism_of(table: Table) -> list[str]:
    return optimism((len(cell.lrs), cell.held_out) for _, _, cell in table.filled())


def best_notes(table: Table) -> list[str]:
    """For ``--select best``: how the checkpoint was chosen, and among how many evaluations of each run."""
    if table.scope.select != "best" or not table.runs:
        return []
    notes = []
    if not all(cell.held_out for _, _, cell in table.filled()):
        notes.append(
            "Checkpoint best is a maximum over evaluations on the data reported here, so it is optimistic, and the "
            "more so the more evaluations there are. Only evaluations at the final budget count, so AdaLoRA and other "
            "methods that prune have fewer of them than LoRA has in as many steps."
        )
    counts: dict[str, list[str]] = defaultdict(list)
    for row, column, cell in table.filled():
        counts[row.name].append(f"{column.heading} {evaluations_text(cell.runs)}")
    rows = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in counts.items())
    return [*notes, f"Evaluations among which best was chosen, per run (from log.jsonl): {rows}."]


def evaluations_text(runs: Sequence[Run]) -> str:
    """ "12", "11 to 12", "not recorded"."""
    counts = [count for run in runs if (count := evaluations_at_budget(run.path.parent, run.record)) is not None]
    if not counts:
        return "not recorded"
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def settings_notes(table: Table) -> list[str]:
    """Learning rate, steps and seeds of every cell, and where its records lie."""
    if not table.runs:
        return []
    scope = table.scope
    shown: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, column, cell in table.filled():
        steps = plural(cell.key["total_steps"], "step")
        text = f"(lr {lr_text(cell.lr)}, {tried(cell)}, {steps}, {seed_phrase(cell.runs)})"
        shown[row.name][text].append(column.heading)
    lines = []
    for name, of in shown.items():
        parts = [f"{', '.join(headings)} {text}" for text, headings in of.items()]
        lines.append(f"Shown for {name}: {'; '.join(parts)}.")
    below = f"TASK/METHOD/BUDGET/{scope.protocol}-{scope.data}-lrLR-seedSEED-HASH/metrics.json"
    return [*lines, f"Records: {scope.results}/runs/{scope.backbone}/{below} (--format csv names each)."]


def tried(cell: Cell) -> str:
    """Among how many learning rates the one shown was chosen, and on which split."""
    if len(cell.lrs) < 2:
        return "the only one tried"
    if cell.held_out:
        metric = cell.runs[0].record.primary_metric
        return f"the best of {len(cell.lrs)} on the held-out split ({metric} {primary_mean(cell.runs, True):.2f} there)"
    return f"the best of {len(cell.lrs)} tried"


def commands_of(table: Table) -> list[str]:
    """The fewest commands that fill the empty cells of the paper's rows."""
    gaps = [(row, column) for row, column, cell in table.cells() if row.in_paper and not cell.runs]
    return commands(
        [(column.task, row.method, "" if row.fixed_size else row.budget) for row, column in gaps], table.scope
    )


def fill_title(lines: Sequence[str]) -> str:
    """The sentence before the commands, which are the shortest form: settings that a user varied are not in them."""
    where = "DIR is the folder with the data; " if any("data.dir=DIR" in line for line in lines) else ""
    return f"{FILL} ({where}add the overrides that the other runs had)"
