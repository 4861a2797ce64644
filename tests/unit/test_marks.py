"""tables/marks.py, predictions.py and compare.py: which pairs are tested, on what, and what a reader is told."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_records import make, save

from adalora_repro.errors import InputError
from adalora_repro.metrics.glue import METRICS
from adalora_repro.records.run_record import RunRecord, read_all, write_files
from adalora_repro.reports import layout, marks, predictions, render
from adalora_repro.reports.base import Comparison, Scope, Spec, Table, compile_table
from adalora_repro.reports.compare import BOOTSTRAP, MCNEMAR, compare, evaluated_on, pair_up, same_examples
from adalora_repro.reports.marks import with_marks
from adalora_repro.reports.significance import NoTest, mcnemar, paired_t
from adalora_repro.reports.tables import controls, table1, table2, table3

FAMILIES = {"squad": "squad", "squad_v2": "squad", "xsum": "summarization", "cnn_dailymail": "summarization"}


def marked(results: Path, spec: Spec = table1.SPEC, **scope: Any) -> Table:
    return with_marks(compile_table(spec, read_all(results)[0], Scope("minilm", "local", results=results, **scope)))


def comparison(table: Table, name: str, place: tuple[int, int]) -> Comparison | None:
    row = next(row for row in table.rows if row.name == name)
    return row.cells[place[0]].values[place[1]].comparison


def seeds(results: Path, scores: list[float], **key: Any) -> None:
    for seed, score in enumerate(scores):
        save(results, make(score, seed=seed, **key))


def glue_run(results: Path, task: str, labels: list[Any], predicted: list[Any], **key: Any) -> Path:
    """A finished run with its predictions; the record's metrics are those of the predictions."""
    names = {"mnli": {"_m": "validation_matched", "_mm": "validation_mismatched"}}.get(task, {"": "validation"})
    arrays = np.array(labels, float), np.array(predicted, float)
    record = make(dict.fromkeys(METRICS, 0.0), task=task, **key)
    record.final["metrics"] = {  # type: ignore[index]
        f"{metric}{suffix}": METRICS[metric](*arrays) for metric in METRICS for suffix in names
    }
    record.settings |= {"task.family": "glue"} | {f"task.validation.{end}": split for end, split in names.items()}
    path = save(results, record)
    rows = [{"label": a, "prediction": b} for a, b in zip(labels, predicted, strict=True)]
    write_files(path.parent / "final", {f"predictions.{split}.jsonl.gz": rows for split in names.values()})
    return path


LABELS = [0, 1] * 50
GOOD = [0, 1] * 48 + [1, 0] * 2  # 96 of 100
BAD = [0, 1] * 30 + [1, 0] * 20  # 60 of 100, right where GOOD is


# --- over seeds -------------------------------------------------------------------------------------------------------


def test_a_star_is_a_paired_t_test_over_the_common_seeds(tmp_path: Path) -> None:
    lora, adalora = [0.60, 0.61, 0.62, 0.60, 0.61], [0.66, 0.68, 0.67, 0.66, 0.68, 0.9]
    seeds(tmp_path, lora)
    seeds(tmp_path, adalora, method="adalora")
    table = marked(tmp_path)
    found = comparison(table, "AdaLoRA 0.3M", (2, 0))
    assert found is not None
    p = paired_t([100 * x for x in adalora[:5]], [100 * x for x in lora])
    assert found == Comparison("LoRA 0.3M", "paired t-test, 5 seeds", pytest.approx(p), pytest.approx(p), "*")
    assert comparison(table, "LoRA 0.3M", (2, 0)) is None
    assert "Tests in this table: 1," in table.tests[0]
    assert "**70.83**\\*" in render.render(table, "markdown")
    assert r"\textbf{70.83}$^{*}$" in render.render(table, "latex")
    assert "<b>70.83</b><sup>*</sup>" in render.render(table, "html")


