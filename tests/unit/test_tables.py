"""tables/: the rule of a cell, the numbers, and that every format says the same and escapes what records say."""

from __future__ import annotations

import csv
import io
import os
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adalora_repro.reports.base import Cell, Scope, Table, Value, choose_scope, compile_table, mean_sd, paper_rows
from fake_records import GLUE, make
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.records.lock import Lock
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import at_edge
from adalora_repro.reports import base, layout, render, status
from adalora_repro.reports.tables.table1 import SPEC, all_average

SCOPE = Scope("minilm", "local")


def compiled(records: Sequence[RunRecord], scope: Scope = SCOPE) -> Table:
    return compile_table(SPEC, [(Path(f"r/{i}/metrics.json"), record) for i, record in enumerate(records)], scope)


def cell(table: Table, method: str = "lora", budget: str = "0.3M", task: str = "cola") -> Cell:
    row = next(row for row in table.rows if (row.method, row.budget) == (method, budget))
    return row.cells[[column.task for column in SPEC.columns].index(task)]


def lr_of(shown: Cell) -> float:
    return float(shown.runs[0].key["lr"])


# --- the paper's numbers ----------------------------------------------------------------------------------------------


def test_average_reproduces_every_row_of_the_paper() -> None:
    rows = paper_rows("table1_glue.csv")
    assert len(rows) == 12
    for row in rows:
        scores = {name: float(row[name]) for column in SPEC.columns for name in column.paper}
        assert all_average(scores) == pytest.approx(float(row["avg"]), abs=0.01), row["method"]


def test_rows_and_columns_are_the_papers() -> None:
    table = compiled([])
    assert [row.name for row in table.rows] == [
        "Full FT",
        "BitFit",
        "HAdapter (Houlsby) 1.2M",
        "PAdapter (Pfeiffer) 1.2M",
        "LoRA 1.2M",
        "AdaLoRA 1.2M",
        "HAdapter (Houlsby) 0.6M",
        "PAdapter (Pfeiffer) 0.6M",
        "HAdapter (Houlsby) 0.3M",
        "PAdapter (Pfeiffer) 0.3M",
        "LoRA 0.3M",
        "AdaLoRA 0.3M",
    ]
    headings = [" ".join(filter(None, pair)) for pair in layout.sheet_of(table).heading]
    assert headings[2:] == [
        "MNLI m/mm",
        "SST-2 Acc",
        "CoLA Mcc",
        "QQP Acc/F1",
        "QNLI Acc",
        "RTE Acc",
        "MRPC Acc",
        "STS-B Corr",
        "All Ave.",
    ]


def test_all_files_of_the_papers_numbers_are_readable() -> None:
    names = sorted(path.name for path in (Path(base.__file__).parent / "tables" / "paper").glob("*.csv"))
    assert len(names) == 9
    for name in names:
        rows = paper_rows(name)
        assert rows
        assert all(None not in row and None not in row.values() for row in rows), name


# --- statistics -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_mean_and_sample_sd_are_numpys(values: list[float]) -> None:
    mean, sd = mean_sd(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) == 1:
        assert sd is None
    else:
        assert sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_cell_is_in_percent_with_the_papers_number_and_the_difference() -> None:
    shown = cell(compiled([make(score, seed=seed) for seed, score in enumerate((0.70, 0.71, 0.69))]))
    value = shown.values[0]
    assert value.mean == pytest.approx(70.0)
    assert value.sd == pytest.approx(1.0)
    assert value.paper == 68.71
    assert value.difference == pytest.approx(1.29)
    assert shown.seeds == (0, 1, 2)


# --- the rule of a cell -----------------------------------------------------------------------------------------------


def test_learning_rate_is_the_one_with_the_best_mean_not_the_best_run() -> None:
    records = [make(score, lr=1e-3, seed=seed) for seed, score in enumerate((0.60, 0.60))]
    records += [make(score, lr=2e-3, seed=seed) for seed, score in enumerate((0.80, 0.30))]
    shown = cell(compiled(records))
    assert lr_of(shown) == 1e-3
    assert shown.lrs == (1e-3, 2e-3)
    assert shown.values[0].mean == pytest.approx(60.0)


