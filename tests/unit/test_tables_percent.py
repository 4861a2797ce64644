"""Tables 2 and 3: percentages, shares of the backbone, notes; what all tables share is in ``test_tables.py``."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from fake_records import make

from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports import layout, render
from adalora_repro.reports.base import METHOD_NAMES, Scope, Spec, Table, compile_table, paper_rows
from adalora_repro.reports.tables import table1
from adalora_repro.reports.tables.table2 import SPEC as SQUAD
from adalora_repro.reports.tables.table3 import SPEC as SUMMARIES

DEBERTA = {"method": 165_888, "head": 1_538, "total": 167_426, "at_init": 165_888, "backbone": 183_831_552}
BART = {"method": 540_672, "head": 0, "total": 540_672, "at_init": 540_672, "backbone": 406_291_456}
BOTH = pytest.mark.parametrize("spec", [SQUAD, SUMMARIES], ids=lambda spec: spec.name)


def compiled(spec: Spec, *records: RunRecord) -> Table:
    found = [(Path(f"r/{i}/metrics.json"), record) for i, record in enumerate(records)]
    return compile_table(spec, found, Scope(spec.backbone, "local"))


def qa(exact: float, f1: float, **changes: Any) -> RunRecord:
    fields = {"task": "squad", "budget": "0.08%", "backbone": "deberta-v3-base", "params": DEBERTA}
    return make({"exact": exact, "f1": f1}, **(fields | changes))


def summary(one: float, two: float, long: float, long_sum: float, **changes: Any) -> RunRecord:
    scores = {"rouge1": one, "rouge2": two, "rougeL": long, "rougeLsum": long_sum}
    fields = {"task": "cnn_dailymail", "budget": "0.13%", "backbone": "bart-large", "params": BART}
    return make(scores, **(fields | changes))


def squad_table() -> Table:
    """Three seeds of LoRA at two learning rates, of which the second has the better F1 and the worse EM."""
    first = [qa(86.6, 92.0, lr=1e-3, seed=seed) for seed in range(3)]
    pairs = enumerate(((86.0, 92.5), (86.5, 93.0), (86.1, 92.6)))
    second = [qa(exact, f1, lr=5e-4, seed=seed) for seed, (exact, f1) in pairs]
    full = DEBERTA | {"method": 183_831_552, "total": 183_833_090}
    return compiled(SQUAD, *first, *second, qa(85.0, 92.0, method="full", budget="full", params=full))


def summaries_table() -> Table:
    return compiled(SUMMARIES, summary(43.0, 20.5, 30.0, 40.0), summary(44.0, 20.7, 30.4, 41.0, seed=1))


def grid(table: Table, name: str) -> dict[str, list[str]]:
    """The markdown lines of one row by label, without bold; the first is keyed ``ours`` or ``paper``."""
    lines = [line for line in render.render(table, "markdown").splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("*", "") for cell in line.strip("|").split("|")] for line in lines]
    start = next(i for i, row in enumerate(cells) if row[0] == name)
    end = next((i for i, row in enumerate(cells) if i > start and row[0]), len(cells))
    return {row[1]: row[2:] for row in cells[start:end]}


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_row_of_table_2() -> None:
    """Mean of 86.0, 86.5, 86.1 is 86.2; deviations -0.2, 0.3, -0.1: sd sqrt(0.14 / 2) = 0.2646; F1 likewise."""
    assert grid(squad_table(), "LoRA 0.08%") == {
        "ours": ["0.17M", "0.090%", "0.17M", "86.20‡/92.70‡", "–"],  # the best, of two rates; full fine-tuning had one
        "± sd (seeds)": ["", "", "", "0.26/0.26 (3)", ""],
        "paper": ["", "0.08%", "", "86.4/92.8", "84.7/87.5"],
        "difference": ["", "", "", "-0.20/-0.10", ""],
    }
    assert grid(squad_table(), "Full FT")["ours"] == ["184M", "100.000%", "184M", "85.00/92.00", "–"]
    assert grid(squad_table(), "Full FT")["paper"] == ["", "100%", "", "86.0/92.7", "85.4/88.4"]
    assert grid(squad_table(), "AdaLoRA 0.65%") == {"paper": ["", "0.65%", "", "87.6/93.7", "86.0/88.9"]}


def test_a_row_of_table_3() -> None:
    """R-L is ROUGE-Lsum: 40.5, not 30.2. Two seeds: sd = |a - b| / sqrt(2)."""
    assert grid(summaries_table(), "LoRA 0.13%") == {
        "ours": ["0.54M", "0.133%", "0.54M", "–", "43.50/20.60/40.50"],
        "± sd (seeds)": ["", "", "", "", "0.71/0.14/0.71 (2)"],
        "paper": ["", "0.13%", "", "42.81/19.68/34.73", "43.68/20.63/40.71"],
        "difference": ["", "", "", "", "-0.18/-0.03/-0.21"],
    }


# --- the paper's rows -------------------------------------------------------------------------------------------------


@BOTH
def test_every_number_of_the_paper_is_in_its_row_as_printed(spec: Spec) -> None:
    table = compiled(spec)
    rows = paper_rows(spec.paper_file)
    assert {name for row in rows for name in row} - {"method", "budget"} == {
        name for column in spec.columns for name in column.paper
    }
    assert len(table.rows) == len(rows) == {"table2": 17, "table3": 9}[spec.name]
    for row in rows:
        name = METHOD_NAMES[row["method"]] + ("" if row["method"] == row["budget"] else f" {row['budget']}")
        label = "100%" if row["method"] == "full" else row["budget"]
        scores = ["/".join(row[name] for name in column.paper) for column in spec.columns]
        assert grid(table, name) == {"paper": ["", label, "", *scores]}


def test_order_of_rows_and_headings() -> None:
    heading = [" ".join(filter(None, pair)) for pair in layout.sheet_of(compiled(SQUAD)).heading]
    assert heading == ["# Params", "share of backbone", "with head", "SQuADv1.1 EM/F1", "SQuADv2.0 EM/F1"]
    heading = [" ".join(filter(None, pair)) for pair in layout.sheet_of(compiled(SUMMARIES)).heading]
    assert heading[3:] == ["XSum R-1/2/Lsum", "CNN/DailyMail R-1/2/Lsum"]
    budgets = list(dict.fromkeys(row.budget for row in compiled(SQUAD).rows))
    assert budgets == ["full", "0.08%", "0.16%", "0.32%", "0.65%"]
    assert [row.method for row in compiled(SQUAD).rows[1:5]] == ["houlsby", "pfeiffer", "lora", "adalora"]
    budgets = list(dict.fromkeys(row.budget for row in compiled(SUMMARIES).rows))
    assert budgets == ["full", "2.20%", "1.10%", "0.26%", "0.13%"]


def test_rows_of_ours_beside_the_papers() -> None:
    adapter = summary(43.0, 20.5, 30.0, 40.0, method="houlsby")
    table = compiled(SUMMARIES, adapter, summary(43.0, 20.5, 30.0, 40.0, method="bitfit", budget="bitfit"))
    assert [row.name for row in table.rows if not row.in_paper] == ["HAdapter (Houlsby) 0.13%", "BitFit"]
    assert sum(row.in_paper for row in table.rows) == 9
    assert set(grid(table, "HAdapter (Houlsby) 0.13%")) == {"ours", "± sd (seeds)"}


def test_a_papers_file_without_labels_is_still_the_papers() -> None:
    """``params_label`` is what is printed, not what makes a row one of the paper's."""
    spec = Spec("t", "T", SQUAD.paper_file, "deberta-v3-base", SQUAD.columns)
    assert all(row.in_paper for row in compiled(spec).rows)


