"""adalora-report from the outside: what it prints, what it refuses, how it exits, what it must not import."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_records import make, save
from programs import python

import adalora_repro
from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.reports import tables
from adalora_repro.reports.render import FORMATS

ROOT = Path(adalora_repro.__file__).parent.parent
TABLES = {"table1": 96, "table2": 34, "table3": 18, "table4": 36, "table5": 36, "table14": 16, "controls": 36}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with results/ of a few runs."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    for seed, score in enumerate((0.21, 0.23)):
        save(folder, make(score, seed=seed))
    save(folder, make(0.25, method="adalora"))
    save(folder, make(0.40, method="full", budget="full"))
    return folder


def run(*words: str) -> int:
    return report.main(list(words))


def test_without_results_the_paper_speaks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("table1") == EXIT_OK
    out = capsys.readouterr().out
    assert "no record yet" in out
    assert "88.9" in out
    assert run("table1", "--results", "results") == EXIT_OK  # as make says it
    assert capsys.readouterr().out == out
    assert "±" not in out
    assert run("status") == EXIT_OK
    state, *parts = capsys.readouterr().out.split("\n\n")
    assert state.startswith("0 of the paper's 236 cells are filled in the paper's setting")
    assert len(parts) == len(TABLES)  # no grid, no commands
    lines = [part.strip().splitlines()[-1] for part in parts]
    for name, cells in TABLES.items():
        whose = "table's" if name == "controls" else "paper's"
        assert f"0 of the {whose} {cells} cells done; 0 runs; adalora-report {name} --notes lists the commands" in lines


@pytest.mark.parametrize(("form", "ending"), list(zip(FORMATS, ("txt", "md", "tex", "csv", "html"), strict=True)))
def test_out_writes_what_would_be_printed(results: Path, capsys: Captured, form: str, ending: str) -> None:
    """In the form that --format or the ending names."""
    for name in ("table1", "table15"):
        assert run(name, "--format", form) == EXIT_OK
        printed = capsys.readouterr().out
        assert run(name, "--format", form, "--out", name) == EXIT_OK
        assert capsys.readouterr() == ("", f"wrote {name}\n")
        assert run(name, "--out", f"made/{name}.{ending}") == EXIT_OK
        assert {path.read_text(encoding="utf-8") for path in (Path(name), Path(f"made/{name}.{ending}"))} == {printed}


@pytest.mark.parametrize("words", [("table1", "--format", "csv"), ("figure2", "--format", "text")])
def test_a_file_is_replaced_only_when_told_to(results: Path, capsys: Captured, words: tuple[str, ...]) -> None:
    assert run(*words) == EXIT_OK
    printed = capsys.readouterr().out
    Path("mine").write_text("mine", encoding="utf-8")
    Path("link").symlink_to("mine")
    for name in ("mine", "link"):
        assert run(*words, "--out", name) == EXIT_BAD_INPUT
        assert f"'{name}' already exists; --overwrite replaces it" in capsys.readouterr().err
        assert Path("mine").read_text(encoding="utf-8") == "mine"
    assert run(*words, "--out", "link", "--overwrite") == EXIT_OK
    assert Path("mine").read_text(encoding="utf-8") == printed
    assert Path("link").is_symlink()


def test_a_record_is_never_replaced(results: Path, capsys: Captured) -> None:
    record = next(results.rglob("metrics.json"))
    before = record.read_bytes()
    Path("t.md").symlink_to(record)
    for name in (str(record), "t.md"):
        assert run("table1", "--format", "markdown", "--overwrite", "--out", name) == EXIT_BAD_INPUT
        assert f"'{name}' is the name of a record" in capsys.readouterr().err
    assert record.read_bytes() == before


def test_a_record_that_a_table_refuses_is_named_and_not_averaged_in(results: Path, capsys: Captured) -> None:
    """Damaged and copied files: tests/unit/test_records.py."""
    percent = save(results, make(99.0, seed=9))
    assert run("table1") == EXIT_OK
    out, err = capsys.readouterr()
    assert "22.0 ±" in out
    assert "4 records" in out
    assert err.startswith(f"adalora-report: skipped: {percent}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "mean"),
    [
        (("--data", "sample"), "31.0"),
        (("--data", "sample", "--select", "best"), "33.0"),
        (("--protocol", "released"), "77.0"),
        (("--only-filled", "--protocol", "released"), "77.0"),
    ],
)
def test_options_choose_the_runs(results: Path, capsys: Captured, words: tuple[str, ...], mean: str) -> None:
    best = {"metrics": {"matthews_correlation": 0.33}, "step": 50}
    save(results, make(0.31, data="sample", best=best))
    save(results, make(0.77, protocol="released"))
    assert run("table1", *words, "--format", "csv") == EXIT_OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mean"] for row in rows if row["mean"]] == [mean]
    assert (len(rows) == 1) is ("--only-filled" in words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ["choose a report", "table5, table14, table15, figure1, figure2", "claims, compare", "status"]),
        (["compare", "nowhere", "elsewhere"], ["no record 'nowhere'", "metrics.json"]),
        (["tabel1"], ["unknown report 'tabel1' (did you mean table1?)", "status"]),
        (["table1", "--style", "paper", "--format", "csv"], ["--style paper is for LaTeX"]),
        (["table1", "--format", "pdf"], ["pdf", "markdown", "latex", "csv", "html"]),
        (["table1", "--data", "web"], ["web", "hub", "local", "sample"]),
        (["table1", "--backbone", "minilmm"], ["unknown backbone 'minilmm'", "minilm", "deberta-v3-base"]),
        (["table1", "--results", "nowhere"], ["no folder 'nowhere'"]),
        (["table1", "--results", "results/runs"], ["'results/runs' holds no runs/, cost/ or sweeps/"]),
        (["table1", "--out", "t.svg"], ["'.svg'", ".md, .tex, .csv, .html, .txt"]),
        (["table1", "--format", "csv", "--out", "t.pdf"], ["'t.pdf'; valid: .csv"]),
        (["table1", "--format", "csv", "--out", "cost.json", "--overwrite"], ["'cost.json' is the name of a record"]),
        (["table1", "--out", "results", "--format", "csv"], ["'results' is not a regular file"]),
        (["table1", "--out", "/dev/null/t.md"], ["cannot write '/dev/null/t.md'"]),
        (["table1", "--colour"], ["--colour"]),
        (["claims", "--method", "dorra"], ["unknown method 'dorra' (did you mean dora?)"]),
        (["runs", "--by", "optim.lrr"], ["did you mean optim.lr?"]),
        (["runs", "--by", ","], ["--by: name at least one"]),
        (["runs", "--by", "method,score"], ["unknown name in --by 'score'"]),
        (["figure1", "--out", "figure.gif"], ["'.gif'", ".svg", ".png", ".pdf", ".csv", "--format"]),
        (["figure2", "--format", "png"], ["--out FILE"]),
        (["figure3", "nowhere"], ["'nowhere'", "folder"]),
        (["figure3", "--backbone", "bart-large", "--format", "svg"], ["nothing to draw", "method=adalora"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    results: Path, capsys: Captured, words: list[str], says: list[str]
) -> None:
    assert run(*words) == EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adalora-report: error: ")
    assert len(err.splitlines()) == 1
    for text in says:
        assert text in err


def test_help_shows_examples_and_every_report(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == EXIT_OK
    out = capsys.readouterr().out
    assert "examples:" in out
    names = re.findall(r"^    (\w+)(?: +[A-Z]|$)", out, re.MULTILINE)  # titles begin with a capital letter
    assert set(names) == set(report.every_report())
    numbered = [*(f"table{n}" for n in (1, 2, 3, 4, 5, 14, 15)), *(f"figure{n}" for n in (1, 2, 3, 4))]
    assert names == [*numbered, *sorted(set(names) - set(numbered))]
    for line in out.splitlines():
        if line.startswith("  adalora-report "):
            words = line.split("   ")[0].split()[1:]
            report.parser_of(report.every_report()).parse_args(words)


def test_a_module_with_a_spec_or_a_report_is_a_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "table99.py").write_text(
        "import dataclasses\nfrom adalora_repro.reports.tables.table1 import SPEC as ONE\n"
        "SPEC = dataclasses.replace(ONE, name='table99')\n",
        encoding="utf-8",
    )
    (tmp_path / "count99.py").write_text(
        "from adalora_repro.reports.spec import Report\n"
        "def make(request):\n"
        "    request.refused.append('one was refused')\n"
        "    return f'{request.args.twice} {min(request.specs, key=len)}'.encode()\n"
        "REPORT = Report('count99', 'counts', lambda parser: parser.add_argument('--twice'), make, reads='results')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    try:
        assert {"table1", "table99"} <= set(report.discover())
        assert report.main(["count99", "--twice", "x"]) == EXIT_BAD_INPUT  # bytes are for a file
        assert "--out FILE" in capsys.readouterr().err
        assert report.main(["count99", "--twice", "x", "--out", str(tmp_path / "made")]) == EXIT_OK
        assert "one was refused" in capsys.readouterr().err
        assert (tmp_path / "made").read_text(encoding="utf-8") == "x table1"
        assert report.main(["count99", "--backbone", "minilm"]) == EXIT_BAD_INPUT
    finally:
        for name in ("table99", "count99"):
            sys.modules.pop(f"adalora_repro.reports.tables.{name}", None)


def test_runs_as_a_program_and_leaves_a_closed_pipe_alone(results: Path, tmp_path: Path) -> None:
    program = ("-m", "adalora_repro.cli.report")
    done = python(*program, "table1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert "4 records" in done.stdout
    assert python(*program, "nonsense", cwd=tmp_path).returncode == EXIT_BAD_INPUT
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *program, "table1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with os.fdopen(writer, "wb") as pipe:
        broken = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (broken.returncode, broken.stderr) == (EXIT_OK, b"")


def test_imports_nothing_heavy(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json; from adalora_repro.cli import report; "
        "code = sum(report.main([name]) for name in report.every_report() if name not in ('compare', 'html')); "
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = python("-c", code, cwd=tmp_path)
    exit_code, modules = json.loads(done.stderr)
    assert exit_code == EXIT_OK
    heavy = {"torch", "transformers", "hydra", "datasets", "matplotlib", "evaluate"}
    assert not heavy & set(modules)


def test_make_has_a_target_for_every_table() -> None:
    variables = ["BACKBONE=minilm", "RESULTS=elsewhere"]
    command = ["make", "--dry-run", *report.discover(), *variables]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    for name in report.discover():
        assert f"adalora-report {name} --backbone minilm --results elsewhere " in shown
        assert f"--out elsewhere/tables/{name}-minilm." in shown