def test_more_seeds_come_before_a_better_mean_and_ties_go_to_the_smaller_learning_rate() -> None:
    one, two = make(0.5, lr=1e-3), [make(0.5, lr=2e-3, seed=seed) for seed in (0, 1)]
    assert lr_of(cell(compiled([one, *two]))) == 2e-3
    assert lr_of(cell(compiled([make(0.9, lr=1e-3), *two]))) == 2e-3
    assert lr_of(cell(compiled([make(0.5, lr=2e-3), make(0.5, lr=1e-3)]))) == 1e-3


def test_a_better_mean_of_fewer_seeds_is_pointed_out() -> None:
    shown = cell(compiled([make(0.9, lr=2e-3), *(make(0.5, lr=1e-3, seed=seed) for seed in range(3))]))
    assert lr_of(shown) == 1e-3
    assert shown.notes == (
        "lr 2e-3 has a higher mean with fewer seeds (1 of 3): not shown",
        "lr 1e-3 is the edge of its grid (1e-3 to 2e-3): widen it",
    )


def test_the_edge_of_a_grid_is_its_smallest_or_largest_learning_rate() -> None:
    grid = [1e-3, 2e-3, 5e-4]
    assert [at_edge(lr, grid) for lr in grid] == [False, True, True]
    assert not at_edge(1e-3, [1e-3])  # nothing was chosen


def test_primary_metric_decides_where_there_are_two() -> None:
    accurate = make({"accuracy": 0.9, "f1": 0.1}, task="qqp", lr=1e-3)
    other = make({"accuracy": 0.8, "f1": 0.9}, task="qqp", lr=2e-3)
    shown = cell(compiled([other, accurate]), task="qqp")
    assert [value.mean for value in shown.values] == pytest.approx([90.0, 10.0])


def test_variants_are_never_mixed_and_the_choice_is_told() -> None:
    short = [make(0.9, variant="short", total_steps=50, seed=seed) for seed in range(2)]
    few = [make(0.8, variant="few", settings={"train.epochs": 3, "optim.lr": 1e-3})]
    many = [make(0.6, variant="many", seed=seed, settings={"train.epochs": 6, "optim.lr": 1e-3}) for seed in range(2)]
    shown = cell(compiled([*short, *few, *many]))
    assert {run.key["variant"] for run in shown.runs} == {"many"}
    assert "shows setting many (100 steps)" in shown.notes[0]
    assert "few (100 steps; train.epochs=3 not 6)" in shown.notes[0]
    assert "short (50 steps" in shown.notes[0]


def test_runs_from_before_grouping_was_a_setting_are_told_apart_by_what_they_did() -> None:
    padded, longest = ({"train.padding": padding} for padding in ("max_length", "longest"))
    drawn = make(0.9, variant="drawn", settings=longest | {"train.group_by_length": False})
    (grouped,) = cell(compiled([drawn, make(0.8, variant="grouped", settings=longest)])).notes
    assert "grouped (100 steps; train.group_by_length=True not False)" in grouped
    (neither,) = cell(compiled([drawn, make(0.8, variant="padded", settings=padded)])).notes
    assert "padded (100 steps; train.padding=max_length not longest)" in neither


def test_settings_are_ordered_by_seeds_steps_and_rates_and_never_by_score() -> None:
    def shown(*records: RunRecord) -> str:
        return str(cell(compiled([make(0.5, variant="b"), *records])).runs[0].key["variant"])

    assert shown(make(0.6, variant="c"), make(0.4, variant="a")) == "a"  # the first by name
    assert shown(make(0.4, variant="c"), make(0.4, variant="c", lr=2e-3), make(0.6, variant="a")) == "c"
    assert (
        shown(make(0.1, variant="d", total_steps=200), make(0.9, variant="a"), make(0.9, variant="a", lr=2e-3)) == "d"
    )
    assert shown(make(0.1, variant="e"), make(0.1, variant="e", seed=1), make(0.9, variant="d", total_steps=200)) == "e"


