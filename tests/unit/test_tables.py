"""reports/cells.py, spec.py, notes.py and tables/: which runs are in a cell, its figures, what a reader is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compiled import cell, compiled, figures, means, row
from fake_records import GLUE, make

from adalora_repro.cli.report import discover
from adalora_repro.config import catalog
from adalora_repro.config.words import lr_text
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import GPU_MEMORY, at_edge
from adalora_repro.reports import text
from adalora_repro.reports.cells import AVERAGE, Table, rows_wanted
from adalora_repro.reports.choose import choices
from adalora_repro.reports.notes import caption_of, commands_of, notes_of, warnings_of
from adalora_repro.reports.spec import Column, Scope, Spec, paper_rows
from adalora_repro.reports.status import paper_state, render_status
from adalora_repro.reports.tables.controls import SPEC as CONTROLS
from adalora_repro.reports.tables.table1 import COLUMNS, SPEC, all_average
from adalora_repro.reports.tables.table2 import SPEC as SQUAD
from adalora_repro.reports.tables.table3 import SPEC as SUMMARIES
from adalora_repro.reports.tables.table4 import SPEC as SCORES
from adalora_repro.reports.tables.table5 import SPEC as COMPONENTS
from adalora_repro.reports.tables.table14 import SPEC as MATRICES

SPECS = discover()
ABLATIONS = (SCORES, COMPONENTS, MATRICES, CONTROLS)
DEBERTA = {"method": 165_888, "head": 1_538, "total": 167_426, "at_init": 165_888, "backbone": 183_831_552}


def qa(exact: float, f1: float, **changes: Any) -> RunRecord:
    fields = {"task": "squad", "budget": "0.08%", "params": DEBERTA}
    return make({"exact": exact, "f1": f1}, **(fields | changes))


def summary(one: float, two: float, long: float, long_sum: float, **changes: Any) -> RunRecord:
    scores = {"rouge1": one, "rouge2": two, "rougeL": long, "rougeLsum": long_sum}
    return make(scores, **({"task": "cnn_dailymail", "budget": "0.13%"} | changes))


def sst2(**changes: Any) -> RunRecord:
    return make(**({"task": "sst2", "budget": "0.16%"} | changes))


# --- the paper's numbers ----------------------------------------------------------------------------------------------


def test_average_reproduces_every_row_of_the_paper() -> None:
    rows = paper_rows("table1_glue.csv")
    assert len(rows) == 12
    for printed in rows:
        scores = {name: float(printed[name]) for column in SPEC.columns for name in column.paper}
        assert all_average(scores) == pytest.approx(float(printed["avg"]), abs=0.01), printed["method"]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rows_are_the_papers_in_its_order_and_all_its_numbers_have_a_column(spec: Spec) -> None:
    """The numbers themselves: tests/golden/reports."""
    table, rows = compiled([], spec), paper_rows(spec.paper_file)
    budgets = list(dict.fromkeys(one["budget"] for one in rows))
    rows.sort(key=lambda one: budgets.index(one["budget"]))
    assert [(one.method, one.budget) for one in table.rows] == [(one["method"], one["budget"]) for one in rows]
    assert {one["method"] for one in rows} <= set(spec.methods or catalog.methods()) <= set(catalog.methods())
    known = {name for one in rows for name in one} - {"method", "budget", "params_label", "avg"}
    assert known <= {name for column in spec.columns for name in column.paper}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_percentages_of_squad_and_summaries_by_hand() -> None:
    """Mean of 86.0, 86.5, 86.1 is 86.2; deviations -0.2, 0.3, -0.1: sd sqrt(0.14 / 2) = 0.2646. R-L is ROUGE-Lsum."""
    pairs = enumerate(((86.0, 92.5), (86.5, 93.0), (86.1, 92.6)))
    worse = [qa(86.6, 92.0, lr=1e-3, seed=seed) for seed in range(3)]  # a better EM, a worse F1, which chooses
    table = compiled([*worse, *(qa(exact, f1, lr=5e-4, seed=seed) for seed, (exact, f1) in pairs)], SQUAD)
    exact, f1 = figures(table, "lora", "0.08%", "squad")
    assert (exact.mean, exact.sd, f1.mean) == (
        pytest.approx(86.2),
        pytest.approx(0.2646, abs=1e-4),
        pytest.approx(92.7),
    )
    runs = [summary(43.0, 20.5, 30.0, 40.0), summary(44.0, 20.7, 30.4, 41.0, seed=1)]
    table = compiled(runs, SUMMARIES)
    assert means(table, "lora", "0.13%", "cnn_dailymail") == pytest.approx([43.5, 20.6, 40.5])
    odd = compiled([runs[0], summary(50.0, 19.0, 40.0, 45.0, lr=2e-3)], SUMMARIES)
    assert cell(odd, "lora", "0.13%", "cnn_dailymail").runs[0].key["lr"] == 1e-3  # R-2 chooses


def test_mnli_of_table_5_is_the_mean_of_matched_and_mismatched() -> None:
    """Of each seed first: 80 and 82 make 81, 84 and 88 make 86; mean 83.5, sd |81 - 86| / sqrt(2)."""
    seeds = [
        sst2(task="mnli", method="svd_lora", score={"accuracy_m": m, "accuracy_mm": mm}, seed=seed)
        for seed, (m, mm) in enumerate(((0.80, 0.82), (0.84, 0.88)))
    ]
    (figure,) = figures(compiled(seeds, COMPONENTS), "svd_lora", "0.16%", "mnli")
    assert (figure.mean, figure.sd, figure.paper) == (pytest.approx(83.5), pytest.approx(5 / 2**0.5), 90.25)
    lame = sst2(task="mnli", score={"accuracy_m": 0.8})
    assert "no metric 'accuracy_mm'" in compiled([lame], COMPONENTS).refused[0]


def test_all_average_needs_all_tasks_and_sd_needs_the_same_seeds() -> None:
    everything = [make((50 + 10 * seed) / 100, task=task, seed=seed) for task in GLUE for seed in range(3)]

    def average(records: list[RunRecord]) -> tuple[float | None, float | None, float | None]:
        table = compiled(records)
        (figure,) = table.of(row(table), AVERAGE)
        return text.number(figure.mean), text.number(figure.sd), figure.paper

    assert average(everything) == (pytest.approx(60.0), pytest.approx(10.0), 88.15)
    assert average(everything[:-1]) == (pytest.approx((7 * 60 + 55) / 8), None, 88.15)
    assert average(everything[3:]) == (None, None, 88.15)


def test_a_column_may_be_of_other_figures_and_share_its_task() -> None:
    time = Column("cola", "Time", "s", ("time.train_s",), better="lower")
    entropy = Column("cola", "Ranks", "entropy", ("rank_entropy",), better="neither")
    spec = replace(SPEC, columns=(*COLUMNS[2:3], time, entropy), average=None)
    records = [make(0.5, seed=seed, time={"train_s": 10.0 + seed}) for seed in range(2)]
    records += [make(0.6, method="adalora", rank_pattern={"a": 1, "b": 1}, time={"train_s": 30.0})]
    table = compiled(records, spec)
    shown = {
        method: [text.number(table.of(row(table, method), i)[0].mean) for i in range(3)]
        for method in ("lora", "adalora")
    }
    assert shown == {"lora": [50.0, 10.5, None], "adalora": [60.0, 30.0, 1.0]}
    best = table.figures[table.figures.best]
    assert best[["method", "metric"]].values.tolist() == [["lora", "time.train_s"], ["adalora", "matthews_correlation"]]
    assert len(table.runs) == 3
    assert caption_of(table).endswith("; 3 records, seeds 0, 1.")  # each run once, and all on complete data
    part = make(data={"source": "local", "rows": {"train": 100, "validation": 1043}})
    assert caption_of(compiled([part])).endswith("are not comparable with the paper's.")


def test_best_and_second_of_each_column_are_by_the_figures_shown() -> None:
    table = compiled([make(0.70001, budget="1.2M"), make(0.70004), make(0.69, method="adalora")])
    marked = table.figures[table.figures.task == "cola"]
    assert marked[marked.best][["method", "budget"]].values.tolist() == [["lora", "1.2M"], ["lora", "0.3M"]]
    assert marked[marked.second].method.tolist() == ["adalora"]
    alone = compiled([make(0.7)]).figures
    assert not alone.best.any()


# --- the rule of a cell (its property test is test_selection.py) ------------------------------------------------------


def test_a_better_mean_of_fewer_seeds_and_an_edge_are_pointed_out() -> None:
    shown = cell(compiled([make(0.9, lr=2e-3), *(make(0.5, lr=1e-3, seed=seed) for seed in range(3))]))
    assert (shown.runs[0].key["lr"], shown.lrs, shown.seeds) == (1e-3, (1e-3, 2e-3), (0, 1, 2))
    assert shown.notes == [
        "lr 2e-3 has a higher mean with fewer seeds (1 of 3): not shown",
        "lr 1e-3 is the edge of its grid (1e-3 to 2e-3): widen it",
    ]
    grid = [1e-3, 2e-3, 5e-4]
    assert [at_edge(lr, grid) for lr in grid] == [False, True, True]
    assert not at_edge(1e-3, [1e-3])  # nothing was chosen


def test_settings_are_never_mixed_and_the_choice_is_told() -> None:
    short = [make(0.9, variant="short", total_steps=50, seed=seed) for seed in range(2)]
    few = [make(0.8, variant="few", settings={"train.epochs": 3, "optim.lr": 1e-3})]
    many = [make(0.6, variant="many", seed=seed, settings={"train.epochs": 6, "optim.lr": 1e-3}) for seed in range(2)]
    shown = cell(compiled([*short, *few, *many]))
    assert {run.key["variant"] for run in shown.runs} == {"many"}
    for words in ("shows setting many (100 steps)", "few (100 steps; train.epochs=3 not 6)", "short (50 steps"):
        assert words in shown.notes[0]


def test_a_seed_counts_once() -> None:
    table = compiled([make(0.5, hash="a"), make(0.9, hash="b"), make(0.7, seed=1)])
    assert (cell(table).seeds, means(table)) == ((0, 1), [pytest.approx(60.0)])
    assert "1 record of a seed that has one already" in cell(table).notes[0]


# --- which records count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed", "error": "x"},
        {"status": "running"},
        {"status": "cancelled"},
        {"max_examples": 10},
        {"backbone": "bart-large"},
        {"data": "sample"},
        {"protocol": "released"},
    ],
)
def test_what_is_not_finished_whole_and_in_scope_is_not_averaged_in(change: dict[str, Any]) -> None:
    table = compiled([make(0.5), make(0.9, seed=1, **change)])
    assert cell(table).seeds == (0,)
    assert len(table.runs) == 1


def test_partial_evaluations_on_request_but_never_before_whole_ones() -> None:
    scope = Scope("minilm", "local", include_partial=True)
    part = make(0.9, seed=1, max_examples=10, total_steps=500, variant="part")
    assert cell(compiled([part], scope=scope)).seeds == (1,)
    assert cell(compiled([part, make(0.5)], scope=scope)).seeds == (0,)


def test_best_reads_the_best_evaluation_and_skips_runs_without_one() -> None:
    best = {"metrics": {"matthews_correlation": 0.8}, "step": 50}
    table = compiled([make(0.5, best=best), make(0.9, seed=1)], scope=Scope("minilm", "local", select="best"))
    assert (means(table), cell(table).seeds, sum(table.left_out.values())) == ([pytest.approx(80.0)], (0,), 1)


@pytest.mark.parametrize(
    ("spec", "record", "why"),
    [
        (SPEC, make({"accuracy_m": 0.9}, task="mnli"), "no metric 'accuracy_mm'"),
        (SPEC, make(87.3), "matthews_correlation is 87.3, not a fraction of 1"),
        (SPEC, make(held_out=70.0), "held-out split: matthews_correlation is 70.0, not a fraction of 1"),
        (SQUAD, qa(100.5, 90.0), "exact is 100.5, not a percentage"),
        (SQUAD, qa(-0.1, 90.0), "exact is -0.1, not a percentage"),
        (SQUAD, qa(84.0, 87.0, task="squad_v2", primary_metric="f1_of_others"), "no metric 'f1_of_others'"),
        (SUMMARIES, summary(43.0, 101, 30.0, 40.0), "rouge2 is 101, not a percentage"),
    ],
)
def test_metrics_that_cannot_be_are_refused_by_name(spec: Spec, record: RunRecord, why: str) -> None:
    table = compiled([record], spec)
    assert not table.runs
    assert table.refused == (f"r/000/metrics.json: {why}",)
    assert len(warnings_of(table)) == 1


def test_a_method_that_the_paper_does_not_have_gets_a_row_in_its_budget_group() -> None:
    table = compiled([make(0.5, method="dora", budget="1.2M"), make(0.4, method="lora", budget="0.6M")])
    names = [one.name for one in table.rows]
    assert names[5:9] == ["AdaLoRA 1.2M", "DoRA 1.2M", "HAdapter (Houlsby) 0.6M", "PAdapter (Pfeiffer) 0.6M"]
    assert names[9] == "LoRA 0.6M"
    assert not row(table, "dora", "1.2M").in_paper
    assert not any("dora" in line for line in commands_of(table))


def test_rows_of_one_budget_stand_together_the_smallest_number_first() -> None:
    budgets = ("params300000", "params83000", "0.3M-params", "0.3M")
    table = compiled([make(0.5, method=method, budget=budget) for method in ("lora", "mine") for budget in budgets])
    others = ["0.3M-params", "params83000", "params300000"]
    expected = [("mine", "0.3M"), *((method, budget) for budget in others for method in ("lora", "mine"))]
    assert [(one.method, one.budget) for one in table.rows if not one.in_paper] == expected


def test_methods_of_one_label_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "method", lambda name: catalog.MethodEntry(name, "", "LoRA", "other"))
    table = compiled([make(0.5), make(0.6, method="twin")])
    assert [cell.key["method"] for cell in choices(table)] == ["lora", "twin"]
    assert sum(note.startswith("Shown for LoRA 0.3M:") for note in notes_of(table)) == 2


def test_rows_are_those_of_the_table_s_methods_and_budgets() -> None:
    def beyond(spec: Spec, *records: RunRecord) -> list[tuple[str, str]]:
        return [(one.method, one.budget) for one in compiled(records, spec).rows if not one.in_paper]

    others = [sst2(method="houlsby"), sst2(method="lora", budget="0.3M"), sst2(method="lora", budget="r3")]
    assert beyond(COMPONENTS, sst2(method="lora", budget="0.32%"), *others) == [("lora", "0.32%")]
    own = [sst2(method="prune_lora", budget="0.3M"), sst2(method="adalora", budget="0.3M")]  # adalora: Table 1 has it
    assert beyond(SCORES, *own) == [("prune_lora", "0.3M")]
    transplant = make(method="lora_rank_pattern")
    assert beyond(CONTROLS, transplant) == [("lora_rank_pattern", "0.3M")]


VARIANTS = [name for name, entry in catalog.methods().items() if entry.variant]


@pytest.mark.parametrize("method", VARIANTS)
def test_ablations_stay_out_of_the_tables_that_do_not_name_them(method: str) -> None:
    record = make(method=method)
    assert compiled([record]).runs == ()
    assert any(method in spec.methods for spec in ABLATIONS)
    assert not rows_wanted(SPEC)(record.key)  # nor do they choose its backbone
    assert "0 of the paper's 96 cells done; 0 runs" in render_status(
        [compiled([record])], [(Path("r"), record)], 0.0, "h"
    )


# --- what a reader is told --------------------------------------------------------------------------------------------


def full_data(task: str, **changes: Any) -> RunRecord:
    rows = {"cola": {"train": 8551, "validation": 1043}, "rte": {"train": 2390, "holdout": 100, "validation": 277}}[
        task
    ]
    changes = {"data": {"rows": rows}, "settings": {"train.epochs": {"cola": 25, "rte": 50}[task]}} | changes
    return make(0.7, task=task, backbone="deberta-v3-base", **changes)


def test_the_papers_numbers_stand_beside_ours_only_in_its_setting() -> None:
    scope = Scope("deberta-v3-base", "local")
    table = compiled([full_data("cola"), full_data("rte")], scope=scope)
    assert table.comparable
    assert figures(table)[0].difference == pytest.approx(70.0 - 68.71)
    assert not any("not shown here" in note for note in warnings_of(table))
    for other in ({"data": {"rows": {"train": 100, "validation": 1043}}}, {"settings": {"train.max_steps": 10}}):
        table = compiled([full_data("cola", **other)], scope=scope)
        assert not table.comparable
        assert text.number(figures(table)[0].difference) is None
        assert sum("not shown here" in note for note in warnings_of(table)) == 1
    assert not compiled([make()]).comparable  # another backbone
    assert compiled([]).comparable is False
    assert compiled([], scope=scope).comparable


def test_state_of_the_paper() -> None:
    specs = list(SPECS.values())
    records = [
        full_data("cola"),
        full_data("cola", seed=1),
        full_data("rte"),
        make(),
        full_data("cola", status="failed"),
        full_data("cola", method="adalora", protocol="released"),
        full_data("cola", method="adalora", settings={"train.epochs": 1}),
    ]
    state = paper_state(specs, [(Path(str(i)), record) for i, record in enumerate(records)])
    # CoLA and RTE of LoRA at 0.3M are cells of tables 1 and 14
    assert (state.filled, state.cells, state.runs, state.counted) == (4, 236, 6, 3)
    assert str(state).startswith("4 of the paper's 236 cells are filled in the paper's setting")
    assert str(state).endswith("; 3 finished runs in other settings")


Told = Callable[[Table], list[str]]


@pytest.mark.parametrize(
    ("records", "told", "words"),
    [
        ([make()], notes_of, "Rows of the local data: CoLA train 8,551, validation 1,043."),
        ([make(data={"source": "local"})], notes_of, "Rows of the local data: CoLA not recorded."),
        ([make(), make(seed=1, data={"rows": {"train": 5}})], notes_of, "CoLA train 5 or train 8,551, validation"),
        ([make(), make(method="adalora", total_steps=40)], warnings_of, "CoLA: rows differ in total_steps: 100, 40."),
        ([make(settings={"data.holdout": 5}), make(method="adalora")], notes_of, "differ in data.holdout: 5, unset"),
        ([make(), make(method="full", memory={"of": GPU_MEMORY})], notes_of, "CoLA: rows differ in device: CPU, GPU."),
        ([make(), make(seed=1, status="failed")], notes_of, "Not in the table: 1 record failed."),
        ([make(data={"rows": {}, "skipped": {"train": 2}})], notes_of, "2 bad ones of train left out"),
        ([make(degenerate=True)], warnings_of, "! A run gave every example the same prediction: LoRA 0.3M CoLA."),
        ([make()], warnings_of, "deberta-v3-base"),
    ],
)
def test_notes_say_what_a_reader_must_know(records: list[RunRecord], told: Told, words: str) -> None:
    assert any(words in note for note in told(compiled(records))), told(compiled(records))


def test_numbers_as_people_write_them() -> None:
    counts = (184_423_682, 1_327_104, 331_776, 102_912, 82_944)
    assert [text.count_text(n) for n in counts] == ["184M", "1.33M", "0.33M", "0.10M", "82.9K"]
    ranges = ([], [331_776, 331_920], [310_000, 340_000])
    assert [text.extent(values) for values in ranges] == [text.NONE, "0.33M", "0.31M\N{EN DASH}0.34M"]
    assert text.extent([0.00090, 0.00091], ".3%") == "0.090%\N{EN DASH}0.091%"
    assert [lr_text(lr) for lr in (5e-4, 1.2e-3, 0.1, 8e-5)] == ["5e-4", "1.2e-3", "1e-1", "8e-5"]
    assert [text.signed(x) for x in (-0.001, 0.004, 1.0, -0.35)] == ["+0.00", "+0.00", "+1.00", "-0.35"]
    assert [text.seeds_text(s) for s in ([0, 1, 2], [4], [0, 1], [0, 2, 5])] == ["0 to 2", "4", "0, 1", "0, 2, 5"]
