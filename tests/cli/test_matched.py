"""Runs whose size fills a number of parameters, from the command line to the table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import pytest
from conftest import Outcome, Run, find_runs, only_run, require_same, signal_after_step

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK, EXIT_TERMINATED

Cli = Callable[..., Outcome]
PARAMS = 5000
MATCHED = ("task=cola", "budget.match=params", f"budget.params={PARAMS}", "optim.lr=1e-2")


def cost(name: str) -> int:
    """Parameters of a triplet of AdaLoRA: widths 32 and 64; a rank of LoRA has one less."""
    return 97 if "ffn" in name else 65


@pytest.mark.parametrize(
    "method", ["houlsby", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pfeiffer", "lora"))]
)
def test_the_record_has_the_count_and_the_sizes(tiny: Cli, method: str) -> None:
    dry = tiny(*MATCHED, f"method={method}", "dry_run=true")
    assert dry.code == EXIT_OK, dry.err
    assert re.search(r"  matched to +5,000  never above; slack ", dry.out)
    assert tiny(*MATCHED, f"method={method}").code == EXIT_OK
    run = only_run()
    assert run.folder.parent.name == "params5000"
    assert str(run.folder) in dry.out
    record = run.record
    assert (record.settings["budget.match"], record.settings["budget.params"]) == ("params", PARAMS)
    sizes = record.rank_pattern if method == "lora" else record.budget["widths"]
    spent = sum((cost(name) - 1) * size if method == "lora" else 65 * size + 32 for name, size in sizes.items())
    assert record.params["method"] == spent <= PARAMS == record.budget["params"]
    smallest = record.budget["r" if method == "lora" else "d"]
    assert {*sizes.values()} == {smallest, smallest + 1}
    assert record.budget["wider"] == sum(size > smallest for size in sizes.values())
    again = tiny(*MATCHED, f"method={method}")
    assert again.code == EXIT_OK
    assert again.out.startswith("already done: ")


@pytest.mark.parametrize("protocol", ["paper", pytest.param("released", marks=pytest.mark.slow)])
def test_adalora_ends_at_the_number_resumed_or_not(
    tiny: Cli, undisturbed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    command = (*MATCHED, "method=adalora", f"protocol={protocol}", "train.eval_steps=2")
    with monkeypatch.context() as patch:
        signal_after_step(patch, 4)  # in the final phase
        assert tiny(*command).code == EXIT_TERMINATED
    resumed = tiny(*command)
    assert resumed.code == EXIT_OK, resumed.err
    assert "at step 4 of 6\n" in resumed.err
    require_same(only_run(), undisturbed(*command))
    record = only_run().record
    assert record.rank_pattern is not None
    spent = sum(rank * cost(name) for name, rank in record.rank_pattern.items())
    assert record.params["method"] == spent
    assert PARAMS - 97 < spent <= PARAMS
    assert record.params["at_init"] > PARAMS


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