def test_the_best_baseline_is_of_the_same_budget_and_no_variant_of_adalora(tmp_path: Path) -> None:
    for budget, better in (("0.3M", "houlsby"), ("1.2M", "lora")):
        for method in ("houlsby", "lora", "adalora", "adalora_mine"):
            base = {"adalora": 0.7, "adalora_mine": 0.8}.get(method, 0.65 if method == better else 0.6)
            seeds(tmp_path, [base, base + 0.01, base + 0.03], method=method, budget=budget)
    seeds(tmp_path, [0.5, 0.6, 0.7], method="full", budget="full")
    table = marked(tmp_path)
    against = {
        (row.method, row.budget): found.baseline
        for row in table.rows
        if (found := row.cells[2].values[0].comparison) is not None
    }
    houlsby, lora = "HAdapter (Houlsby) 0.3M", "LoRA 1.2M"
    assert against == {}  # the differences of these are the same for every seed
    assert table.tests[1].startswith("Not tested (the difference is the same for every seed")
    seeds(tmp_path, [0.71, 0.72, 0.79], method="adalora", budget="0.3M", variant="v2", total_steps=200)
    seeds(tmp_path, [0.81, 0.82, 0.89], method="adalora_mine", budget="1.2M", variant="v2", total_steps=200)
    table = marked(tmp_path)
    found = [comparison(table, name, (2, 0)) for name in ("AdaLoRA 0.3M", "adalora_mine 1.2M")]
    assert [one.baseline for one in found if one is not None] == [houlsby, lora]


def test_ranks_of_an_adalora_run_are_no_baseline(tmp_path: Path) -> None:
    """The row lora_rank_pattern has AdaLoRA's ranks: a good score there speaks for AdaLoRA."""
    for method, base in (("lora", 0.60), ("lora_rank_pattern", 0.66), ("lora_init_r", 0.67), ("adalora", 0.70)):
        seeds(tmp_path, [base, base + 0.01 * len(method) / 4, base + 0.03], method=method)
    seeds(tmp_path, [0.5, 0.52, 0.51], method="full", budget="full")
    table = marked(tmp_path, controls.SPEC)
    against = {row.method: row.cells[2].values[0].comparison for row in table.rows}
    baselines = {name: one.baseline for name, one in against.items() if one is not None}
    assert baselines == dict.fromkeys(("adalora", "lora_rank_pattern", "lora_init_r"), "LoRA 0.3M")


def full(table: Table, name: str, place: tuple[int, int] = (2, 0)) -> Comparison | None:
    row = next(row for row in table.rows if row.name == name)
    return row.cells[place[0]].values[place[1]].with_full


def test_the_best_row_of_each_budget_is_compared_with_full_fine_tuning(tmp_path: Path) -> None:
    whole = [0.50, 0.52, 0.51]
    scores = {("lora", "0.3M"): 0.55, ("adalora", "0.3M"): 0.60, ("houlsby", "1.2M"): 0.58, ("lora", "1.2M"): 0.4}
    for (method, budget), base in scores.items():
        seeds(tmp_path, [base, base + 0.03, base + 0.015], method=method, budget=budget)
    seeds(tmp_path, whole, method="full", budget="full")
    seeds(tmp_path, [0.7, 0.71, 0.73], method="bitfit", budget="bitfit")
    table = marked(tmp_path)
    compared = {row.name: full(table, row.name) for row in table.rows if full(table, row.name) is not None}
    assert set(compared) == {"AdaLoRA 0.3M", "HAdapter (Houlsby) 1.2M"}
    for name, base in (("AdaLoRA 0.3M", 0.60), ("HAdapter (Houlsby) 1.2M", 0.58)):
        found = compared[name]
        assert found is not None
        ours = [100 * value for value in (base, base + 0.03, base + 0.015)]
        assert (found.baseline, found.test) == ("Full FT", "paired t-test, 3 seeds")
        assert found.p == pytest.approx(paired_t(ours, [100 * value for value in whole]))
        assert found.mark == "§"
    assert "§" in layout.marks_of(next(r for r in table.rows if r.name == "AdaLoRA 0.3M").cells[2].values[0])
    assert "Tests in this table: 2," in table.tests[0]  # against baselines each seed differs by the same: not tested
    rows = list(csv.DictReader(io.StringIO(render.render(table, "csv"))))
    assert {row["method"] for row in rows if row["full_mark"]} == {"adalora", "houlsby"}
    assert r"\S" in render.render(table, "latex")


def test_full_fine_tuning_is_compared_over_examples_too(tmp_path: Path) -> None:
    glue_run(tmp_path, "mrpc", LABELS, BAD, method="full", budget="full")
    glue_run(tmp_path, "mrpc", LABELS, GOOD)
    found = full(marked(tmp_path), "LoRA 0.3M", (6, 0))
    assert found is not None
    assert (found.test, found.mark) == (f"{MCNEMAR}; seeds 0 and 0", "¶")


def test_holm_counts_every_test_of_the_table(tmp_path: Path) -> None:
    for task in ("cola", "rte", "mrpc"):
        seeds(tmp_path, [0.60, 0.61, 0.62], task=task)
        seeds(tmp_path, [0.64, 0.66, 0.67], task=task, method="adalora")
    table = marked(tmp_path)
    found = [comparison(table, "AdaLoRA 0.3M", place) for place in ((2, 0), (5, 0), (6, 0))]
    assert all(one is not None and one.p_holm == pytest.approx(3 * one.p) for one in found)
    assert "Tests in this table: 3," in table.tests[0]