runs = st.lists(
    st.builds(
        lambda score, lr, seed, variant, steps: make(
            score, lr=lr, seed=seed, variant=variant, total_steps=steps, hash=f"{variant}{steps}"
        ),
        st.sampled_from([0.1, 0.2, 0.3, 0.5]),
        st.sampled_from([1e-4, 5e-4, 1e-3]),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.sampled_from([100, 200]),
    ),
    max_size=14,
    unique_by=lambda record: tuple(record.key[name] for name in ("lr", "seed", "hash")),
)


@given(runs, st.randoms(use_true_random=False))
def test_order_of_records_changes_nothing(records: list[RunRecord], order: random.Random) -> None:
    paths = [(Path(f"{record.key['hash']}-{record.key['lr']}-{record.key['seed']}"), record) for record in records]
    mixed = order.sample(paths, len(paths))
    assert compile_table(SPEC, paths, SCOPE) == compile_table(SPEC, mixed, SCOPE)


def test_a_seed_counts_once() -> None:
    shown = cell(compiled([make(0.5, hash="a"), make(0.9, hash="b"), make(0.7, seed=1)]))
    assert shown.seeds == (0, 1)
    assert shown.values[0].mean == pytest.approx(60.0)
    assert "1 record(s) repeat a seed" in shown.notes[0]


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
    assert cell(compiled([part], scope)).seeds == (1,)
    assert cell(compiled([part, make(0.5)], scope)).seeds == (0,)


def test_best_reads_the_best_evaluation_and_skips_runs_without_one() -> None:
    best = {"metrics": {"matthews_correlation": 0.8}, "step": 50}
    table = compiled([make(0.5, best=best), make(0.9, seed=1)], Scope("minilm", "local", select="best"))
    assert cell(table).values[0].mean == pytest.approx(80.0)
    assert cell(table).seeds == (0,)
    assert sum(table.left_out.values()) == 1


@pytest.mark.parametrize(
    ("score", "why"), [({"accuracy_m": 0.9}, "no metric 'accuracy_mm'"), (87.3, "not a fraction of 1")]
)
def test_metrics_that_cannot_be_are_refused_by_name(score: Any, why: str) -> None:
    table = compiled([make(score, task="mnli")])
    assert not table.runs
    assert why in table.refused[0]
    assert "r/0/metrics.json" in table.refused[0]


def test_a_method_that_the_paper_does_not_have_gets_a_row_in_its_budget_group() -> None:
    table = compiled([make(0.5, method="dora", budget="1.2M"), make(0.4, method="lora", budget="0.6M")])
    names = [row.name for row in table.rows]
    assert names[5:9] == ["AdaLoRA 1.2M", "dora 1.2M", "HAdapter (Houlsby) 0.6M", "PAdapter (Pfeiffer) 0.6M"]
    assert names[9] == "LoRA 0.6M"
    assert cell(table, "dora", "1.2M").values == (Value(50.0, best=True),)
    assert not any("dora" in line for line in layout.commands_of(table))


def test_all_average_needs_all_tasks_and_sd_needs_the_same_seeds() -> None:
    everything = [make((50 + 10 * seed) / 100, task=task, seed=seed) for task in GLUE for seed in range(3)]

    def average(records: list[RunRecord]) -> Value:
        value = next(row for row in compiled(records).rows if row.name == "LoRA 0.3M").average
        assert value is not None
        return value

    assert average(everything).mean == pytest.approx(60.0)
    assert average(everything).sd == pytest.approx(10.0)
    assert average(everything[:-1]).sd is None
    assert average(everything[:-1]).mean == pytest.approx((7 * 60 + 55) / 8)
    assert average(everything[3:]).mean is None
    assert average([]).paper == 88.15


