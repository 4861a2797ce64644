"""adalora-report runs: any runs, grouped by keys or settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_records import make, save

from adalora_repro.cli.report import main


@pytest.fixture
def results(tmp_path: Path) -> str:
    for method, scores in (("lora", (0.4, 0.5)), ("mine", (0.6,))):
        for seed, score in enumerate(scores):
            record = make(score, method=method, seed=seed, hash=f"{method}{seed}", task="cola")
            record.settings["train.epochs"] = 3.0 + seed
            save(tmp_path, record)
    save(tmp_path, make(status="failed", error="x", final=None, seed=9, hash="f"))
    return str(tmp_path)


def test_runs_are_grouped(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--results", results, "--by", "method,train.epochs,method", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "method,train.epochs,metric,mean,sd,n,held_out,degenerate",
        "lora,3.0,matthews_correlation,40.0,,1,,0",
        "lora,4.0,matthews_correlation,50.0,,1,,0",
        "mine,3.0,matthews_correlation,60.0,,1,,0",
    ]
    assert main(["runs", "--results", results, "--by", "method"]) == 0
    shown = capsys.readouterr().out
    assert "lora    matthews_correlation  45.00 ± 7.07 (2)" in shown
    assert "checkpoint final; 3 finished runs" in shown
