"""Tables 4, 5, 14 and the controls: which rows they have, means of two metrics, what stays out of other tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_records import make

from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports import layout, render
from adalora_repro.reports.base import (
    METHOD_NAMES,
    VARIANTS,
    Row,
    Scope,
    Spec,
    Table,
    choose_scope,
    compile_table,
    paper_rows,
)
from adalora_repro.reports.status import render_status
from adalora_repro.reports.tables import table1
from adalora_repro.reports.tables.controls import SPEC as CONTROLS
from adalora_repro.reports.tables.table4 import SPEC as SCORES
from adalora_repro.reports.tables.table5 import SPEC as COMPONENTS
from adalora_repro.reports.tables.table14 import SPEC as MATRICES

ALL = pytest.mark.parametrize("spec", [SCORES, COMPONENTS, MATRICES, CONTROLS], ids=lambda spec: spec.name)
SCOPE = Scope("minilm", "local")


def compiled(spec: Spec, *records: RunRecord) -> Table:
    return compile_table(spec, [(Path(f"r/{i}/metrics.json"), record) for i, record in enumerate(records)], SCOPE)


def row(table: Table, method: str, budget: str) -> Row:
    (found,) = (row for row in table.rows if (row.method, row.budget) == (method, budget))
    return found


def run(**changes: Any) -> RunRecord:
    return make(**({"task": "sst2", "budget": "0.16%"} | changes))


@ALL
def test_every_row_of_the_paper_is_there_with_its_numbers(spec: Spec) -> None:
    table = compiled(spec)
    rows = paper_rows(spec.paper_file)
    assert len(table.rows) == len(rows) == {"table4": 12, "table5": 18, "table14": 2, "controls": 9}[spec.name]
    assert {row["method"] for row in rows} <= set(spec.methods) <= set(METHOD_NAMES)
    for printed in rows:
        cells = row(table, printed["method"], printed["budget"]).cells
        for column, cell in zip(spec.columns, cells, strict=True):
            found = [value.paper for value in cell.values]
            assert found == [float(printed[name]) if printed[name] else None for name in column.paper]
    beyond = {"adalora", "lora"} if spec is CONTROLS else set(spec.methods)
    assert {r["method"] for r in rows if any(r[name] for column in spec.columns for name in column.paper)} == beyond


def test_the_paper_s_numbers_are_those_of_its_tables() -> None:
    assert [value.paper for value in row(compiled(SCORES), "adalora_sensitivity", "0.65%").cells[1].values] == [88.10]
    assert [value.paper for value in row(compiled(COMPONENTS), "lora_regu", "0.32%").cells[1].values] == [90.40]
    assert [value.paper for value in row(compiled(MATRICES), "lora_qv", "0.3M").cells[0].values] == [89.80]
    main = {r["method"]: r for r in paper_rows(table1.SPEC.paper_file) if r["budget"] == "0.3M"}
    for printed in paper_rows(CONTROLS.paper_file):
        if printed["method"] in ("lora", "adalora"):
            assert printed == {name: main[printed["method"]][name] for name in printed}


def test_mnli_is_the_mean_of_matched_and_mismatched() -> None:
    """Of each seed first: 80 and 82 make 81, 84 and 88 make 86; mean 83.5, sd |81 - 86| / sqrt(2)."""
    scores = ((0.80, 0.82), (0.84, 0.88))
    seeds = [
        run(task="mnli", method="svd_lora", score={"accuracy_m": m, "accuracy_mm": mm}, seed=seed)
        for seed, (m, mm) in enumerate(scores)
    ]
    (value,) = row(compiled(COMPONENTS, *seeds), "svd_lora", "0.16%").cells[1].values
    assert (value.mean, value.paper) == (pytest.approx(83.5), 90.25)
    assert value.sd == pytest.approx(5 / 2**0.5)
    lame = run(task="mnli", score={"accuracy_m": 0.8})
    assert compiled(COMPONENTS, lame).refused == ("r/0/metrics.json: no metric 'accuracy_mm'",)


def test_rows_are_those_of_the_table_s_methods_and_budgets() -> None:
    known = run(method="lora", budget="0.32%")  # the paper has none
    others = [run(method="houlsby"), run(method="lora", budget="0.3M"), run(method="lora", budget="r3")]
    table = compiled(COMPONENTS, known, *others)
    assert [(r.method, r.budget) for r in table.rows if not r.in_paper] == [("lora", "0.32%")]
    assert len(table.runs) == 1
    own = [run(method="prune_lora", budget="0.3M"), run(method="adalora", budget="0.3M")]  # adalora: Table 1 has it
    assert [(r.method, r.budget) for r in compiled(SCORES, *own).rows if not r.in_paper] == [("prune_lora", "0.3M")]
    transplant = run(method="lora_rank_pattern", budget="0.3M", task="cola")
    assert [r.method for r in compiled(CONTROLS, transplant).rows if not r.in_paper] == ["lora_rank_pattern"]


@pytest.mark.parametrize("method", VARIANTS)
def test_ablations_stay_out_of_the_tables_that_do_not_name_them(method: str) -> None:
    record = run(method=method, budget="0.3M", task="cola")
    assert compiled(table1.SPEC, record).runs == ()
    assert any(method in spec.methods for spec in (SCORES, COMPONENTS, MATRICES, CONTROLS))
    found = [(Path("r"), record)]
    scope = choose_scope(table1.SPEC, found, None, None, SCOPE)
    assert scope.backbone == table1.SPEC.backbone  # nor do they choose its backbone
    assert "0 of the paper's 96 cells done; 0 runs" in render_status([(table1.SPEC, scope)], found, now=0.0, host="h")


def test_own_methods_stay_in_table_1() -> None:
    assert compiled(table1.SPEC, run(method="rslora", budget="0.3M", task="cola")).runs


def test_commands_fill_the_empty_cells() -> None:
    end = "backbone=minilm data=local data.dir=DIR"
    methods = "prune_lora,adalora,adalora_sensitivity,adalora_magnitude"
    assert layout.commands_of(compiled(SCORES)) == [
        f"adalora-run -m task=sst2,rte,cola method={methods} budget=0.08%,0.16%,0.65% {end}"
    ]
    assert not any("lora_rank_pattern" in line for line in layout.commands_of(compiled(CONTROLS)))


@ALL
@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "html"])
def test_every_format(spec: Spec, form: str) -> None:
    method, budget = spec.methods[0], paper_rows(spec.paper_file)[0]["budget"]
    text = render.render(compiled(spec, run(method=method, budget=budget)), form)
    assert METHOD_NAMES[method] in text
    assert "50" in text