def test_best_of_each_column_is_by_the_figures_shown() -> None:
    table = compiled([make(0.70001, budget="1.2M"), make(0.70004), make(0.69, method="adalora")])
    assert cell(table).values[0].best
    assert cell(table, budget="1.2M").values[0].best
    assert not cell(table, "adalora").values[0].best
    assert not cell(compiled([make(0.7)])).values[0].best  # the only one of a column is no best


# --- what is chosen for the reader ------------------------------------------------------------------------------------


def scope_of(records: Sequence[RunRecord], backbone: str | None = None, data: str | None = None) -> Scope:
    found = [(Path(str(i)), record) for i, record in enumerate(records)]
    return choose_scope(SPEC, found, backbone, data, Scope("", ""))


def test_scope_prefers_the_papers_backbone_and_hub_local_sample() -> None:
    paper = make(backbone="deberta-v3-base", data="sample")
    assert (scope_of([paper, make()]).backbone, scope_of([paper, make()]).data) == ("deberta-v3-base", "sample")
    only = scope_of([make(data="sample"), make(data="local")])
    assert (only.backbone, only.data) == ("minilm", "local")
    assert any("minilm" in line for line in only.said)
    assert any("--data sample" in line for line in only.said)
    assert scope_of([make(data="sample"), make(data="local")], data="sample").data == "sample"
    several = scope_of([make(), make(backbone="tiny")])
    assert several.backbone == "deberta-v3-base"
    assert "minilm, tiny" in several.said[0]
    assert (scope_of([]).backbone, scope_of([]).data, scope_of([]).said) == ("deberta-v3-base", "hub", ())


def test_unfinished_runs_choose_only_where_there_is_no_finished_one() -> None:
    running = make(data="hub", status="running", seed=1)
    assert scope_of([running, make(data="local")]).data == "local"
    assert scope_of([running]).data == "hub"


# --- commands ---------------------------------------------------------------------------------------------------------


def asked_for(lines: Sequence[str]) -> list[tuple[str, str, str]]:
    """Every (method, budget, task) that the commands run, by Hydra's rule for comma lists."""
    runs = []
    for line in lines:
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        for method in words["method"].split(","):
            for budget in words.get("budget", method).split(","):
                runs += [(method, budget, task) for task in words["task"].split(",")]
    return runs


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 7)), max_size=40))
def test_commands_fill_exactly_the_empty_cells(filled: set[tuple[int, int]]) -> None:
    rows = paper_rows("table1_glue.csv")
    records = [
        make(0.5, method=rows[i]["method"], budget=rows[i]["budget"], task=SPEC.columns[j].task) for i, j in filled
    ]
    empty = {
        (row["method"], row["budget"], column.task)
        for i, row in enumerate(rows)
        for j, column in enumerate(SPEC.columns)
        if (i, j) not in filled
    }
    runs = asked_for(layout.commands_of(compiled(records)))
    assert len(runs) == len(set(runs))
    assert set(runs) == empty


def test_commands_carry_the_scope_and_quote_it() -> None:
    scope = Scope("my model", "local", "released", results=Path("other dir"))
    lines = layout.commands_of(compiled([], scope))
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("adalora-run -m task=mnli,")
        assert "'backbone=\"my model\"' data=local data.dir=DIR protocol=released 'results.dir=\"other dir\"'" in line
    assert layout.command(["cola"], ["full"], [], Scope("m", "hub")) == (
        "adalora-run task=cola method=full backbone=m data=hub"
    )


# --- formats ----------------------------------------------------------------------------------------------------------

EVIL = '<script>alert("x")</script>|*a*_b_$\\end{document}%&#{}[x](y)`~^\u202e\x1b[31m\n# h'


def example() -> Table:
    records = [make(score, seed=seed) for seed, score in enumerate((0.70, 0.71, 0.69))]
    records += [make(0.65, method="adalora"), make({"accuracy_m": 0.8, "accuracy_mm": 0.79}, task="mnli")]
    return compiled(records)


