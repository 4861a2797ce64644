"""cli/quickstart.py: what ``make quickstart`` ends with."""

from pathlib import Path

import pytest
from fake_records import make, save

from adalora_repro.cli import quickstart
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK


def test_a_line_a_method_and_the_address_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, score, seed in (("lora", 0.5, 0), ("lora", 0.7, 1), ("adalora", 0.9, 0)):
        time = {"train_s": 2.0, "eval_s": 1.0}
        save(tmp_path, make(score, method=method, seed=seed, time=time, progress={"updated": float(seed)}))
    save(tmp_path, make(method="full", status="failed", final=None))
    assert quickstart.main([str(tmp_path)]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[:2] for line in lines if line.startswith(("lora", "adalora", "full"))]
    assert sorted(rows) == [["adalora", "90.0"], ["lora", "60.0"]]
    assert lines[-1] == f"The page: {(tmp_path / 'report.html').as_uri()}"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("words", [[], ["nowhere"]])
def test_without_finished_runs_there_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(words) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
