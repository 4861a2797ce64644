"""Marks of a compiled table. Each figure is tested against the best baseline of its budget, and the best figure of each
budget against full fine-tuning; p is corrected by Holm's method over both kinds of test together.

A table without two rows to compare is left as it is, and neither numpy nor scipy is imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from adalora_repro.reports.base import Cell, Comparison, Row, Table
from adalora_repro.reports.compare import pair_up, same_examples
from adalora_repro.reports.significance import LEVEL, RESAMPLES, NoTest, holm, paired_t

PROPOSED = "adalora"  # the method of the paper; its variants begin with its name
#: controls that are no baseline at their budget: two have more parameters, one has the ranks of an AdaLoRA run
NO_BASELINES = {"lora_init_r", "svd_lora_init_r", "lora_rank_pattern"}
FULL = "full"
SEEDS, EXAMPLES = "*", "†"
FULL_MARKS = {SEEDS: "§", EXAMPLES: "¶"}
RULE = (
    f"Marks: {SEEDS} p < {LEVEL} by a paired t-test over the common seeds; {EXAMPLES} p < {LEVEL} by a test over the "
    "examples of one pair of runs, made where fewer than two seeds are common: McNemar's exact test for accuracy and "
    f"exact match, otherwise the paired bootstrap ({RESAMPLES:,} resamples); it says nothing about other seeds. Both "
    "compare with the best baseline: the row with the best mean of the figure among those with the same budget whose "
    "name does not begin with AdaLoRA, except controls at AdaLoRA's initial rank or with its final ranks. That row and "
    f"averages are not tested. {FULL_MARKS[SEEDS]} and {FULL_MARKS[EXAMPLES]}: the same two tests of the best figure "
    "of each budget against full fine-tuning. Tests are two-sided: a mark says that figures differ, the means say "
    "which is better."
)


class Place(NamedTuple):
    """Numbers of the row, the column and the metric; whether the figure is compared with full fine-tuning."""

    row: int
    column: int
    metric: int
    with_full: bool = False


#: (metric, checkpoint, run, run) -> (test, p)
Done = dict[tuple[str, str, Path, Path], tuple[str, float]]


def with_marks(table: Table, done: Done | None = None) -> Table:
    """The table with ``Value.comparison`` and the notes about them; p is corrected over all tests of the table.

    ``done`` keeps the tests over examples for other tables of the same records, which share pairs of runs.
    """
    done = {} if done is None else done
    tested: dict[Place, tuple[Row, str, str, float]] = {}
    untested: dict[str, list[str]] = defaultdict(list)
    for place, baseline in [*opponents(table.rows), *opponents_of_full(table.rows)]:
        row, column = table.rows[place.row], table.spec.columns[place.column]
        metric = column.metrics[place.metric]
        try:
            cells = row.cells[place.column], baseline.cells[place.column]
            result = tested_cell(metric, table.scope.select, *cells, done)
        except NoTest as reason:
            figure = f" {metric}" if len(column.metrics) > 1 else ""
            against = f" against {baseline.name}" * place.with_full
            untested[str(reason)].append(f"{row.name} {column.heading}{figure}{against}")
        else:
            tested[place] = (baseline, *result)
    if not tested and not untested:
        return table
    corrected = holm([p for *_, p in tested.values()])
    compared = {}
    for (place, (baseline, mark, test, p)), p_holm in zip(tested.items(), corrected, strict=True):
        lrs, baseline_lrs = (len(row.cells[place.column].lrs) for row in (table.rows[place.row], baseline))
        mark = FULL_MARKS[mark] if place.with_full else mark
        shown = mark if p_holm < LEVEL else ""
        compared[place] = Comparison(baseline.name, test, p, p_holm, shown, lrs, baseline_lrs)
    rows = [
        replace(row, cells=tuple(marked(cell, compared, i, j) for j, cell in enumerate(row.cells)))
        for i, row in enumerate(table.rows)
    ]
    notes = [f"{RULE} Tests in this table: {len(tested)}, p corrected by Holm for as many."]
    notes += [f"Not tested ({reason}): {', '.join(names)}." for reason, names in untested.items()]
    return replace(table, rows=tuple(rows), tests=tuple(notes))


def opponents(rows: Sequence[Row]) -> Iterator[tuple[Place, Row]]:
    """Each figure of ours that has a baseline, and that baseline's row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.budget].append(i)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            for k, value in enumerate(cell.values):
                means = {
                    other: mean
                    for other in groups[row.budget]
                    if not rows[other].method.startswith(PROPOSED)
                    and rows[other].method not in NO_BASELINES
                    and (mean := rows[other].cells[j].values[k].mean) is not None
                }
                best = max(means, key=means.__getitem__, default=i)
                if best != i and value.mean is not None:
                    yield Place(i, j, k), rows[best]


def opponents_of_full(rows: Sequence[Row]) -> Iterator[tuple[Place, Row]]:
    """The best figure of each budget with the row of full fine-tuning, for every figure that this row has."""
    budgets: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if not row.fixed_size and row.method not in NO_BASELINES:
            budgets[row.budget].append(i)
    for full in (row for row in rows if row.method == FULL):
        for j, cell in enumerate(full.cells):
            for k in (k for k, value in enumerate(cell.values) if value.mean is not None):
                for group in budgets.values():
                    means = {i: mean for i in group if (mean := rows[i].cells[j].values[k].mean) is not None}
                    if means:
                        yield Place(max(means, key=means.__getitem__), j, k, with_full=True), full


def tested_cell(metric: str, select: str, ours: Cell, theirs: Cell, done: Done) -> tuple[str, str, float]:
    """(mark, test, p): over the common seeds where there are two, otherwise over the examples of one pair of runs.

    Raises:
        NoTest: neither can be made.
    """
    a, b = ({run.key["seed"]: run for run in cell.runs} for cell in (ours, theirs))
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        if not all(same_examples(a[seed].record, b[seed].record) for seed in common):
            raise NoTest("evaluated on different examples")
        p = paired_t(*([runs[seed].scores[metric] for seed in common] for runs in (a, b)))
        return SEEDS, f"paired t-test, {len(common)} seeds", p
    first, second = (a[common[0]], b[common[0]]) if common else (ours.runs[0], theirs.runs[0])
    pair = metric, select, first.path, second.path
    if pair not in done:
        done[pair] = pair_up(metric, select, (first.path, first.record), (second.path, second.record)).test()
    test, p = done[pair]
    return EXAMPLES, f"{test}; seeds {first.key['seed']} and {second.key['seed']}", p


def marked(cell: Cell, compared: dict[Place, Comparison], i: int, j: int) -> Cell:
    values = [
        replace(value, comparison=compared.get(Place(i, j, k)), with_full=compared.get(Place(i, j, k, True)))
        for k, value in enumerate(cell.values)
    ]
    return replace(cell, values=tuple(values))