def test_different_examples_are_not_compared(tmp_path: Path) -> None:
    seeds(tmp_path, [0.60, 0.61, 0.62])
    other = {"source": "local", "rows": {"train": 8551, "validation": 100}}
    seeds(tmp_path, [0.70, 0.72, 0.75], method="adalora", data=other)
    table = marked(tmp_path)
    assert comparison(table, "AdaLoRA 0.3M", (2, 0)) is None
    assert table.tests[1] == "Not tested (evaluated on different examples): AdaLoRA 0.3M CoLA."


def test_the_training_split_may_differ_and_the_validation_split_not() -> None:
    def record(**sha: str) -> RunRecord:
        return make(0.5, data={"source": "local", "fingerprint": str(sha), "sha256": sha})

    assert evaluated_on(record(train="a", validation="b")) == evaluated_on(record(train="c", validation="b"))
    assert evaluated_on(record(train="a", validation="b")) != evaluated_on(record(train="a", validation="c"))
    assert evaluated_on(make(0.5)) != evaluated_on(make(0.5, max_examples=100))


def test_local_files_with_the_same_rows_are_the_same_examples() -> None:
    """Whatever their bytes, where both records say what the rows are; one from before says the bytes alone."""

    def record(sha: str, rows: str | None) -> RunRecord:
        data = {"source": "local", "sha256": {"train": "t", "validation": sha}}
        return make(0.5, data=data | ({} if rows is None else {"rows_sha256": {"train": sha, "validation": rows}}))

    assert same_examples(record("a", "r"), record("b", "r"))
    assert not same_examples(record("a", "r"), record("a", "s"))
    assert same_examples(record("a", "r"), record("a", None))
    assert not same_examples(record("a", "r"), record("b", None))
    assert not same_examples(record("a", None), record("b", None))


def test_a_table_without_a_pair_is_left_as_it_is(tmp_path: Path) -> None:
    seeds(tmp_path, [0.5, 0.6])
    seeds(tmp_path, [0.7, 0.8], method="bitfit", budget="bitfit")
    table = compile_table(table1.SPEC, read_all(tmp_path)[0], Scope("minilm", "local"))
    assert with_marks(table) is table
    assert "Marks:" not in render.render(table, "markdown")


# --- over examples ----------------------------------------------------------------------------------------------------


def test_a_dagger_is_a_test_over_examples_of_one_pair(tmp_path: Path) -> None:
    glue_run(tmp_path, "mrpc", LABELS, BAD)
    glue_run(tmp_path, "mrpc", LABELS, GOOD, method="adalora")
    glue_run(tmp_path, "cola", LABELS, BAD, seed=3)
    glue_run(tmp_path, "cola", LABELS, GOOD, method="adalora", seed=4)
    table = marked(tmp_path)
    right = [np.array(row) == np.array(LABELS) for row in (GOOD, BAD)]
    p = mcnemar(right[0], right[1])
    found = comparison(table, "AdaLoRA 0.3M", (6, 0))
    assert found == Comparison("LoRA 0.3M", f"{MCNEMAR}; seeds 0 and 0", p, pytest.approx(2 * p), "†")
    found = comparison(table, "AdaLoRA 0.3M", (2, 0))
    assert found is not None
    assert (found.test, found.mark) == (f"{BOOTSTRAP}; seeds 4 and 3", "†")
    assert found.p == pytest.approx(2 / 10_001)
    assert "96.00**†" in render.render(table, "markdown")
    latex = render.render(table, "latex")
    assert r"$^{\dagger}$" in latex
    assert "†" not in latex
    assert "<sup>†</sup>" in render.render(table, "html")


def test_a_pair_of_runs_that_several_tables_share_is_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glue_run(tmp_path, "mrpc", LABELS, BAD)
    glue_run(tmp_path, "mrpc", LABELS, GOOD, method="adalora")
    table = compile_table(table1.SPEC, read_all(tmp_path)[0], Scope("minilm", "local", results=tmp_path))
    done = marks.Done()
    first = with_marks(table, done)
    monkeypatch.delattr(marks, "pair_up")
    assert with_marks(table, done) == first != table


