"""Tables compiled from records that were never trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports.cells import Cell, Row, Table, compile_table
from adalora_repro.reports.spec import Scope, Spec
from adalora_repro.reports.tables.table1 import SPEC

MINILM = Scope("minilm", "local")


def compiled(records: Sequence[RunRecord], spec: Spec = SPEC, scope: Scope = MINILM) -> Table:
    return compile_table(spec, [(Path(f"r/{i:03}/metrics.json"), record) for i, record in enumerate(records)], scope)


def row(table: Table, method: str = "lora", budget: str = "0.3M") -> Row:
    return next(row for row in table.rows if (row.method, row.budget) == (method, budget))


def column_of(table: Table, task: str) -> int:
    return [column.task for column in table.spec.columns].index(task)


def cell(table: Table, method: str = "lora", budget: str = "0.3M", task: str = "cola") -> Cell:
    return row(table, method, budget).cells[column_of(table, task)]


def figures(table: Table, method: str = "lora", budget: str = "0.3M", task: str = "cola") -> list[Any]:
    return table.of(row(table, method, budget), column_of(table, task))


def means(table: Table, method: str = "lora", budget: str = "0.3M", task: str = "cola") -> list[float]:
    return [figure.mean for figure in figures(table, method, budget, task)]
