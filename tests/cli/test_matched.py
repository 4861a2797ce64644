"""Runs whose size fills a number of parameters, from the command line to the table."""

import csv
import io

import pytest
from conftest import Cli, find_runs, ok

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK


def test_a_sweep_of_numbers_is_a_row_each(tiny: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    done = ok(tiny("-m", "task=cola", "method=lora,bitfit", "budget.match=params", "budget.params=2000,3000"))
    # BitFit has one size, so that its second run is the first
    records = {run.folder.parent.name: run.record for run in find_runs()}
    assert sorted(records) == ["bitfit", "params2000", "params3000"]
    sizes = records["params2000"].budget
    assert (sizes["params"], sizes["r"], sizes["wider"]) == (2000, 2, 3)
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