def test_csv_names_baseline_test_and_both_p(tmp_path: Path) -> None:
    glue_run(tmp_path, "mrpc", LABELS, GOOD)
    glue_run(tmp_path, "mrpc", LABELS, GOOD, method="adalora")
    rows = list(csv.DictReader(io.StringIO(render.render(marked(tmp_path), "csv"))))
    tested = [row for row in rows if row["test"]]
    fields = ("method", "task", "metric", "baseline", "p", "p_holm", "mark")
    assert [[row[name] for name in fields] for row in tested] == [
        ["adalora", "mrpc", "accuracy", "LoRA 0.3M", "1.0", "1.0", ""]
    ]


def test_both_splits_of_mnli_are_their_own_files(tmp_path: Path) -> None:
    paths = [glue_run(tmp_path, "mnli", LABELS, row, method=name) for row, name in ((BAD, "lora"), (GOOD, "adalora"))]
    rows = [{"label": a, "prediction": a} for a in LABELS]
    write_files(paths[1].parent / "final", {"predictions.validation_mismatched.jsonl.gz": rows})
    table = marked(tmp_path)
    assert comparison(table, "AdaLoRA 0.3M", (0, 0)) is not None
    assert comparison(table, "AdaLoRA 0.3M", (0, 1)) is None
    (note,) = table.tests[1:]
    assert note.startswith(
        f"Not tested ({paths[1]}: accuracy_mm of the predictions is 100.0000, in the record 96.0000)"
    )
    assert note.endswith(": AdaLoRA 0.3M MNLI accuracy_mm.")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "no predictions.validation.jsonl.gz beside a record"),
        (b"junk", "cannot be read (BadGzipFile)"),
        ([], "is empty"),
        ([{"label": 1}], "a row whose prediction is no number"),
        ([{"label": 1, "prediction": "x"}], "a row whose prediction is no number"),
        ([{"label": 1, "prediction": 10**300}], "a row whose prediction is no number"),
        ([{"label": 1, "prediction": 10**400}], "cannot be read (ValueError)"),
        (gzip.compress(b'{"label": 1, "label": 1, "prediction": 1}'), "cannot be read (ValueError)"),
        (gzip.compress(b"\n"), "cannot be read (JSONDecodeError)"),
        (gzip.compress(bytes(2 << 20)), "unpacks to more than 1,048,576 bytes"),
        ([{"label": 1, "prediction": 1}] * 101, "more than 100 rows"),
        ([{"label": 0.5 + i, "prediction": i} for i in range(6)], "more than 10 classes"),
        (os.mkfifo, "a named pipe in the place of a file"),
        (os.mkdir, "a folder in the place of a file"),
        ([[1, 1]], "a row whose label is no number"),
        ([{"label": 1 - a, "prediction": b} for a, b in zip(LABELS, GOOD, strict=True)], "different examples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_predictions_are_a_reason_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, says: str
) -> None:
    for name, most in (("ROWS", 100), ("UNPACKED", 1 << 20), ("CLASSES", 10)):
        monkeypatch.setattr(predictions, name, most)
    glue_run(tmp_path, "mrpc", LABELS, BAD)
    folder = glue_run(tmp_path, "mrpc", LABELS, GOOD, method="adalora").parent / "final"
    file = folder / "predictions.validation.jsonl.gz"
    file.unlink()
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    elif callable(damage):
        damage(file)
    elif damage is not None:
        write_files(folder, {file.name: damage})
    table = marked(tmp_path)
    assert comparison(table, "AdaLoRA 0.3M", (6, 0)) is None
    assert says in table.tests[1]


def other_run(results: Path, task: str, rows: list[dict[str, Any]], **key: Any) -> Path:
    """SQuAD or summarization: the record's figures are the means of the rows'."""
    names = [name for name in rows[0] if name != "id"]
    scale = 100.0 if FAMILIES[task] == "squad" else 1.0
    whole = make(0.0, task=task, **key)
    means = {name: scale * float(np.mean([row[name] for row in rows])) for name in names}
    whole.final["metrics"] |= means  # type: ignore[index]
    whole.settings |= {"task.family": FAMILIES[task]}
    path = save(results, whole)
    file = "nbest.jsonl.gz" if FAMILIES[task] == "squad" else "predictions.jsonl.gz"
    write_files(path.parent / "final", {file: rows})
    return path


