"""Predictions as runs write them, compared: adalora-run, then adalora-report compare and the marks of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import find_runs

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK

FAMILIES = {
    "mnli": ([], ("accuracy_m", "accuracy_mm")),
    "stsb": ([], ("pearson", "spearman", "corr")),
    "squad_v2": (["task.max_length=128", "task.stride=16"], ("exact", "f1")),
    "xsum": (["backbone=tiny-bart", "task.max_target_length=8", "task.num_beams=1"], ("rouge1", "rougeLsum")),
}
LABELS = {"squad_v2": "0.08%", "xsum": "0.13%"}


@pytest.mark.parametrize(
    "task", ["stsb", "squad_v2", *(pytest.param(t, marks=pytest.mark.slow) for t in ("mnli", "xsum"))]
)
def test_two_runs_are_compared_by_what_they_wrote(
    tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str], task: str
) -> None:
    words, metrics = FAMILIES[task]
    budget = f"budget={LABELS.get(task, '0.3M')}"
    small = ["train.max_steps=2", "data.sample_validation_rows=12"]
    for method in ("full", "bitfit"):
        assert tiny(f"task={task}", f"method={method}", budget, *small, *words).code == EXIT_OK
    folders = [str(run.folder) for run in find_runs()]
    assert report.main(["compare", *folders]) == EXIT_OK
    out = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in out.splitlines() if line[:1] == "|"}
    for metric in metrics:
        assert rows[metric].startswith(("McNemar", "bootstrap")), out
