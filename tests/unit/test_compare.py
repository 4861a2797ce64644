"""reports/compare.py: two runs of one task, example by example."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_records import make, save

from adalora_repro.errors import InputError
from adalora_repro.metrics.glue import METRICS
from adalora_repro.records.run_record import read_all, write_files
from adalora_repro.records.selection import run_of
from adalora_repro.reports import compare as compare_report
from adalora_repro.reports.compare import BOOTSTRAP, MCNEMAR, compare, compare_examples
from adalora_repro.reports.significance import NoTest

FAMILIES = {"squad": "squad", "squad_v2": "squad", "xsum": "summarization", "cnn_dailymail": "summarization"}


def glue_run(results: Path, task: str, labels: list[Any], predicted: list[Any], **key: Any) -> Path:
    """A finished run with its predictions; the record's metrics are those of the predictions."""
    names = {"mnli": {"_m": "validation_matched", "_mm": "validation_mismatched"}}.get(task, {"": "validation"})
    arrays = np.array(labels, float), np.array(predicted, float)
    record = make(dict.fromkeys(METRICS, 0.0), task=task, **key)
    record.final["metrics"] = {f"{metric}{suffix}": METRICS[metric](*arrays) for metric in METRICS for suffix in names}
    record.settings |= {"task.family": "glue"} | {f"task.validation.{end}": split for end, split in names.items()}
    path = save(results, record)
    rows = [{"label": a, "prediction": b} for a, b in zip(labels, predicted, strict=True)]
    write_files(path.parent / "final", {f"predictions.{split}.jsonl.gz": rows for split in names.values()})
    return path


LABELS = [0, 1] * 50
GOOD = [0, 1] * 48 + [1, 0] * 2  # 96 of 100
BAD = [0, 1] * 30 + [1, 0] * 20  # 60 of 100, right where GOOD is


def other_run(results: Path, task: str, rows: list[dict[str, Any]], **key: Any) -> Path:
    """SQuAD or summarization: the record's figures are the means of the rows'."""
    names = [name for name in rows[0] if name != "id"]
    scale = 100.0 if FAMILIES[task] == "squad" else 1.0
    whole = make(0.0, task=task, **key)
    means = {name: scale * float(np.mean([row[name] for row in rows])) for name in names}
    whole.final["metrics"] |= means
    whole.settings |= {"task.family": FAMILIES[task]}
    path = save(results, whole)
    file = "nbest.jsonl.gz" if FAMILIES[task] == "squad" else "predictions.jsonl.gz"
    write_files(path.parent / "final", {file: rows})
    return path


def lines_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def compared(a: Path, b: Path) -> dict[str, list[str]]:
    return lines_of(compare(str(a), str(b), "final"))


def test_both_splits_of_mnli_are_their_own_files(tmp_path: Path) -> None:
    paths = [glue_run(tmp_path, "mnli", LABELS, row, method=name) for row, name in ((BAD, "lora"), (GOOD, "adalora"))]
    rows = [{"label": a, "prediction": a} for a in LABELS]
    write_files(paths[1].parent / "final", {"predictions.validation_mismatched.jsonl.gz": rows})
    text = compare(*map(str, paths), "final")
    assert lines_of(text)["accuracy_m"][0] == MCNEMAR
    assert "accuracy_mm of the predictions is 100.0000, in the record 96.0000" in " ".join(text.split())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (None, "no predictions.validation.jsonl.gz beside a record"),
        (b"junk", ": Not a gzipped file"),
        ([], "is empty"),
        ([{"label": 1}], ": row[0].prediction is missing"),
        ([{"label": 1, "prediction": 10**400}], "is not a finite number"),
        (gzip.compress(bytes(2 << 20)), ": unpacks to more than 1,048,576 bytes"),
        (os.mkfifo, "a named pipe, not a file"),
        ([{"label": 1 - a, "prediction": b} for a, b in zip(LABELS, GOOD, strict=True)], "different examples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_predictions_are_a_reason_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, says: str
) -> None:
    monkeypatch.setattr(compare_report, "UNPACKED", 1 << 20)
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
    paths = [path for path, _ in read_all(tmp_path)[0]]
    assert says in " ".join(compare(*map(str, paths), "final").split())


def test_squad_and_summaries_have_scores_for_each_example(tmp_path: Path) -> None:
    pairs: dict[str, list[Path]] = {"squad": [], "xsum": []}
    for method, shift in (("lora", 0), ("adalora", 1)):
        squad = [{"id": f"q{i}", "exact": int(i % 4 < 2 + shift), "f1": 0.5 + 0.1 * shift * (i % 3)} for i in range(80)]
        pairs["squad"].append(other_run(tmp_path, "squad", squad, method=method, budget="0.08%"))
        rouge = ("rouge1", "rouge2", "rougeL", "rougeLsum")
        summaries = [{"id": str(i)} | dict.fromkeys(rouge, 20.0 + i % 7 + shift * (i % 2)) for i in range(60)]
        pairs["xsum"].append(other_run(tmp_path, "xsum", summaries, method=method, budget="0.13%"))
    lines = compared(*pairs["squad"])
    assert (lines["exact"][0], lines["f1"][0]) == (MCNEMAR, BOOTSTRAP)
    assert float(lines["exact"][-1]) == pytest.approx(2 / 2**20, rel=1e-2)  # 20 that one run alone got right
    assert {compared(*pairs["xsum"])[name][0] for name in ("rouge1", "rougeLsum")} == {BOOTSTRAP}


def test_examples_in_another_order_are_not_paired(tmp_path: Path) -> None:
    rows = [{"id": str(i), "exact": 1, "f1": 1.0} for i in range(4)]
    for method, order in (("lora", rows), ("adalora", rows[::-1])):
        other_run(tmp_path, "squad", order, method=method)
    runs = [run_of(*found) for found in read_all(tmp_path)[0]]
    with pytest.raises(NoTest, match="different examples"):
        compare_examples("exact", "final", runs[0], runs[1])
    write_files(runs[0].path.parent / "final", {"nbest.jsonl.gz": [{"exact": 1, "f1": 1.0}]})
    with pytest.raises(NoTest, match=r"row\[0\]\.id is missing"):
        compare_examples("exact", "final", runs[0], runs[1])


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


def test_compare_says_why_a_metric_is_not_tested(tmp_path: Path) -> None:
    a = save(tmp_path, make(90.0, task="squad", settings={"task.family": "squad"}))
    text = compare(str(a), str(a), "final")
    assert lines_of(text)["f1"] == ["not tested", "90.00", "90.00", "+0.00", "", ""]
    assert "Not tested: exact, f1: no nbest.jsonl.gz beside a record.\n" in text
    b = save(tmp_path, make({"exact": 1.0, "f1": 2.0, "best_f1": 3.0}, task="squad_v2"))
    assert "Not tested: exact, f1, best_f1: no mean over examples" in compare(str(b), str(b), "final")


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
        (failed, "final", r"the run is not finished \(failed\)"),
        (good, "best", "no 'best'"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            compare(good, second, select)
        assert "\n" not in str(caught.value)
