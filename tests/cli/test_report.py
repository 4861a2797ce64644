"""adalora-report from the outside: what it prints, what it refuses, how it exits, what it must not import."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_records import GLUE, PERCENT, make, save

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


def subprocess_report(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "adalora_repro.cli.report", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
    )


def test_table1(results: Path, capsys: Captured) -> None:
    assert run("table1") == EXIT_OK
    out, err = capsys.readouterr()
    assert err == ""
    assert "Backbone minilm; data local; protocol paper; checkpoint final" in out.replace("\n", " ")
    assert "4 records, seeds 0, 1" in out.replace("\n", " ")
    assert "22.0 ± 1.4 (2)" in out
    assert run("table1", "--notes") == EXIT_OK
    out = capsys.readouterr().out
    assert "adalora-run -m task=mnli,sst2,cola,qqp,qnli,rte,mrpc,stsb method=bitfit backbone=minilm data=local" in out


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("--version")
    assert exit_.value.code == EXIT_OK
    assert capsys.readouterr().out == f"adalora-report {adalora_repro.__version__}\n"


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
    state, *lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert state.startswith("0 of the paper's 236 cells are filled in the paper's setting")
    assert len(lines) == 2 * len(TABLES)  # no grid, no commands
    for name, cells in TABLES.items():
        whose = "table's" if name == "controls" else "paper's"
        assert f"0 of the {whose} {cells} cells done; 0 runs; adalora-report {name} --notes lists the commands" in lines


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_every_task_of_a_table_reaches_its_cell(results: Path, capsys: Captured, name: str) -> None:
    spec = report.discover()[name]
    for place, column in enumerate(spec.columns):
        assert column.task in PERCENT
        save(results, make(61.0 + place, task=column.task, method="full", budget="full", backbone=spec.backbone))
    assert run(name, "--only-filled") == EXIT_OK
    out, err = capsys.readouterr()
    assert err == ""
    assert f"Backbone {spec.backbone}; data local" in out
    assert "/".join(["61.0"] * len(spec.columns[0].metrics)) in out
    assert "/".join(["62.0"] * len(spec.columns[1].metrics)) in out
    assert run(name, "--select", "best", "--notes") == EXIT_OK
    assert "2 records without an evaluation at the final budget" in capsys.readouterr().out


@pytest.mark.parametrize("form", FORMATS)
def test_out_writes_what_would_be_printed(results: Path, capsys: Captured, form: str) -> None:
    assert run("table1", "--format", form) == EXIT_OK
    printed = capsys.readouterr().out
    assert run("table1", "--format", form, "--out", "table") == EXIT_OK
    out, err = capsys.readouterr()
    assert (out, err) == ("", "wrote table\n")
    assert Path("table").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize(("form", "ending"), list(zip(FORMATS, ("txt", "md", "tex", "csv", "html"), strict=True)))
def test_the_ending_of_out_is_the_form_of_a_table(results: Path, capsys: Captured, form: str, ending: str) -> None:
    for name in ("table1", "table15"):
        assert run(name, "--format", form) == EXIT_OK
        printed = capsys.readouterr().out
        assert run(name, "--out", f"made/{name}.{ending}") == EXIT_OK
        assert Path(f"made/{name}.{ending}").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize("words", [("table1", "--format", "csv"), ("figure2", "--format", "text")])
def test_a_file_is_replaced_only_when_told_to(results: Path, capsys: Captured, words: tuple[str, ...]) -> None:
    assert run(*words) == EXIT_OK
    printed = capsys.readouterr().out
    Path("empty").touch()  # of mktemp, say
    assert run(*words, "--out", "empty") == EXIT_OK
    assert Path("empty").read_text(encoding="utf-8") == printed
    Path("mine").write_text("mine", encoding="utf-8")
    Path("link").symlink_to("mine")
    for name in ("mine", "link"):
        assert run(*words, "--out", name) == EXIT_BAD_INPUT
        assert f"'{name}' is there already; --overwrite replaces it" in capsys.readouterr().err
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


def test_a_pipe_is_written_into_and_stays(results: Path, capsys: Captured) -> None:
    assert run("table1") == EXIT_OK
    printed = capsys.readouterr().out
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run("table1", "--out", "pipe") == EXIT_OK
    assert os.read(reader, 1_000_000).decode() == printed
    os.close(reader)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_results_folder_elsewhere(results: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run("table1", "--results", str(tmp_path / "results")) == EXIT_OK
    out = capsys.readouterr().out
    assert "4 records" in out
    assert f"results.dir={tmp_path / 'results'}" in out


def test_damaged_and_copied_files_are_named_and_not_averaged_in(results: Path, capsys: Captured) -> None:
    damaged = results / "runs" / "x" / "metrics.json"
    damaged.parent.mkdir()
    damaged.write_text('{"final": ', encoding="utf-8")
    good = next((results / "runs").glob("minilm/cola/lora/*/*seed0*/metrics.json"))
    copied = good.parent.with_name("copy") / "metrics.json"
    copied.parent.mkdir()
    copied.write_bytes(good.read_bytes())
    percent = save(results, make(99.0, seed=9))
    assert run("table1") == EXIT_OK
    out, err = capsys.readouterr()
    assert "22.0 ±" in out
    assert "4 records" in out
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("adalora-report: skipped: ") for line in lines)
    for path in (damaged, copied, percent):
        assert sum(str(path) in line.split(": ")[2] for line in lines) == 1


def test_select_best_data_and_protocol(results: Path, capsys: Captured) -> None:
    best = {"metrics": {"matthews_correlation": 0.33}, "step": 50}
    save(results, make(0.31, data="sample", best=best))
    save(results, make(0.77, protocol="released"))
    assert run("table1", "--data", "sample", "--select", "best", "--format", "csv") == EXIT_OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mean"] for row in rows if row["mean"]] == ["33.0"]
    assert {(row["data"], row["checkpoint"]) for row in rows} == {("sample", "best")}
    assert run("table1", "--data", "sample") == EXIT_OK
    assert "NOT the paper's data" in capsys.readouterr().out.replace("\n", " ")
    assert run("table1", "--protocol", "released", "--format", "csv") == EXIT_OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mean"] for row in rows if row["mean"]] == ["77.0"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            [],
            ["say which report", "table1, table2, table3, table4, table5, table14, controls", "compare"],
        ),
        ([], ["table15", "status", "html", "figure1, figure2, figure3, figure4"]),
        (["compare", "nowhere", "elsewhere"], ["no record 'nowhere'", "metrics.json"]),
        (["compare", "nowhere"], ["RUN_B"]),
        (["tabel1"], ["no report 'tabel1': did you mean table1?", "status"]),
        (["MNLI"], ["no report 'MNLI'", "table1"]),
        (["table1", "--style", "paper", "--format", "csv"], ["--style paper is for LaTeX"]),
        (["check-paper"], ["no report 'check-paper'"]),
        (["table1", "--format", "pdf"], ["pdf", "markdown", "latex", "csv", "html"]),
        (["table1", "--select", "last"], ["last", "final", "best"]),
        (["table1", "--data", "web"], ["web", "hub", "local", "sample"]),
        (["table1", "--protocol", "x"], ["paper", "released"]),
        (["table1", "--backbone", "minilmm"], ["unknown backbone 'minilmm'", "minilm", "deberta-v3-base"]),
        (["status", "--backbone", "minilmm"], ["unknown backbone 'minilmm'"]),
        (["table1", "--results", "nowhere"], ["no folder 'nowhere'"]),
        (["table1", "--results", "results/runs"], ["'results/runs' holds no runs/, cost/ or sweeps/"]),
        (["table15", "--results", "."], ["'.' holds no runs/, cost/ or sweeps/"]),
        (["status", "--results", "."], ["'.' holds no runs/, cost/ or sweeps/"]),
        (["table1", "--out", "t.svg"], ["'.svg'", ".md, .tex, .csv, .html, .txt"]),
        (["table1", "--format", "csv", "--out", "t.pdf"], ["'t.pdf' is no name for csv; valid endings: .csv"]),
        (["table15", "--format", "csv", "--out", "t.md"], ["'t.md' is no name for csv; valid endings: .csv"]),
        (["compare", "a", "b", "--out", "cost.json", "--overwrite"], ["'cost.json' is the name of a record"]),
        (["table1", "--out", "results", "--format", "csv"], ["'results' is a folder"]),
        (["table1", "--out", "a/b/t.md"], ["cannot write 'a/b/t.md'", "no folder '"]),
        (["table1", "--out", "/dev/null/t.md"], ["cannot write '/dev/null/t.md'"]),
        (["table1", "--colour"], ["--colour"]),
        (["table1", "--back", "minilm"], ["--back"]),
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


def test_a_backbone_of_the_configuration_needs_no_record(results: Path, capsys: Captured) -> None:
    assert run("table1", "--backbone", "deberta-v3-base") == EXIT_OK
    assert "no record yet" in capsys.readouterr().out


def test_a_failing_write_keeps_the_old_table(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    Path("t.md").write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run("table1", "--out", "t.md", "--overwrite") == EXIT_BAD_INPUT
    assert "No space left on device" in capsys.readouterr().err
    assert Path("t.md").read_text(encoding="utf-8") == "old"
    assert sorted(os.listdir()) == ["results", "t.md"]


def test_status(results: Path, capsys: Captured) -> None:
    progress = {"step": 5, "total_steps": 100, "updated": time.time(), "host": "elsewhere", "pid": 1}
    save(results, make(task="rte", status="running", progress=progress))
    save(results, make(task="mrpc", status="running", progress=progress | {"updated": time.time() - 3600}))
    save(results, make(task="stsb", status="failed", error="loss is nan at step 3"))
    assert run("status") == EXIT_OK
    out = capsys.readouterr().out
    lora = next(line for line in out.splitlines() if line.startswith("LoRA 0.3M"))
    assert lora.split()[2:] == [".", ".", "2", ".", ".", "r1", "i1", "f1"]
    assert "rte lora 0.3M lr 1e-3 seed 0: step 5/100" in out
    assert "silent for 60 min" in out
    assert "loss is nan at step 3" in out
    assert "3 of the paper's 96 cells done" in out


def test_status_of_each_table_has_its_own_scope(results: Path, capsys: Captured) -> None:
    save(results, make(90.0, task="squad", budget="0.08%", backbone="deberta-v3-base", data="hub"))
    save(results, make(task="xsum", budget="0.13%", backbone="bart-large", status="failed", error="loss is nan"))
    assert run("status") == EXIT_OK
    _, glue, squad, summaries, *_ = capsys.readouterr().out.split("\n\nReproduction of ")
    assert "Backbone minilm; data local" in glue
    assert "Backbone deberta-v3-base; data hub" in squad
    assert "1 of the paper's 34 cells done; 1 run: 1 finished" in squad
    assert next(line for line in squad.splitlines() if line.startswith("LoRA 0.08%")).split()[2:] == ["1", "."]
    assert "task=squad_v2 method=lora budget=0.08% backbone=deberta-v3-base data=hub" in squad
    assert "Backbone bart-large; data local" in summaries
    assert next(line for line in summaries.splitlines() if line.startswith("LoRA 0.13%")).split()[2:] == ["f1", "."]
    assert "0 of the paper's 18 cells done; 1 run: 1 failed" in summaries
    assert "loss is nan" in summaries
    assert "loss is nan" not in glue + squad


def test_help_shows_examples_and_every_report(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == EXIT_OK
    out = capsys.readouterr().out
    assert "examples:" in out
    for name in (*TABLES, "status"):
        assert f"\n    {name} " in out
    for line in out.splitlines():
        if line.startswith("  adalora-report "):
            words = line.split("   ")[0].split()[1:]
            report.parser_of(report.every_report()).parse_args(words)


def test_a_module_with_a_spec_is_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "table99.py").write_text(
        "import dataclasses\nfrom adalora_repro.reports.tables.table1 import SPEC as ONE\n"
        "SPEC = dataclasses.replace(ONE, name='table99')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    try:
        assert {"table1", "table99"} <= set(report.discover())
    finally:
        sys.modules.pop("adalora_repro.reports.tables.table99", None)


def test_a_module_with_a_report_is_one_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "count99.py").write_text(
        "from adalora_repro.reports.spec import Report\n"
        "def make(request):\n"
        "    return f'{request.args.twice} {min(request.specs, key=len)}'.encode(), ['one was refused']\n"
        "REPORT = Report('count99', 'counts', lambda parser: parser.add_argument('--twice'), make, reads='results')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    try:
        assert report.main(["count99", "--twice", "x"]) == EXIT_BAD_INPUT  # bytes are for a file
        assert "--out FILE" in capsys.readouterr().err
        assert report.main(["count99", "--twice", "x", "--out", str(tmp_path / "made")]) == EXIT_OK
        assert "one was refused" in capsys.readouterr().err
        assert (tmp_path / "made").read_text(encoding="utf-8") == "x table1"
        assert report.main(["count99", "--backbone", "minilm"]) == EXIT_BAD_INPUT
    finally:
        sys.modules.pop("adalora_repro.reports.tables.count99", None)


def test_runs_as_a_program_and_leaves_a_closed_pipe_alone(results: Path, tmp_path: Path) -> None:
    done = subprocess_report("table1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert "4 records" in done.stdout
    assert subprocess_report("nonsense", cwd=tmp_path).returncode == EXIT_BAD_INPUT
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "adalora_repro.cli.report", "table1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with os.fdopen(writer, "wb") as pipe:
        broken = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (broken.returncode, broken.stderr) == (EXIT_OK, b"")


def test_imports_nothing_heavy(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json; from adalora_repro.cli import report; "
        "code = sum(report.main([name]) for name in report.discover()) or report.main(['status']); "
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        encoding="utf-8",
    )
    exit_code, modules = json.loads(done.stderr)
    assert exit_code == EXIT_OK
    heavy = {"torch", "transformers", "hydra", "datasets", "matplotlib", "evaluate"}
    assert not heavy & set(modules)


def test_hundreds_of_records_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what makes a record safe makes many slow
    ranks = {f"encoder.layer.{i}.attention.self.query_proj": i % 4 for i in range(72)}
    for task in GLUE:
        for lr in range(1, 11):
            for seed in range(10):
                save(tmp_path, make(0.5 + lr / 1000, task=task, lr=lr * 1e-4, seed=seed, rank_pattern=ranks))
    assert run("table1", "--results", str(tmp_path), "--format", "csv") == EXIT_OK
    out, err = capsys.readouterr()
    assert err == ""
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["mean"] and row["task"] != "all"]
    assert len(rows) == 10
    assert {(row["mean"], row["n_seeds"], row["lr"]) for row in rows} == {("51.0", "10", "0.001")}
    assert all(len(row["lrs_tried"].split()) == 10 for row in rows)


def test_make_has_a_target_for_every_table() -> None:
    """``make table3`` is four formats of ``adalora-report table3`` with the backbone of that table."""
    assert shutil.which("make"), "make is needed"

    def make_(*words: str, **variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("BACKBONE", "RESULTS")}
        done = subprocess.run(
            ["make", *words],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            encoding="utf-8",
        )
        return done.stdout

    shown = make_("help")
    specs = report.discover()
    assert list(specs) == list(TABLES)
    for name, spec in specs.items():
        assert f"\n  make {name} " in shown
        text = make_("--dry-run", name)
        assert f"adalora-report {name} --backbone {spec.backbone} --results results " in text
        assert f"--out results/tables/{name}-{spec.backbone}." in text
        for form in FORMATS[1:]:  # a terminal's text is in no file
            assert f" {form}:" in text
        for other in (
            make_("--dry-run", name, "BACKBONE=minilm", "RESULTS=elsewhere"),
            make_("--dry-run", name, BACKBONE="minilm", RESULTS="elsewhere"),
        ):
            assert f"adalora-report {name} --backbone minilm --results elsewhere " in other
            assert f"--out elsewhere/tables/{name}-minilm." in other