def test_squad_and_summaries_have_scores_for_each_example(tmp_path: Path) -> None:
    for method, shift in (("lora", 0), ("adalora", 1)):
        squad = [{"id": f"q{i}", "exact": int(i % 4 < 2 + shift), "f1": 0.5 + 0.1 * shift * (i % 3)} for i in range(80)]
        other_run(tmp_path, "squad", squad, method=method, budget="0.08%")
        rouge = ("rouge1", "rouge2", "rougeL", "rougeLsum")
        summaries = [{"id": str(i)} | dict.fromkeys(rouge, 20.0 + i % 7 + shift * (i % 2)) for i in range(60)]
        other_run(tmp_path, "xsum", summaries, method=method, budget="0.13%")
    table = marked(tmp_path, table2.SPEC)
    found = [comparison(table, "AdaLoRA 0.08%", (0, k)) for k in (0, 1)]
    assert [one and (one.test.partition(";")[0], one.mark) for one in found] == [(MCNEMAR, "†"), (BOOTSTRAP, "†")]
    assert found[0] is not None
    assert found[0].p == pytest.approx(2 / 2**20)  # 20 questions that one run alone got right
    table = marked(tmp_path, table3.SPEC)
    assert all((one := comparison(table, "AdaLoRA 0.13%", (0, k))) and one.mark == "†" for k in (0, 1, 2))


def test_examples_in_another_order_are_not_paired(tmp_path: Path) -> None:
    rows = [{"id": str(i), "exact": 1, "f1": 1.0} for i in range(4)]
    for method, order in (("lora", rows), ("adalora", rows[::-1])):
        other_run(tmp_path, "squad", order, method=method)
    runs = read_all(tmp_path)[0]
    with pytest.raises(NoTest, match="different examples"):
        pair_up("exact", "final", runs[0], runs[1])
    write_files(runs[0][0].parent / "final", {"nbest.jsonl.gz": [{"exact": 1, "f1": 1.0}]})
    with pytest.raises(NoTest, match="without an id"):
        pair_up("exact", "final", runs[0], runs[1])


# --- adalora-report compare -------------------------------------------------------------------------------------------


def lines_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_compare_prints_figures_difference_interval_and_p(tmp_path: Path) -> None:
    a = glue_run(tmp_path, "mrpc", LABELS, GOOD, method="adalora")
    b = glue_run(tmp_path, "mrpc", LABELS, BAD)
    text = compare(str(a), str(b.parent), "final")
    test, *figures, span, p = lines_of(text)["accuracy"]
    assert (test, figures) == (MCNEMAR, ["96.00", "60.00", "+36.00"])
    low, high = map(float, span.split(" to "))
    assert 20 < low < 36 < high < 50
    assert float(p) == pytest.approx(2 / 2**36, rel=1e-2)
    assert lines_of(text)["matthews_correlation"][0] == BOOTSTRAP
    assert "other seeds" in text
    mirrored = lines_of(compare(str(b), str(a), "final"))["accuracy"]
    assert mirrored[4] == f"{-high:+.2f} to {-low:+.2f}"
    assert mirrored[5] == p


def test_compare_of_equal_runs_has_p_1(tmp_path: Path) -> None:
    a = glue_run(tmp_path, "mrpc", LABELS, GOOD)
    assert lines_of(compare(str(a), str(a), "final"))["f1"][3:] == ["+0.00", "+0.00 to +0.00", "1"]


def test_compare_says_why_a_metric_is_not_tested(tmp_path: Path) -> None:
    a = save(tmp_path, make(90.0, task="squad", settings={"task.family": "squad"}))
    cells = lines_of(compare(str(a), str(a), "final"))
    assert cells["f1"] == ["not tested: no nbest.jsonl.gz beside a record", "90.00", "90.00", "+0.00", "", ""]
    b = save(tmp_path, make({"exact": 1.0, "f1": 2.0, "best_f1": 3.0}, task="squad_v2"))
    assert lines_of(compare(str(b), str(b), "final"))["best_f1"][0].startswith("not tested: the record does not name")


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    good = str(save(tmp_path, make(0.5)))
    other = str(save(tmp_path, make(0.5, task="rte")))
    failed = str(save(tmp_path, make(0.5, seed=1, status="failed")))
    damaged = tmp_path / "metrics.json"
    damaged.write_text("{", encoding="utf-8")
    for second, select, says in (
        (str(tmp_path / "nowhere"), "final", "no record"),
        (str(damaged), "final", "metrics.json: Expecting"),
        (other, "final", "task rte"),
        (failed, "final", "the run is failed"),
        (good, "best", "no 'best'"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            compare(good, second, select)
        assert "\n" not in str(caught.value)


def test_every_mark_has_its_latex() -> None:
    marks_shown = {marks.SEEDS, marks.EXAMPLES, *marks.FULL_MARKS.values(), layout.UNEQUAL}
    assert set(render.LATEX_MARKS) == marks_shown
    assert len(marks_shown) == 5
    assert layout.Part("1.00", False, "†").mark == "†"
