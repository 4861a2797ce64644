"""reports/frame.py: one row a run and checkpoint, in percent, with what the rule of a cell chose."""

from pathlib import Path

import pytest
from fake_records import make, save

import adalora_repro
from adalora_repro.errors import InputError
from adalora_repro.reports.frame import COLUMNS, rank_entropy


def test_rows_are_runs_at_checkpoints_with_figures_in_percent(tmp_path: Path) -> None:
    best = {"metrics": {"matthews_correlation": 0.6}, "step": 80}
    path = save(tmp_path, make(0.5, best=best, rank_pattern={"a": 2, "b": 2}, time={"train_s": 3.0}))
    save(tmp_path, make(88.0, task="squad", budget="0.08%", seed=1))
    save(tmp_path, make(status="failed", error="loss is nan", final=None, seed=2))
    (tmp_path / "runs" / "metrics.json").write_text("{", encoding="utf-8")
    runs = adalora_repro.frame(tmp_path)
    assert list(runs.columns[: len(COLUMNS)]) == list(COLUMNS)
    cola = runs[runs.record == str(path)].set_index("checkpoint")
    assert cola.score.to_dict() == {"final": pytest.approx(50.0), "best": pytest.approx(60.0)}
    assert cola.step.to_dict() == {"final": 100, "best": 80}
    assert cola["params.share"].iloc[0] == pytest.approx(100 * 331_776 / 183_831_552)
    assert (cola.rank_entropy.iloc[0], cola["time.train_s"].iloc[0], cola.label.iloc[0]) == (1.0, 3.0, "LoRA")
    squad = runs[runs.task == "squad"].iloc[0]
    assert (squad.metric, squad.score, squad["metrics.exact"]) == ("f1", 88.0, 88.0)
    (failed,) = runs[runs.status == "failed"].to_dict("records")
    assert (failed["error"], failed["shown"], failed["score"] == failed["score"]) == ("loss is nan", False, False)
    assert [line.partition(": ")[0] for line in runs.attrs["refused"]] == [str(tmp_path / "runs" / "metrics.json")]


def test_shown_lrs_tried_and_chosen_on_follow_the_rule(tmp_path: Path) -> None:
    for lr, held_out in ((1e-3, 0.4), (2e-3, 0.5), (3e-3, 0.3)):
        save(tmp_path, make(0.6 - lr, held_out, lr=lr))
    save(tmp_path, make(0.9, lr=5e-3, max_examples=10, variant="part"))
    save(tmp_path, make(0.7, method="pfeiffer", settings={"method.module": "pfeiffer"}))  # of the earlier definition
    runs = adalora_repro.frame(tmp_path)
    (shown,) = runs[runs.shown].to_dict("records")
    assert (shown["lr"], shown["lrs_tried"], shown["chosen_on"], shown["held_out"]) == (2e-3, 3, "held-out", 50.0)
    assert "earlier definition" in runs[runs.method == "pfeiffer"].unusable.iloc[0]


def test_an_empty_folder_is_an_empty_frame_with_all_columns(tmp_path: Path) -> None:
    runs = adalora_repro.frame(tmp_path)
    assert (len(runs), list(runs.columns)) == (0, list(COLUMNS))
    assert runs[runs.shown].groupby(["task", "method"]).score.mean().empty
    with pytest.raises(InputError, match="no folder 'nowhere'"):
        adalora_repro.frame("nowhere")
    save(tmp_path, make())
    with pytest.raises(InputError, match="holds no runs/"):
        adalora_repro.frame(tmp_path / "runs")


def test_the_example_of_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("results"), make(0.5))
    example = str(adalora_repro.frame.__doc__).partition("``results/``)::")[2]
    space: dict[str, object] = {}
    exec("\n".join(line.strip() for line in example.splitlines()).replace(".plot.bar()", ""), space)
    assert "shown" in space


def test_entropy_of_ranks() -> None:
    assert rank_entropy({"a": 3, "b": 3, "c": 3}) == pytest.approx(1.0)
    assert rank_entropy({"a": 3, "b": 0}) == 0.0
    assert rank_entropy({}) is None