def evil() -> Table:
    settings = {"train.epochs": EVIL}
    records = [make(0.5, method=EVIL), make(0.5, variant=EVIL, settings=settings), make(0.4, variant="b")]
    return compiled([*records, make(0.4, method="adalora", data="local", rank_pattern={EVIL: 1})])


FIGURES = ("70.00", "1.00 (3)", "68.71", "+1.29", "65.00", "80.00", "79.00", "(1)", "-10.30", "0.33M", "0.92M", "88.15")


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_every_format_has_every_figure_note_and_command(form: str) -> None:
    text = render.render(example(), form)
    plain = text.replace("$", "").replace(r"\allowbreak{}", "").replace("**", "")
    for figure in FIGURES:
        assert figure in plain, figure
    bold = {"markdown": "**70.00**", "latex": r"\textbf{70.00}", "html": "<b>70.00</b>"}[form]
    assert text.count(bold) == 1
    assert "Backbone minilm; data local; protocol paper; checkpoint final" in text
    assert "Rule of a cell" in text
    for line in layout.commands_of(example()):
        assert line in plain


def test_csv_is_tidy_exact_and_complete() -> None:
    table = example()
    rows = list(csv.DictReader(io.StringIO(render.render(table, "csv"))))
    assert len(rows) == 12 * (10 + 1)
    row = next(r for r in rows if (r["method"], r["budget"], r["task"]) == ("lora", "0.3M", "cola"))
    assert float(row["mean"]) == pytest.approx(70.0)
    assert float(row["sd"]) == pytest.approx(1.0)
    assert (row["n_seeds"], row["seeds"], row["paper"], row["best"]) == ("3", "0 1 2", "68.71", "true")
    assert (row["params_method_min"], row["params_total_max"], row["lr"]) == ("331776", "923906", "0.001")
    assert len(row["records"].split()) == 3
    empty = next(r for r in rows if (r["method"], r["task"]) == ("bitfit", "rte"))
    assert empty["mean"] == empty["sd"] == empty["difference"] == ""
    assert empty["command"] == "adalora-run task=rte method=bitfit backbone=minilm data=local data.dir=DIR"
    for line in rows:
        if line["mean"] and line["paper"]:
            assert float(line["difference"]) == pytest.approx(float(line["mean"]) - float(line["paper"]))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_text_is_no_formula(text: str) -> None:
    table = compiled([make(0.5, method=text)])
    rows = list(csv.DictReader(io.StringIO(render.render(table, "csv"))))
    assert {row["method"] for row in rows if row["method"].endswith(text)} == {"'" + text}


def test_only_filled_leaves_out_rows_and_columns_without_records() -> None:
    text = render.render(example(), "markdown", only_filled=True)
    assert "BitFit" not in text
    assert "STS-B |" not in text
    assert "adalora-run" not in text
    assert "MNLI m/mm" in text
    assert len(list(csv.DictReader(io.StringIO(render.render(example(), "csv", only_filled=True))))) == 4
    for form in render.FORMATS:
        assert render.render(compiled([]), form, only_filled=True)


def test_markdown_is_one_rectangular_table() -> None:
    for table in (example(), evil()):
        lines = [line for line in render.render(table, "markdown").splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) == 1
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {14}


