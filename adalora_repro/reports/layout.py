"""A compiled table -> what a person reads: lines, caption, notes, commands. Plain text; ``render.py`` escapes it.

Each row of a table is up to four lines, so that figures to compare stand under each other: ours, its spread and seeds,
the paper's, and the difference. A row without a record of ours is the paper's line alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from adalora_repro.config.words import word
from adalora_repro.records.run_record import stated
from adalora_repro.records.selection import HOLDOUT, RULE, Run, primary_mean
from adalora_repro.reports.base import Cell, Comparison, Row, Scope, Spec, Table, Value, lr_text, short
from adalora_repro.reports.curves import evaluations_at_budget

NONE = "–"
OURS, SPREAD, PAPER, DIFFERENCE = "ours", "± sd (seeds)", "paper", "difference"
UNEQUAL = "‡"  # on bold or significant figures: the two sides tried different numbers of learning rates


class Part(NamedTuple):
    """One figure of a cell that may hold two (m/mm); figures of a cell are joined by a slash."""

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Line:
    label: str
    cells: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class Block:
    """One row of the table with its lines."""

    name: str
    budget: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    title: str
    caption: str
    heading: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]


def sheet_of(table: Table, only_filled: bool = False) -> Sheet:
    """Everything a rendered table says. ``only_filled`` leaves out rows and columns without a record of ours."""
    filled = filled_columns(table) if only_filled else set(range(len(table.spec.columns)))
    rows = [row for row in table.rows if row.runs or not only_filled]
    with_average = table.spec.average is not None and len(filled) == len(table.spec.columns)
    heading = [("# Params", ""), *([("share of", "backbone")] if table.spec.shares else []), ("with", "head")]
    heading += [(c.heading, c.unit) for i, c in enumerate(table.spec.columns) if i in filled]
    heading += [table.spec.average_heading] if with_average else []
    return Sheet(
        title=table.spec.title,
        caption=caption_of(table),
        heading=tuple(heading),
        blocks=tuple(block_of(table.spec, row, filled, with_average) for row in rows),
        notes=tuple(notes_of(table)),
        commands=() if only_filled else tuple(commands_of(table)),
    )


def filled_columns(table: Table) -> set[int]:
    return {i for row in table.rows for i, cell in enumerate(row.cells) if cell.runs}


def block_of(spec: Spec, row: Row, columns: set[int], with_average: bool) -> Block:
    cells = [cell for i, cell in enumerate(row.cells) if i in columns]
    groups = [(cell.values, cell.seeds) for cell in cells]
    if with_average and row.average is not None:
        groups.append(((row.average,), row.average_seeds))
    lines = []
    blank = params_cells(spec, "", "", "")
    if row.runs:
        counts = (count_range(row.params("method")), share_range(row.share), count_range(row.params("total")))
        lines.append(Line(OURS, params_cells(spec, *counts) + tuple(ours(values) for values, _ in groups)))
        lines.append(Line(SPREAD, blank + tuple(spread(values, seeds) for values, seeds in groups)))
    if any(value.paper is not None for values, _ in groups for value in values):
        printed = row.params_label or NONE
        label = params_cells(spec, "" if spec.shares else printed, printed, "")
        scores = tuple(tuple(Part(fixed(v.paper, spec.decimals)) for v in values) for values, _ in groups)
        lines.append(Line(PAPER, label + scores))
        if row.runs:
            lines.append(Line(DIFFERENCE, blank + tuple(differences(values) for values, _ in groups)))
    return Block(row.name, row.budget, tuple(lines))


def params_cells(spec: Spec, count: str, share: str, total: str) -> tuple[tuple[Part, ...], ...]:
    """The cells before the scores; a table of counts has no column of shares."""
    return tuple((Part(text),) for text in ((count, share, total) if spec.shares else (count, total)))


def ours(values: Sequence[Value]) -> tuple[Part, ...]:
    if all(value.mean is None for value in values):
        return (Part(NONE),)
    return tuple(Part(fixed(value.mean), value.best, marks_of(value)) for value in values)


def marks_of(value: Value) -> str:
    """Marks of significance, then ``UNEQUAL`` where it applies to one of them or to the bold type of the figure."""
    marked = [found for found in (value.comparison, value.with_full) if found is not None and found.mark]
    unequal = value.unequal or any(found.unequal for found in marked)
    return "".join(found.mark for found in marked) + UNEQUAL * unequal


def spread(values: Sequence[Value], seeds: Sequence[int]) -> tuple[Part, ...]:
    """ "0.31 (5)", with two figures "0.31/0.29 (5)", for one seed "(1)"; empty without a record."""
    deviations = [value.sd for value in values]
    known = [f"{sd:.2f}" for sd in deviations if sd is not None]
    return (Part(" ".join([*(["/".join(known)] if known else []), *([f"({len(seeds)})"] if seeds else [])])),)


def differences(values: Sequence[Value]) -> tuple[Part, ...]:
    if all(value.difference is None for value in values):
        return (Part(""),)
    return tuple(Part(signed(value.difference)) for value in values)


def fixed(value: float | None, decimals: int = 2) -> str:
    return NONE if value is None else f"{value:.{decimals}f}"


def signed(value: float | None) -> str:
    """Two decimals with a sign; what rounds to nothing is +0.00, never -0.00."""
    return NONE if value is None else f"{round(value, 2) + 0.0:+.2f}"


def count_text(count: int) -> str:
    """A parameter count as the paper writes it, 1.33M; below 0.1M in thousands, for small backbones."""
    if count >= 100_000_000:
        return f"{count / 1e6:.0f}M"
    return f"{count / 1e6:.2f}M" if count >= 100_000 else f"{count / 1e3:.1f}K"


def count_range(counts: tuple[int, int] | None) -> str:
    if counts is None:
        return NONE
    low, high = (count_text(count) for count in counts)
    return low if low == high else f"{low}–{high}"


def share_range(shares: tuple[float, float] | None) -> str:
    """Shares of the backbone to the three decimals that the dry run prints too."""
    if shares is None:
        return NONE
    low, high = (f"{share:.3%}" for share in shares)
    return low if low == high else f"{low}–{high}"


def seeds_text(seeds: Iterable[int]) -> str:
    """ "0-4" for consecutive seeds, otherwise a list."""
    known = sorted(set(seeds))
    if len(known) > 2 and known[-1] - known[0] == len(known) - 1:
        return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known))


CAVEATS = {
    "local": " Scores on subsets of the data are not comparable with the paper's.",
    "sample": " Sample data are generated English, NOT the paper's data: differences from the paper mean nothing.",
}


def caption_of(table: Table) -> str:
    """What the numbers are: backbone, data, protocol, checkpoint, records, seeds."""
    scope = table.scope
    checkpoint = "the last step" if scope.select == "final" else "the best evaluation at the final budget"
    runs = table.runs
    used = f"{plural(len(runs), 'record')}, {seed_phrase(runs)}" if runs else "no record yet: the paper's numbers alone"
    warning = CAVEATS.get(scope.data, "") if runs else ""
    warning += " Evaluations on a part of the examples are included." if scope.include_partial else ""
    return (
        f"{table.spec.title}. Backbone {scope.backbone}; data {scope.data}; protocol {scope.protocol}; checkpoint "
        f"{scope.select} ({checkpoint}); {used}.{warning}"
    )


def seed_phrase(runs: Sequence[Run]) -> str:
    seeds = {run.key["seed"] for run in runs}
    return f"seed{'s' * (len(seeds) > 1)} {seeds_text(seeds)}"


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def notes_of(table: Table) -> list[str]:
    """All that a reader must know not to misread the figures, the most surprising first."""
    notes = [*table.scope.said, *data_notes(table), *comparison_notes(table)]
    notes += [*evaluation_notes(table), *cell_notes(table)]
    notes += [f"Not in the table: {plural(count, 'record')} {why}." for why, count in sorted(table.left_out.items())]
    if table.refused:
        notes.append(f"Refused and not counted: {plural(len(table.refused), 'record')}, named on stderr.")
    notes.append(
        "ours: mean over seeds; ± sd: sample standard deviation; (n): number of seeds; paper: as printed there; "
        "difference: ours - paper, in points. Bold: best of ours in a column, over all budgets, where two rows have it."
    )
    notes += table.tests
    notes += unequal_notes(table)
    notes.append(
        "Counts: # Params are the trainable parameters of the method, counted in the run; with head: with the task's "
        "head, which trains in every method; a range where tasks or seeds differ (--format csv has the exact counts)."
    )
    if table.spec.shares:
        notes.append(
            "Shares: ours are # Params over the parameters of the backbone, counted in the run; the paper's are the "
            "labels it prints as # Params."
        )
    notes += best_notes(table)
    notes += table.spec.notes
    notes.append(RULE)
    notes += optimism(cell for row in table.rows for cell in row.cells)
    notes += shown_notes(table)
    return notes


def data_notes(table: Table) -> list[str]:
    scope, runs = table.scope, table.runs
    if not runs:
        return []
    notes = []
    if scope.data == "local":
        rows = "; ".join(rows_text(table, place) for place in sorted(filled_columns(table)))
        notes.append(f"Rows of the local data: {rows}.")
    if scope.backbone != table.spec.backbone:
        notes.append(
            f"The paper's numbers are of {table.spec.backbone}, ours of {scope.backbone}: "
            "the difference is also one of backbones."
        )
    return notes


def rows_text(table: Table, place: int) -> str:
    """Rows per split of one task, as the records have them."""
    runs = [run for row in table.rows for run in row.cells[place].runs]
    found = [run.record.data["rows"] for run in runs if "rows" in run.record.data]
    name = table.spec.columns[place].heading
    if not found or any(counts != found[0] for counts in found):
        return f"{name} {'differ between records' if found else 'not recorded'}"
    return f"{name} {', '.join(f'{split} {count:,}' for split, count in sorted(found[0].items(), key=split_order))}"


def split_order(item: tuple[str, Any]) -> tuple[bool, str]:
    return not item[0].startswith("train"), item[0]


def comparison_notes(table: Table) -> list[str]:
    """Columns whose rows were not trained alike: their ranking is not one of methods alone."""
    notes = []
    for place, column in enumerate(table.spec.columns):
        records = [run.record for row in table.rows for run in row.cells[place].runs]
        steps = {record.key["total_steps"] for record in records}
        if len(steps) > 1:
            notes.append(f"{column.heading}: rows were trained for {min(steps):,} to {max(steps):,} steps, not alike.")
        for name in ALIKE:
            different = sorted({short(stated(record.settings).get(name, "unset")) for record in records})
            if len(different) > 1:
                notes.append(f"{column.heading}: rows differ in {name}: {', '.join(different)}.")
    return notes


#: settings that change the training or its precision, and in which methods have no reason to differ
ALIKE = (HOLDOUT, "train.precision", "train.attention", "train.batch_size", "train.group_by_length")


def unequal_notes(table: Table) -> list[str]:
    """What ``UNEQUAL`` means, with the numbers, where the table shows it."""
    bold: list[str] = []
    tests: list[str] = []
    for row in table.rows:
        for column, cell in zip(table.spec.columns, row.cells, strict=True):
            name = f"{row.name} {column.heading}"
            for value in cell.values:
                found = [one for one in (value.comparison, value.with_full) if one is not None]
                tests += [
                    f"{name} {one.lrs} against {one.baseline_lrs} of {one.baseline}" for one in found if one.unequal
                ]
            bold += [f"{name} {len(cell.lrs)}"] if any(value.unequal for value in cell.values) else []
        bold += [f"{row.name}, average"] if row.average is not None and row.average.unequal else []
    if not bold and not tests:
        return []
    parts = [f"tests: {', '.join(dict.fromkeys(tests))}"] if tests else []
    parts += [f"bold: {', '.join(bold)} (other rows of the column have another number)"] if bold else []
    return [
        f"{UNEQUAL} Unequal tuning: the two sides tried different numbers of learning rates, and the best of more "
        f"is higher by chance alone. Learning rates with a finished run; {'; '.join(parts)}."
    ]


def optimism(cells: Iterable[Cell]) -> list[str]:
    """One sentence if a cell has no held-out split: its learning rate is chosen by the scores that it reports."""
    filled = [cell for cell in cells if cell.runs]
    chosen = sum(cell.optimistic for cell in filled)
    if chosen:
        return [
            f"Optimistic: in {chosen} of {plural(len(filled), 'cell')} the learning rate was chosen by the reported "
            f"scores, because not every run has a held-out split ({HOLDOUT})."
        ]
    if any(not cell.held_out for cell in filled):
        return [
            f"Without a held-out split ({HOLDOUT}), choosing among several learning rates makes a score optimistic; "
            "no cell here did so."
        ]
    return []


def best_notes(table: Table) -> list[str]:
    """For ``--select best``: how the checkpoint was chosen, and among how many evaluations of each run."""
    if table.scope.select != "best" or not table.runs:
        return []
    notes = []
    if any(not cell.held_out for row in table.rows for cell in row.cells if cell.runs):
        notes.append(
            "Checkpoint best is a maximum over evaluations on the data reported here, so it is optimistic, and the "
            "more so the more evaluations there are. Only evaluations at the final budget count, so AdaLoRA and other "
            "methods that prune have fewer of them than LoRA has in as many steps."
        )
    counts = []
    for row in table.rows:
        found = [
            f"{column.heading} {evaluations_text(cell.runs)}"
            for column, cell in zip(table.spec.columns, row.cells, strict=True)
            if cell.runs
        ]
        counts += [f"{row.name}: {', '.join(found)}"] if found else []
    return [*notes, f"Evaluations among which best was chosen, per run (from log.jsonl): {'; '.join(counts)}."]


def evaluations_text(runs: Sequence[Run]) -> str:
    """ "12", "11 to 12", "not recorded"."""
    counts = [count for run in runs if (count := evaluations_at_budget(run.path.parent, run.record)) is not None]
    if not counts:
        return "not recorded"
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def evaluation_notes(table: Table) -> list[str]:
    """How the runs shown were evaluated: settings that are not the same everywhere, and rows that were left out."""
    notes = []
    for place, column in enumerate(table.spec.columns):
        records = [run.record for row in table.rows for run in row.cells[place].runs]
        if records and column.settings:
            told = [f"{name} {values(record.settings.get(name) for record in records)}" for name in column.settings]
            notes.append(f"{column.heading}: evaluated with {', '.join(told)}.")
        skipped = [record.data["skipped"] for record in records if "skipped" in record.data]
        if skipped:
            most = {split: max(c.get(split, 0) for c in skipped) for counts in skipped for split in counts}
            told = [f"{split} {count:,}" for split, count in sorted(most.items(), key=split_order)]
            notes.append(f"{column.heading}: bad rows were left out (data.skip_invalid), at most {', '.join(told)}.")
    return notes


def values(found: Iterable[Any]) -> str:
    """Distinct values, " or " between them."""
    return " or ".join(dict.fromkeys(short(value) for value in found))


def cell_notes(table: Table) -> list[str]:
    return [
        f"{row.name}, {column.heading}: {note}."
        for row in table.rows
        for column, cell in zip(table.spec.columns, row.cells, strict=True)
        for note in cell.notes
    ]


def shown_notes(table: Table) -> list[str]:
    """Learning rate and steps of every cell, and where its records lie."""
    if not table.runs:
        return []
    scope = table.scope
    lines = []
    for row in table.rows:
        tasks: dict[str, list[str]] = defaultdict(list)
        for column, cell in zip(table.spec.columns, row.cells, strict=True):
            if cell.runs:
                tasks[cell_settings(cell)].append(column.heading)
        if tasks:
            told = "; ".join(f"{', '.join(headings)} {settings}" for settings, headings in tasks.items())
            lines.append(f"Shown for {row.name}: {told}.")
    place = f"TASK/METHOD/BUDGET/{scope.protocol}-{scope.data}-lrLR-seedSEED-HASH/metrics.json"
    return [*lines, f"Records: {scope.results}/runs/{scope.backbone}/{place} (--format csv names each)."]


def cell_settings(cell: Cell) -> str:
    run = cell.runs[0]
    steps = plural(run.key["total_steps"], "step")
    return f"(lr {lr_text(run.key['lr'])}, {tried(cell)}, {steps}, {seed_phrase(cell.runs)})"


def tried(cell: Cell) -> str:
    """Among how many learning rates the one shown was chosen, and on which split."""
    if len(cell.lrs) < 2:
        return "the only one tried"
    if cell.held_out:
        metric = cell.runs[0].record.primary_metric
        return f"the best of {len(cell.lrs)} on the held-out split ({metric} {primary_mean(cell.runs, True):.2f} there)"
    return f"the best of {len(cell.lrs)} tried"


def lr_of_tried(lr: float, count: int) -> str:
    """ "3e-4 of 8": the learning rate and among how many it was chosen; "3e-4" if it was the only one."""
    return f"{lr_text(lr)} of {count}" if count > 1 else lr_text(lr)


def commands_of(table: Table) -> list[str]:
    """The fewest commands that fill the empty cells of the paper's rows: equal gaps share one (Hydra's comma lists)."""
    gaps: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in table.rows:
        columns = zip(table.spec.columns, row.cells, strict=True)
        tasks = tuple(column.task for column, cell in columns if not cell.runs)
        if tasks and row.in_paper:
            gaps[row.method, row.budget] = tasks
    by_budget: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for (method, budget), tasks in gaps.items():
        by_budget[tasks, "" if method == budget else budget].append(method)
    merged: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for (tasks, budget), methods in by_budget.items():
        merged[tasks, tuple(methods)].append(budget)
    return [
        command(tasks, methods, budgets if budgets != [""] else [], table.scope)
        for (tasks, methods), budgets in merged.items()
    ]


def command(tasks: Sequence[str], methods: Sequence[str], budgets: Sequence[str], scope: Scope) -> str:
    """One ``adalora-run`` line; ``-m`` (one run per combination) where a list has more than one entry."""
    many = len(tasks) * len(methods) * max(1, len(budgets)) > 1
    words = ["adalora-run", *(["-m"] if many else []), word("task", *tasks), word("method", *methods)]
    words += [word("budget", *budgets)] if budgets else []
    return " ".join([*words, *scope_words(scope)])


def scope_words(scope: Scope) -> list[str]:
    """The words of ``adalora-run`` that put runs into the scope of this report."""
    words = [word("backbone", scope.backbone), word("data", scope.data)]
    words += ["data.dir=DIR"] if scope.data == "local" else []
    words += [word("protocol", scope.protocol)] if scope.protocol != "paper" else []
    words += [word("results.dir", str(scope.results))] if str(scope.results) != "results" else []
    return words


def long_rows(table: Table) -> list[dict[str, Any]]:
    """One dictionary per figure of the table, with everything that is known of it (the CSV)."""
    rows = []
    labels = {row.budget for row in table.rows if row.in_paper}
    for row in table.rows:
        for column, cell in zip(table.spec.columns, row.cells, strict=True):
            empty = not cell.runs and (row.fixed_size or row.budget in labels)  # r3 is no budget to type
            fill = command([column.task], [row.method], budgets_of(row), table.scope) if empty else ""
            for metric, value in (*zip(column.metrics, cell.values, strict=True), *cell.more.items()):
                rows.append({**common(table, row, column.task, metric, value, cell.seeds), **details(cell, fill)})
        if row.average is not None:
            name = table.spec.average_column
            values = common(table, row, "all", name, row.average, row.average_seeds)
            rows.append({**values, **details(Cell((row.average,)), "")})
    return rows


def budgets_of(row: Row) -> list[str]:
    return [] if row.fixed_size else [row.budget]


def common(table: Table, row: Row, task: str, metric: str, value: Value, seeds: Sequence[int]) -> dict[str, Any]:
    scope = table.scope
    return {
        "table": table.spec.name,
        "backbone": scope.backbone,
        "data": scope.data,
        "protocol": scope.protocol,
        "checkpoint": scope.select,
        "method": row.method,
        "method_name": row.name,
        "budget": row.budget,
        "task": task,
        "metric": metric,
        "mean": value.mean,
        "sd": value.sd,
        "n_seeds": len(seeds),
        "seeds": " ".join(map(str, seeds)),
        "paper": value.paper,
        "difference": value.difference,
        "best": value.best,
        "best_unequal": value.unequal,
        **{field.name: getattr(value.comparison, field.name, None) for field in fields(Comparison)},
        **{
            f"full_{name}": getattr(value.with_full, name, None)
            for name in ("test", "p", "p_holm", "mark", "baseline_lrs")
        },
        "params_paper": row.params_label,
    }


def details(cell: Cell, fill: str) -> dict[str, Any]:
    """Counts, settings and files of the runs in a cell; empty fields without runs."""
    runs = cell.runs
    counts: dict[str, int | None] = {}
    for name in ("method", "head", "total", "backbone"):
        known = [run.record.params[name] for run in runs if name in run.record.params]
        counts[f"params_{name}_min"] = min(known) if known else None
        counts[f"params_{name}_max"] = max(known) if known else None
    key = runs[0].key if runs else {}
    return {
        **counts,
        "lr": key.get("lr"),
        "lrs_tried": " ".join(lr_text(lr) for lr in cell.lrs),
        "n_lrs_tried": len(cell.lrs) if runs else None,
        "chosen_on": ("held-out" if cell.held_out else "reported") if runs else "",
        "held_out_mean": primary_mean(runs, True) if cell.held_out and runs else None,
        "degenerate_seeds": " ".join(map(str, cell.degenerate)),
        "total_steps": key.get("total_steps"),
        "max_examples": key.get("max_examples"),
        "variant": key.get("variant"),
        "note": "; ".join(cell.notes),
        "records": " ".join(str(run.path) for run in runs),
        "command": fill,
    }
