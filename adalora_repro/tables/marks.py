"""Marks of a compiled table: each figure against the best baseline of its budget, with Holm's correction.

A table without two rows to compare is left as it is, and neither numpy nor scipy is imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from adalora_repro.tables.base import Cell, Comparison, Row, Table
from adalora_repro.tables.compare import evaluated_on, pair_up
from adalora_repro.tables.significance import LEVEL, RESAMPLES, NoTest, holm, paired_t

PROPOSED = "adalora"  # the method of the paper; its variants begin with its name
LARGER = {"lora_init_r", "svd_lora_init_r"}  # controls with more parameters than their budget: no baselines
SEEDS, EXAMPLES = "*", "†"
RULE = (
    f"Marks: {SEEDS} p < {LEVEL} by a paired t-test over the common seeds; {EXAMPLES} p < {LEVEL} by a test over the "
    "examples of one pair of runs, made where fewer than two seeds are common: McNemar's exact test for accuracy and "
    f"exact match, otherwise the paired bootstrap ({RESAMPLES:,} resamples); it says nothing of other seeds. Against "
    "the best baseline: of the rows with the same budget whose name does not begin with AdaLoRA, those at the initial "
    "rank left out, the one with the best mean of the figure; that row itself and averages are not tested. Two-sided: "
    "a mark says different, the means say which is better."
)


class Place(NamedTuple):
    """Numbers of the row, the column and the metric."""

    row: int
    column: int
    metric: int


#: (metric, checkpoint, run, run) -> (test, p)
Done = dict[tuple[str, str, Path, Path], tuple[str, float]]


def with_marks(table: Table, done: Done | None = None) -> Table:
    """The table with ``Value.comparison`` and the notes about them; p is corrected over all tests of the table.

    ``done`` keeps the tests over examples for other tables of the same records, which share pairs of runs.
    """
    done = {} if done is None else done
    tested: dict[Place, tuple[str, str, str, float]] = {}
    untested: dict[str, list[str]] = defaultdict(list)
    for place, baseline in opponents(table.rows):
        row, column = table.rows[place.row], table.spec.columns[place.column]
        metric = column.metrics[place.metric]
        try:
            cells = row.cells[place.column], baseline.cells[place.column]
            result = tested_cell(metric, table.scope.select, *cells, done)
        except NoTest as reason:
            figure = f" {metric}" if len(column.metrics) > 1 else ""
            untested[str(reason)].append(f"{row.name} {column.heading}{figure}")
        else:
            tested[place] = (baseline.name, *result)
    if not tested and not untested:
        return table
    corrected = holm([p for *_, p in tested.values()])
    compared = {
        place: Comparison(baseline, test, p, p_holm, mark if p_holm < LEVEL else "")
        for (place, (baseline, mark, test, p)), p_holm in zip(tested.items(), corrected, strict=True)
    }
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
                    and rows[other].method not in LARGER
                    and (mean := rows[other].cells[j].values[k].mean) is not None
                }
                best = max(means, key=means.__getitem__, default=i)
                if best != i and value.mean is not None:
                    yield Place(i, j, k), rows[best]


def tested_cell(metric: str, select: str, ours: Cell, theirs: Cell, done: Done) -> tuple[str, str, float]:
    """(mark, test, p): over the common seeds where there are two, otherwise over the examples of one pair of runs.

    Raises:
        NoTest: neither can be made.
    """
    a, b = ({run.key["seed"]: run for run in cell.runs} for cell in (ours, theirs))
    common = sorted(a.keys() & b.keys())
    if len(common) > 1:
        if any(evaluated_on(a[seed].record) != evaluated_on(b[seed].record) for seed in common):
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
    values = [replace(value, comparison=compared.get(Place(i, j, k))) for k, value in enumerate(cell.values)]
    return replace(cell, values=tuple(values))