class Tags(HTMLParser):
    """The tags of a page, which must close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_text_stays_text() -> None:
    page = render.render(evil(), "html")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in page
    for table in (example(), compiled([])):
        Tags().feed(render.render(table, "html"))


def unescaped_latex(text: str) -> str:
    """What is left of LaTeX text when every escaped character and every command of ours is taken out."""
    text = re.sub(r"(?m)^%.*$|(?<=\{!\}\{)%$", "", text)
    return re.sub(r"\\[a-zA-Z]+\*?|\\[\\{}$&#%_]", "", text)


def test_latex_is_balanced_and_every_row_has_all_columns() -> None:
    starts = compiled([make(method="[2pt]"), make(method="*")])  # read as an argument of what is before
    for table in (example(), evil(), starts, compiled([])):
        text = render.render(table, "latex")
        stack = []
        for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text.replace(r"\textbackslash{}end", "")):
            if kind == "begin":
                stack.append(name)
            else:
                assert stack.pop() == name
        assert stack == []
        bare = unescaped_latex(text)
        assert bare.count("{") == bare.count("}")
        depth = 0
        for c in bare:
            depth += {"{": 1, "}": -1}.get(c, 0)
            assert depth >= 0
        assert not set("%#_~^") & set(bare)
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert len(rows) > 12
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {12}
        assert not re.search(r"\\(\\|midrule|addlinespace|item)\s*[\[*]", text)
        assert all(line.count("$") % 2 == 0 for line in unescaped_latex(text).splitlines())


@pytest.mark.parametrize("form", render.FORMATS)
def test_no_control_or_direction_character_passes(form: str) -> None:
    text = render.render(evil(), form)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@given(st.text())
def test_markdown_text_cannot_break_a_cell(text: str) -> None:
    safe = render.escape_markdown(text)
    assert "\n" not in safe
    assert not re.search(r"(?<!\\)(\\\\)*[|<`]", safe)


@given(st.text())
def test_latex_text_holds_no_live_special_character(text: str) -> None:
    bare = unescaped_latex(render.escape_latex(text).replace("$\\pm$", ""))
    assert not set("%#_~^$&\\") & set(bare)
    assert bare.count("{") == bare.count("}")


def test_numbers_as_people_write_them() -> None:
    assert [layout.count_text(n) for n in (184_423_682, 1_327_104, 331_776, 102_912, 82_944)] == [
        "184M",
        "1.33M",
        "0.33M",
        "0.10M",
        "82.9K",
    ]
    assert [layout.count_range(pair) for pair in (None, (331_776, 331_920), (310_000, 340_000))] == [
        layout.NONE,
        "0.33M",
        "0.31M\N{EN DASH}0.34M",
    ]
    assert [base.lr_text(lr) for lr in (5e-4, 1.2e-3, 0.1, 8e-5)] == ["5e-4", "1.2e-3", "1e-1", "8e-5"]
    assert [layout.signed(x) for x in (-0.001, 0.004, 1.0, -0.35)] == ["+0.00", "+0.00", "+1.00", "-0.35"]
    assert [layout.seeds_text(s) for s in ([0, 1, 2], [4], [0, 1], [0, 2, 5])] == ["0 to 2", "4", "0, 1", "0, 2, 5"]


def test_caption_and_notes_warn_about_the_data() -> None:
    sample = layout.sheet_of(compiled([make(data="sample")], Scope("minilm", "sample")))
    assert "NOT the paper's data" in sample.caption
    local = layout.sheet_of(compiled([make()]))
    assert "not comparable" in local.caption
    assert any("CoLA train 8,551, validation 1,043" in note for note in local.notes)
    assert any("deberta-v3-base" in note and "minilm" in note for note in local.notes)
    unknown = layout.sheet_of(compiled([make(data={"source": "local"})]))
    assert "Rows of the local data: CoLA not recorded." in unknown.notes
    differ = layout.sheet_of(compiled([make(), make(seed=1, data={"rows": {"train": 5}})]))
    assert "Rows of the local data: CoLA differ between records." in differ.notes
    uneven = layout.sheet_of(compiled([make(), make(method="adalora", total_steps=40)]))
    assert any("CoLA: rows were trained for 40 to 100 steps" in note for note in uneven.notes)


# --- status -----------------------------------------------------------------------------------------------------------

NOW = 1_000_000.0


def running(**progress: Any) -> RunRecord:
    fields = {"step": 10, "total_steps": 110, "updated": NOW, "host": "here", "pid": 7}
    return make(status="running", progress=fields | progress)


@pytest.mark.parametrize(
    ("progress", "alive", "expected"),
    [
        ({}, True, "running"),
        ({}, False, "interrupted"),
        ({"host": "elsewhere"}, False, "running"),
        ({"host": "elsewhere", "updated": NOW - 601}, False, "interrupted"),
        ({"updated": NOW - 601}, True, "running"),  # a slow evaluation, but its process is there
        ({"updated": NOW - 599}, True, "running"),
        ({"updated": NOW - 599}, None, "running"),  # the lock is of an earlier boot
        ({"updated": NOW - 601}, None, "interrupted"),
    ],
)
def test_running_means_heard_of_and_alive(progress: dict[str, Any], alive: bool | None, expected: str) -> None:
    state = status.state_of(Path("x"), running(**progress), NOW, "here", lambda folder: alive)
    assert state.status == expected


def test_a_run_of_this_host_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    """Its process id says nothing: after a restart, or in a container, another process may have it."""
    path, record = tmp_path / "metrics.json", running(pid=os.getpid())
    assert status.state_of(path, record, NOW, "here").status == "interrupted"
    lock = Lock(tmp_path)
    lock.take(print)
    assert status.state_of(path, record, NOW + 601, "here").status == "running"
    lock.release()
    assert status.state_of(path, record, NOW, "here").status == "interrupted"


def test_only_running_can_be_interrupted() -> None:
    for word in ("ok", "failed", "cancelled"):
        record = make(status=word, progress={"host": "here", "pid": 7, "updated": 0})
        assert status.state_of(Path("x"), record, NOW, "here", lambda folder: False).status == word


def test_time_left() -> None:
    timed = make(progress=running().progress, time={"s_per_step": 2.0})
    assert status.seconds_left(timed, NOW, NOW) == 200
    assert status.seconds_left(timed, NOW, NOW + 50) == 150
    assert status.seconds_left(timed, NOW, NOW - 50) == 200  # written by a clock that was ahead
    assert status.seconds_left(make(progress=running(step=None).progress, time=timed.time), NOW, NOW) is None
    assert status.seconds_left(make(progress=timed.progress, time={}), NOW, NOW) is None
    assert [status.duration(s) for s in (5, 125, 7300)] == ["5 s", "2 min", "2 h 01 min"]


@pytest.mark.parametrize("junk", [None, "x", [1], {"a": {}}, float("nan"), float("inf"), 10**400, True, -1])
def test_free_fields_of_a_record_may_hold_anything(junk: Any) -> None:
    """Those that have no line in ``records.FIELDS``, by which a record is checked when it is read."""
    odd = {"data": {"fingerprint": junk}, "settings": {"train.epochs": junk, "data.holdout": junk}}
    records = [make(**odd), make(variant="b", **odd), make(seed=1, status="running", progress={"more": junk}, **odd)]
    found = [(Path(str(i)), record) for i, record in enumerate(records)]
    assert "2 finished" in status.render_status([(SPEC, SCOPE)], found, NOW, "here")
    for form in render.FORMATS:
        assert "50.0" in render.render(compiled(records), form)


def test_status_shows_each_state_once() -> None:
    records = [
        make(seed=0),
        make(seed=1),
        running(host="elsewhere"),
        make(status="failed", error="loss is nan\nTraceback", seed=3),
        make(status="cancelled", method="adalora"),
        make(task="rte", method="dora", status="failed", error="\x1b[31mred"),
    ]
    records[2].key["seed"], records[2].time = 2, {"s_per_step": 2.0}
    found = [(Path(f"r/{i}"), record) for i, record in enumerate(records)]
    text = status.render_status([(SPEC, SCOPE)], found, NOW, "here")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["LoRA 0.3M"].split() == ["LoRA", "0.3M", ".", ".", "2", "r1", "f1", ".", ".", ".", ".", "."]
    assert "c1" in lines["AdaLoRA 0.3M"]
    assert "f1" in lines["dora 0.3M"]
    assert "1 of the paper's 96 cells done; 6 runs: 2 finished, 1 running, 2 failed, 1 cancelled" in text
    assert "cola lora 0.3M lr 1e-3 seed 2: step 10/110, about 3 min left" in text
    assert "loss is nan, r/3" in text
    assert "Traceback" not in text
    assert "\x1b" not in text
