"""adalora-report runs: any runs, grouped by keys or settings."""

from pathlib import Path

import pytest
from fake_records import make, save

from adalora_repro.cli.report import main


def test_what_cannot_be_averaged_is_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data sources, by default; records that no table counts; a held-out split that only some runs have."""
    for i, changes in enumerate(({}, {"held_out": 0.6}, {"held_out": 0.6, "data": "sample"})):
        save(tmp_path, make(seed=i, **changes))
    save(tmp_path, make(0.9, method="pfeiffer", settings={"method.revision": 1}))
    assert main(["runs", "--results", str(tmp_path), "--format", "csv"]) == 0
    shown, refused = capsys.readouterr()
    assert shown.splitlines()[1:] == [
        "minilm,local,cola,lora,paper,0.3M,0.001,matthews_correlation,50.0,0.0,2,,0,",
        "minilm,sample,cola,lora,paper,0.3M,0.001,matthews_correlation,50.0,,1,60.0,0,",
    ]
    assert "earlier definition of 'pfeiffer'" in refused


def test_runs_are_grouped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, seed, score in (("lora", 0, 0.4), ("lora", 1, 0.5), ("mine", 0, 0.6)):
        changes = {"lr": 1e-3 * (1 + seed), "settings": {"train.epochs": 3.0 + seed}}
        save(tmp_path, make(score, method=method, seed=seed, hash=f"{method}{seed}", **changes))
    save(tmp_path, make(status="failed", error="x", final=None, seed=9, hash="f"))
    words = ["runs", "--results", str(tmp_path)]
    assert main([*words, "--by", "method,train.epochs,method", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "method,train.epochs,metric,mean,sd,n,held_out,degenerate,differ",
        "lora,3.0,matthews_correlation,40.0,,1,,0,",
        "lora,4.0,matthews_correlation,50.0,,1,,0,",
        "mine,3.0,matthews_correlation,60.0,,1,,0,",
    ]
    assert main([*words, "--by", "method"]) == 0
    shown = capsys.readouterr().out
    assert "lora    45.00 ± 7.07 (2)†  –         matthews_correlation\n" in shown
    assert "mine    60.00 (1)          –         matthews_correlation\n" in shown
    assert "- † The runs of the line differ in settings: lr, train.epochs. --by" in shown
    assert "checkpoint final; 3 finished runs" in shown
    assert main([*words, "--by", "degenerate"]) == 2  # a column of the table itself
    assert "unknown name in --by 'degenerate'" in capsys.readouterr().err