@BOTH
def test_commands_for_the_empty_cells(spec: Spec) -> None:
    tasks = ",".join(column.task for column in spec.columns)
    methods, budgets = {
        "table2": ("houlsby,pfeiffer,lora,adalora", "0.08%,0.16%,0.32%,0.65%"),
        "table3": ("lora,adalora", "2.20%,1.10%,0.26%,0.13%"),
    }[spec.name]
    end = f"backbone={spec.backbone} data=local data.dir=DIR"
    assert layout.commands_of(compiled(spec)) == [
        f"adalora-run -m task={tasks} method=full {end}",
        f"adalora-run -m task={tasks} method={methods} budget={budgets} {end}",
    ]


# --- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 100.0), (0.5, 0.9)])
def test_percentages_are_taken_as_they_are(low: float, high: float) -> None:
    value = compiled(SQUAD, qa(low, high)).rows[3].cells[0].values
    assert [v.mean for v in value] == [low, high]


@pytest.mark.parametrize("wrong", [101, 100.5, -0.1])
def test_what_is_no_percentage_is_refused(wrong: float) -> None:
    table = compiled(SQUAD, qa(wrong, 90.0), qa(90.0, 91.0, seed=1))
    assert table.refused == (f"r/0/metrics.json: exact is {wrong!r}, not a percentage",)
    assert [run.key["seed"] for run in table.runs] == [1]
    assert "rouge2 is" in compiled(SUMMARIES, summary(43.0, wrong, 30.0, 40.0)).refused[0]


