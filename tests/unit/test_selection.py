"""selection.py: the rule of a cell against a slow reading of its words, the two steps of a sweep, all reports alike."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from compiled import cell, compiled, figures, means
from fake_records import make, save
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import RULE, Run, run_of, select
from adalora_repro.reports.notes import notes_of, optimism
from adalora_repro.reports.render import render
from adalora_repro.reports.spec import Scope

METRIC = "matthews_correlation"
Captured = pytest.CaptureFixture[str]


def runs_of(records: Sequence[RunRecord]) -> list[Run]:
    return [run_of(Path(f"r/{i:03}/metrics.json"), record) for i, record in enumerate(records)]


# --- the rule against its words ---------------------------------------------------------------------------------------


def record_of(value: float, held_out: float, lr: float, seed: int, setting: tuple[str, bool, int]) -> RunRecord:
    variant, holdout, steps = setting
    return make(value, held_out if holdout else None, lr=lr, seed=seed, variant=variant, total_steps=steps)


records_of_a_cell = st.lists(
    st.builds(
        record_of,
        st.sampled_from([0.1, 0.2, 0.3, 0.5]),
        st.sampled_from([0.1, 0.2, 0.3]),
        st.sampled_from([1e-4, 5e-4, 1e-3]),
        st.integers(0, 3),
        st.sampled_from([("a", False, 100), ("b", False, 100), ("c", True, 100), ("d", True, 200)]),
    ),
    min_size=1,
    max_size=16,
    unique_by=lambda record: tuple(record.key[name] for name in ("lr", "seed", "variant")),
)


@given(records_of_a_cell)
def test_the_rule_against_a_slow_reading_of_it(records: list[RunRecord]) -> None:
    """An oracle: every (setting, learning rate) enumerated and sorted by the words of the rule.

    Its order of settings knows no score: precision, attention and batching are not tuned.
    """

    def of(variant: str, lr: float | None = None) -> list[RunRecord]:
        return [r for r in records if r.key["variant"] == variant and lr in (None, r.key["lr"])]

    def most_seeds(variant: str) -> int:
        return max(len(of(variant, r.key["lr"])) for r in of(variant))

    def setting_order(variant: str) -> tuple[Any, ...]:
        steps = of(variant)[0].key["total_steps"]
        lrs = {r.key["lr"] for r in of(variant)}
        return -most_seeds(variant), -steps, variant not in ("c", "d"), -len(lrs), variant

    setting = min({r.key["variant"] for r in records}, key=setting_order)
    lrs = {r.key["lr"] for r in of(setting) if len(of(setting, r.key["lr"])) == most_seeds(setting)}
    split = "holdout" if setting in ("c", "d") else "metrics"

    def mean(lr: float) -> float:
        scores = [r.final[split][METRIC] for r in of(setting, lr) if r.final]
        return math.fsum(scores) / len(scores)

    expected = min(lrs, key=lambda lr: (-mean(lr), lr))
    chosen = select(runs_of(records))
    assert (chosen.runs[0].key["variant"], chosen.lr, chosen.held_out) == (setting, expected, split == "holdout")
    assert [run.key["seed"] for run in chosen.runs] == sorted(r.key["seed"] for r in of(setting, expected))
    assert list(chosen.by_lr) == sorted({r.key["lr"] for r in of(setting)})
    assert {run.key["variant"] for run in chosen.others} == {r.key["variant"] for r in records} - {setting}


# --- the two steps of a sweep -----------------------------------------------------------------------------------------


def grid_and_seeds() -> list[RunRecord]:
    """Eight rates on seed 0, the best of them 79.50; four more seeds at 3e-4, the winner then: 76.80 on average."""
    grid = {3e-5: 0.60, 5e-5: 0.66, 8e-5: 0.70, 1e-4: 0.72, 3e-4: 0.774, 5e-4: 0.795, 8e-4: 0.74, 1e-3: 0.70}
    records = [make(value, lr=lr) for lr, value in grid.items()]
    return records + [make(value, lr=3e-4, seed=seed) for seed, value in enumerate((0.764, 0.770, 0.762, 0.770), 1)]


def test_five_seeds_are_shown_and_not_a_lucky_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """79.50 on one seed, 76.80 on five: every report shows 76.80 (5)."""
    monkeypatch.chdir(tmp_path)
    for record in grid_and_seeds():
        save(Path("results"), record)
    assert report.main(["table1", "--only-filled", "--format", "markdown"]) == EXIT_OK
    text = capsys.readouterr().out
    assert "76.80" in text
    assert "(5)" in text
    assert "79.50" not in text
    assert "LoRA 0.3M, CoLA: lr 5e-4 has a higher mean with fewer seeds (1 of 5): not shown." in text
    assert "(lr 3e-4, 8 tried, 3e-5 to 1e-3, 100 steps, seeds 0 to 4)" in text
    assert RULE in text
    assert "Optimistic: in 1 of 1 cell the learning rate was chosen by the reported scores" in text
    assert report.main(["table1", "--only-filled", "--format", "csv"]) == EXIT_OK
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    shown = [row[name] for name in ("mean", "n_seeds", "lr", "n_lrs_tried", "chosen_on", "held_out_mean")]
    assert shown == ["76.8", "5", "0.0003", "8", "reported", ""]
    assert report.main(["choose", "table1"]) == EXIT_OK
    text = capsys.readouterr().out
    assert "cola lora 0.3M: lr 3e-4, matthews_correlation 76.80, 5 seeds; 8 tried" in text
    assert "Optimistic: in 1 of 1 cell" in text
    assert report.main(["status"]) == EXIT_OK
    assert "Optimistic: in 1 of 1 cell" in capsys.readouterr().out


# --- the split that chooses -------------------------------------------------------------------------------------------


def test_the_held_out_split_chooses_and_the_reported_one_is_shown() -> None:
    records = [make(0.9, 0.5, lr=1e-3), make(0.6, 0.7, lr=2e-3)]
    table = compiled(records)
    shown = cell(table)
    assert (shown.runs[0].key["lr"], means(table), shown.held_out) == (2e-3, [pytest.approx(60.0)], True)
    text = render(table, "markdown")
    assert "lr 2e-3, 2 tried, 1e-3 to 2e-3" in text
    assert "Optimistic" not in text
    assert "Without a held-out split" not in text
    (figure,) = figures(table)
    assert (figure.chosen_on, figure.held_out_mean) == ("held-out", pytest.approx(70.0))
    mixed = cell(compiled([*records, make(0.5, lr=3e-3)]))
    assert (mixed.lr, mixed.held_out) == (1e-3, False)  # one run has no held-out split


def test_runs_on_a_cpu_and_on_a_gpu_share_no_mean() -> None:
    on_cpu = [make(0.5, lr=1e-3, seed=seed) for seed in range(2)]
    on_gpu = [make(0.7, lr=1e-3, seed=seed) for seed in range(3)]
    for record in on_gpu:
        record.memory = {"peak": 1, "of": "cuda allocator"}
    table = compiled([*on_cpu, *on_gpu])
    assert (means(table), cell(table).seeds) == ([pytest.approx(70.0)], (0, 1, 2))
    assert any("other settings:" in note and "; on a CPU)" in note for note in cell(table).notes)


def test_cells_with_and_without_a_held_out_split_are_counted_apart() -> None:
    records = [make(0.9, 0.5, lr=1e-3), make(0.6, 0.7, lr=2e-3)]
    records += [make(0.5, method="adalora", lr=lr) for lr in (1e-3, 2e-3)] + [
        make(0.5, method="bitfit", budget="bitfit")
    ]
    assert any(note.startswith("Optimistic: in 1 of 3 cells") for note in notes_of(compiled(records)))
    (sentence,) = optimism([(1, False)])
    assert sentence.startswith("Without a held-out split")
    assert optimism([]) == []


def test_best_is_chosen_by_the_held_out_figures_of_best() -> None:
    records = []
    for lr, final, best in ((1e-3, 0.9, 0.4), (2e-3, 0.5, 0.8)):
        record = make(0.6, final, lr=lr)
        record.best = {"metrics": {METRIC: 0.6}, "holdout": {METRIC: best}, "step": 50}
        records.append(record)
    for select_, lr in (("final", 1e-3), ("best", 2e-3)):
        scope = Scope("minilm", "local", select=select_)
        assert cell(compiled(records, scope=scope)).runs[0].key["lr"] == lr


def test_degenerate_runs_are_named_wherever_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, constant in enumerate((False, True, True)):
        save(Path("results"), make(0.4, method="adalora", seed=seed))
        path = save(Path("results"), make(0.5 * (not constant), seed=seed, degenerate=constant))
    words: dict[tuple[str, ...], str] = {
        ("table1", "--notes"): "degenerate: seeds 1, 2 of 3",
        ("table1", "--format", "csv"): "degenerate_seeds",
        ("choose", "table1"): "metrics.json  degenerate",
        ("status",): "Degenerate (the same prediction for every example of the final evaluation):\n  cola lora 0.3M",
        ("runs", "--by", "method"): "16.67 ± 28.87 (3)!",
        ("claims",): "(3)!",
        ("scores", "--format", "text"): "Hollow",
        ("compare", str(path), str(path)): "seed 2, degenerate (the same prediction for every example)",
    }
    for arguments, text in words.items():
        assert report.main(list(arguments)) == EXIT_OK
        assert text in capsys.readouterr().out
