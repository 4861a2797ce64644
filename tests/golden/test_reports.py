"""What adalora-report says of the committed records: every table as CSV, and ``status``."""

import pytest

from adalora_repro.cli import report
from golden.compare import rows_of
from golden.conftest import HERE, Golden
from golden.entry import ROOT

#: where the committed records lie, as words for ``--results``; a name of ours -> the folder
RESULTS = {
    "runs": "results/published",
    "ablations": "tests/golden/records/ablations",
    "first-look": "results/published/study-first-look",
}
BACKBONE = "minilm"  # of all committed runs; those of table15 are of the paper's
TABLES = ("table1", "table2", "table3", "table4", "table5", "table14", "table15", "controls")
#: tables that have a cell with a run of ours, for each folder
FILLED = [
    ("runs", "table1"),
    *(("ablations", table) for table in ("table1", "table4", "table5", "table14", "controls")),
    *(("first-look", table) for table in ("table1", "controls")),
]
TOLERANCE = {"": 1e-6}  # libraries add in different orders

Rows = list[dict[str, str]]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's working directory: results/ is below it; a text is as wide as without a terminal."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("COLUMNS", raising=False)


def said(capsys: pytest.CaptureFixture[str], folder: str, *words: str) -> str:
    """Standard output of a report, with the results folder left out of paths and commands."""
    capsys.readouterr()
    assert report.main([*words, "--results", folder]) == 0
    text = capsys.readouterr().out
    assert "results.dir=results/published" not in text  # a command that is copied leaves the records as they are
    for option in (f" results.dir={folder}", f" --results {folder}", f" --results={folder}"):
        text = text.replace(option, "")
    return text.replace(f"{folder}/", "")


def rows(capsys: pytest.CaptureFixture[str], folder: str, table: str, *words: str) -> Rows:
    return rows_of(said(capsys, folder, table, "--format", "csv", *words))


def filled(table: Rows) -> Rows:
    """The rows with a run of ours, in table15 a measurement."""
    return [row for row in table if {"mean", "records", "record"} & row.keys()]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_the_paper_s_backbone(table: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row and column, the paper's numbers, the command of each cell; the measurements of table15."""
    backbone = "bart-large" if table == "table3" else "deberta-v3-base"
    golden(f"reports/{table}.csv", rows(capsys, RESULTS["runs"], table, "--backbone", backbone), TOLERANCE)


@pytest.mark.parametrize(("folder", "table"), FILLED)
def test_the_cells_with_runs_of_ours(
    folder: str, table: str, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chosen learning rate, mean, deviation, tests, numbers of parameters: all that is made of the records."""
    found = filled(rows(capsys, RESULTS[folder], table, "--backbone", BACKBONE))
    golden(f"reports/{folder}-{table}.csv", found, TOLERANCE)


@pytest.mark.parametrize("folder", RESULTS)
def test_no_other_table_has_runs_of_ours(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    others = [table for table in TABLES if (folder, table) not in FILLED]
    assert len(others) < len(TABLES)
    for table in others:
        assert not filled(rows(capsys, RESULTS[folder], table, "--backbone", BACKBONE)), table


@pytest.mark.parametrize("folder", RESULTS)
def test_status(folder: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    """Committed runs are finished, so that no time of day is in it."""
    golden(f"reports/{folder}-status.txt", said(capsys, RESULTS[folder], "status"))


def test_every_file_belongs_to_a_test() -> None:
    expected = {f"{table}.csv" for table in TABLES} | {f"{folder}-status.txt" for folder in RESULTS}
    expected |= {f"{folder}-{table}.csv" for folder, table in FILLED}
    assert {path.name for path in (HERE / "reports").iterdir()} == expected