def test_glue_stays_in_fractions() -> None:
    table = compile_table(table1.SPEC, [(Path("r"), make(87.3)), (Path("s"), make(0.873))], Scope("minilm", "local"))
    assert table.refused == ("r: matthews_correlation is 87.3, not a fraction of 1",)
    assert [run.scores["matthews_correlation"] for run in table.runs] == [pytest.approx(87.3)]


def test_the_primary_metric_must_be_there_and_a_percentage() -> None:
    """F1 chooses the learning rate; R-2 that of summaries, which no heading says."""
    assert {run.key["lr"] for run in squad_table().rows[3].runs} == {5e-4}
    many = summary(50.0, 20.0, 40.0, 45.0, lr=1e-3), summary(40.0, 21.0, 30.0, 35.0, lr=2e-3)
    assert {run.key["lr"] for run in compiled(SUMMARIES, *many).runs} == {2e-3}
    odd = qa(50.0, 60.0, primary_metric="best_f1")
    assert "no metric 'best_f1'" in compiled(SQUAD, odd).refused[0]


# --- further metrics --------------------------------------------------------------------------------------------------


def csv_rows(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render.render(table, "csv"))))


def test_csv_has_both_rouge_l_and_the_counts_of_a_share() -> None:
    rows = csv_rows(summaries_table())
    ours = [row for row in rows if row["mean"]]
    figures = {row["metric"]: (row["mean"], row["paper"]) for row in ours}
    assert figures == {
        "rouge1": ("43.5", "43.68"),
        "rouge2": ("20.6", "20.63"),
        "rougeLsum": ("40.5", "40.71"),
        "rougeL": ("30.2", ""),
    }
    assert len(rows) == 9 * 2 * 3 + 1
    assert {(row["params_method_min"], row["params_backbone_max"], row["params_paper"]) for row in ours} == {
        ("540672", "406291456", "0.13%")
    }


def test_csv_has_the_best_threshold_of_squad_2() -> None:
    whole = {"exact": 84.0, "f1": 87.0, "best_exact": 84.5, "best_f1": 87.5, "best_f1_thresh": -1.5}
    fields: dict[str, Any] = {"task": "squad_v2", "budget": "0.08%", "backbone": "deberta-v3-base"}
    of_v2 = {row["metric"]: row["mean"] for row in csv_rows(compiled(SQUAD, make(whole, **fields))) if row["mean"]}
    assert of_v2 == {"exact": "84.0", "f1": "87.0", "best_exact": "84.5", "best_f1": "87.5"}
    some = make({"exact": 84.0, "f1": 87.0}, seed=1, **fields)  # not every seed has it: no mean over a part
    of_v2 = {
        row["metric"]: row["mean"] for row in csv_rows(compiled(SQUAD, make(whole, **fields), some)) if row["mean"]
    }
    assert set(of_v2) == {"exact", "f1"}
    odd = compiled(SQUAD, make(whole | {"best_f1": 187.5}, **fields))
    assert odd.refused == ("r/0/metrics.json: best_f1 is 187.5, not a percentage",)


# --- shares -----------------------------------------------------------------------------------------------------------


def test_shares_differ_between_tasks_and_may_be_unknown() -> None:
    more = DEBERTA | {"method": 167_000}
    table = compiled(SQUAD, qa(80.0, 90.0), qa(80.0, 90.0, task="squad_v2", params=more))
    assert grid(table, "LoRA 0.08%")["ours"][:2] == ["0.17M", "0.090%–0.091%"]
    for params in ({}, {"method": 5}, {"method": 5, "backbone": 0}):
        assert grid(compiled(SQUAD, qa(80.0, 90.0, params=params)), "LoRA 0.08%")["ours"][1] == layout.NONE


def test_table_1_has_counts_alone() -> None:
    table = compile_table(table1.SPEC, [], Scope("minilm", "local"))
    assert [top for top, _ in layout.sheet_of(table).heading[:3]] == ["# Params", "with", "MNLI"]
    assert "Shares:" not in render.render(table, "markdown")
    assert grid(table, "LoRA 0.3M")["paper"][:2] == ["0.33M", ""]


