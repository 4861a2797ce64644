"""Runs whose size fills a number of parameters, from the command line to the table."""

from __future__ import annotations

import csv
import io

import pytest
from conftest import Cli, find_runs, only_run

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK

PARAMS = 5000
MATCHED = ("task=cola", "budget.match=params", f"budget.params={PARAMS}", "optim.lr=1e-2")


def test_the_record_has_the_count_and_the_sizes(tiny: Cli) -> None:
    assert tiny(*MATCHED, "method=houlsby").code == EXIT_OK
    run = only_run()
    assert run.folder.parent.name == "params5000"
    record = run.record
    assert (record.settings["budget.match"], record.settings["budget.params"]) == ("params", PARAMS)
    assert record.budget is not None
    sizes, smallest = record.budget["widths"], record.budget["d"]
    spent = sum(65 * size + 32 for size in sizes.values())
    assert record.params["method"] == spent <= PARAMS == record.budget["params"]
    assert {*sizes.values()} == {smallest, smallest + 1}
    assert record.budget["wider"] == sum(size > smallest for size in sizes.values())
    assert tiny(*MATCHED, "method=houlsby").out.startswith("already done: ")


def test_a_sweep_of_numbers_is_a_row_each(tiny: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    done = tiny("-m", "task=cola", "method=lora,bitfit", "budget.match=params", "budget.params=2000,3000")
    assert done.code == EXIT_OK, done.err
    # BitFit has one size, so that its second run is the first
    assert sorted(run.folder.parent.name for run in find_runs()) == ["bitfit", "params2000", "params3000"]
    assert "method 'bitfit' has one size" in done.err
    assert tiny("task=cola", "method=lora", "budget.match=params").code == EXIT_OK
    assert report.main(["table1", "--format", "csv", "--data", "sample"]) == EXIT_OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    counts = {row["method_name"]: row["params_method_max"] for row in rows if row["task"] == "cola" and row["records"]}
    assert counts == {
        "BitFit": counts["BitFit"],
        "LoRA 0.3M-params": "300000",
        "LoRA params2000": "1984",
        "LoRA params3000": "2976",
    }