def test_shares_in_the_note_on_budgets_are_those_of_the_arithmetic() -> None:
    """The counts of plan.py's adapters and ranks, written out: d = 4, 8, 16, 32 and 8 to 64, r = 1 to 8."""
    note = next(note for note in SQUAD.notes if note.startswith("Budgets"))
    counts = {
        "(": [147_456 * r for r in (1, 2, 4, 8)],
        "Houlsby has ": [24 * (2 * 768 * d + d + 768) for d in (4, 8, 16, 32)],
        "Pfeiffer ": [12 * (2 * 768 * d + d + 768) for d in (8, 16, 32, 64)],
        "LoRA has ": [165_888 * r for r in (1, 2, 4, 8)],
    }
    for before, of in counts.items():
        shares = ", ".join(f"{100 * count / DEBERTA['backbone']:.3f}" for count in of)
        assert f"{before}{shares}%" in note
    ratios = [counts["LoRA has "][3] / counts[name][3] for name in ("Houlsby has ", "Pfeiffer ")]
    assert [f"{ratio:.2f}" for ratio in ratios] == ["1.11", "1.12"]
    note = next(note for note in SUMMARIES.notes if note.startswith("Labels"))
    assert [f"{100 * 540_672 * r / BART['backbone']:.3f}" for r in (1, 2, 8, 16)] == re.findall(r"\d\.\d{3}", note)


# --- notes and formats ------------------------------------------------------------------------------------------------

SAID = {
    "table2": ("task.null_threshold, 0 if", "best_f1", "does not say which", "11 to 12% more", "one decimal"),
    "table3": ("ROUGE-Lsum", "rougeL is in", "BART paper", "validation split", "19.89", "0.26% row", "2.129"),
}


@BOTH
@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_notes_headings_and_budgets_in_every_format(spec: Spec, form: str) -> None:
    table = squad_table() if spec is SQUAD else summaries_table()
    text = render.render(table, form)
    plain = text.replace(r"\%", "%").replace(r"\_", "_").replace(r"\#", "#").replace(r"\allowbreak{}", "")
    for words in SAID[spec.name]:
        assert words in plain, words
    for column in spec.columns:
        assert column.heading in plain
        assert column.unit in plain
    for row in table.rows:
        assert row.name in plain
    for line in layout.commands_of(table):
        assert line in plain
    assert "Rule of a cell" in plain


@BOTH
def test_latex_has_no_live_percent_sign_and_whole_rows(spec: Spec) -> None:
    """A bare percent sign would comment out the end of its row."""
    table = squad_table() if spec is SQUAD else summaries_table()
    lines = render.render(table, "latex").splitlines()
    live = [line for line in lines if re.search(r"(?<!\\)%", line)]
    assert [line[:8] for line in live] == ["% needs ", r"\resizeb"]
    rows = [line for line in lines if line.endswith(r" \\")]
    assert {len(re.findall("(?<!\\\\)&", row)) for row in rows} == {6}
    assert r"LoRA 0.08\% & ours" in "\n".join(rows) or r"LoRA 0.13\% & ours" in "\n".join(rows)


def test_generated_text_is_the_data_of_no_paper() -> None:
    record = qa(80.0, 90.0, data="sample")
    table = compile_table(SQUAD, [(Path("r"), record)], Scope("deberta-v3-base", "sample"))
    assert "NOT the paper's data" in layout.caption_of(table)
    assert "GLUE" not in render.render(table, "markdown")


EVALUATED = [
    ({}, {}, "SQuADv2.0: evaluated with task.max_length 384, task.stride 128, task.max_answer_length 30, task.null_"),
    ({"task.null_threshold": -8.0}, {}, "task.null_threshold 0.0 or -8.0."),
    (
        {},
        {"skipped": {"validation": 17}},
        "SQuADv2.0: bad rows were left out (data.skip_invalid), at most validation 17.",
    ),
]


@pytest.mark.parametrize(("settings", "data", "note"), EVALUATED, ids=["defaults", "threshold", "skipped"])
def test_how_the_runs_were_evaluated_is_told(settings: dict[str, Any], data: dict[str, Any], note: str) -> None:
    known = {"task.max_length": 384, "task.stride": 128, "task.max_answer_length": 30, "task.null_threshold": 0.0}
    first, second = (qa(80.0, 90.0, task="squad_v2", method=method) for method in ("lora", "adalora"))
    first.settings |= known
    second.settings |= known | settings
    second.data |= data
    assert note in render.render(compiled(SQUAD, first, second), "markdown").replace("\\_", "_")
