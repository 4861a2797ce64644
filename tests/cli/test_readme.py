"""The documents: every command of an sh block is executed in the sense that fits, every link leads somewhere.

A command that nothing here knows how to check is an error: documentation that cannot be tested goes stale.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli, ok
from hydra.core.plugins import Plugins
from programs import copy_project, printed
from task_configs import write_jsonl

import adalora_repro
from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK
from adalora_repro.tasks import toy_text
from hydra_plugins import adalora_sweeper

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_BLOCK = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: what the pages show how to add; their commands run in a copy of the project
EXAMPLES = {"my_rslora", "wnli", "smoothed", "small"}
DIR = "DIR"  # how the documents write a folder of the reader's
MODULES = {"adalora-run": "run", "adalora-report": "report"}


def commands(page: Path) -> list[str]:
    """Command lines of the sh blocks, without comments; a backslash continues a line."""
    blocks = [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "sh"]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def is_of_an_example(command: str) -> bool:
    return bool(EXAMPLES & set(re.split(r"[=, ]", command)))


ALL = [command for page in PAGES if page.name != "own.md" for command in commands(page)]  # test_own_runs.py


def of_program(name: str) -> list[str]:
    return sorted({command for command in ALL if shlex.split(command)[0] == name and not is_of_an_example(command)})


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for DIR: a few rows of each task as docs/own-data.md describes them, and a saved model."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # resolved only: never loaded
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    for path in sorted((ROOT / "conf" / "task").glob("*.yaml")):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))["task"]
        if "hub" not in task:  # no text of ours
            continue
        sizes = {"train": 40} | dict.fromkeys(task["validation"].values(), 20)
        for name in sizes:
            write_jsonl(folder / task["name"] / f"{name}.jsonl.gz", toy_text.generate(task["name"], name, sizes, 0))
    return folder


# -- commands ------------------------------------------------------------------------------------------------------


def test_every_command_is_one_that_is_checked_here() -> None:
    programs = {shlex.split(command)[0] for command in ALL}
    assert programs == {"make", "adalora-run", "adalora-report", "."}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert of_program(".") == [f". {re.findall(r'^VENV := (.+)$', makefile, re.M)[0]}/bin/activate"]


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert commands(README)[:2] == ["make quickstart", "make test"]


@pytest.mark.parametrize("command", of_program("make"))
def test_make(command: str) -> None:
    words = ["make", "--dry-run", *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == EXIT_OK, done.stderr


@pytest.mark.parametrize("command", of_program("adalora-run"))
def test_adalora_run(command: str, cli: Cli, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would train prints its plan instead; of a sweep the jobs are listed, and the first is composed."""
    words = [word.replace(f"={DIR}", f"={user_folder}") for word in shlex.split(command)[1:]]
    Plugins.instance()  # imports the sweeper anew, the first time: before its class is patched
    jobs: list[Any] = []

    def launch(self: Any, wanted: Sequence[Any]) -> list[Any]:
        for job in wanted[:1]:
            loader = self.hydra_context.config_loader
            loader.load_sweep_config(self.config, list(adalora_sweeper.words_of(job)))
        jobs.extend(wanted)
        return []

    monkeypatch.setattr(adalora_sweeper.CellSweeper, "launch", launch)
    done = ok(cli(*words, *(["dry_run=true"] if "dry_run=true" not in words else [])))
    assert jobs or "\nfolder: " in done.out


@pytest.mark.parametrize("command", of_program("adalora-report"))
def test_adalora_report(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "published").symlink_to(ROOT / "results" / "published")
    assert report.main(shlex.split(command)[1:]) == EXIT_OK
    out, err = capsys.readouterr()
    assert out or (tmp_path / err.splitlines()[-1].removeprefix("wrote ")).is_file()


def test_printed_plan_is_the_programs(cli: Cli) -> None:
    """A text block behind a dry run shows lines of its output; … stands for those left out."""
    shown = []
    for (kind, before), (next_kind, lines) in pairwise(BLOCK.findall(README.read_text(encoding="utf-8"))):
        dry_runs = [line for line in before.splitlines() if kind == "sh" and "dry_run=true" in line]
        shown += [(dry_runs[0], lines.splitlines())] if dry_runs and next_kind == "text" else []
    assert shown
    for command, lines in shown:
        printed = cli(*shlex.split(command)[1:]).out.splitlines()
        assert [line for line in lines if line != "…" and line not in printed] == []


def test_examples_of_what_can_be_added(tmp_path: Path, user_folder: Path) -> None:
    """The files of the pages in a copy of the project, linted, and their commands in the order of the pages."""
    copy_project(tmp_path)
    pages = [page for page in PAGES if page.name != "adding.md"]  # whose files are outside the project: test_adding.py
    files = [file for page in pages for file in FILE_BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert {Path(name).stem for name, _ in files} == EXAMPLES
    for name, content in files:
        assert not (tmp_path / name).exists(), f"{name} is part of the project by now: choose another example"
        (tmp_path / name).write_text(content, encoding="utf-8")
    small = ["task.max_length=16", "data.sample_rows=64", f"data.cache_dir={tmp_path / 'cache'}"]
    calls = []
    shutil.copytree(user_folder / "rte", user_folder / "smoothed")
    for command in filter(is_of_an_example, ALL):
        program, *words = shlex.split(command.replace(f"={DIR}", f"={user_folder}"))
        trains = program == "adalora-run" and "dry_run=true" not in words
        calls.append([MODULES[program], *words, *(small if trains else [])])
    calls.append(["report", "table1", "--backbone", "tiny-bert", "--only-filled"])
    *plans, table = printed(tmp_path, calls)
    for text in ("method=my_rslora", "331,776", "task=wnli"):  # 331,776 = 165,888 r, as for LoRA
        assert text in "".join(plans)
    assert "my rslora" in table.lower()
    if ruff := shutil.which("ruff"):
        names = [name for name, _ in files if name.endswith(".py")]
        words = [ruff, "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), *names]
        linted = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True, encoding="utf-8")
        assert linted.returncode == EXIT_OK, linted.stdout


def python_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    files = {content for _, content in FILE_BLOCK.findall(text)}
    return [body for kind, body in BLOCK.findall(text) if kind == "python" and body not in files]


@pytest.mark.parametrize("page", list(filter(python_blocks, PAGES)), ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, as in a notebook, in a folder with the published records."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "published").symlink_to(ROOT / "results" / "published")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for body in python_blocks(page):
        exec(compile(body, page.name, "exec"), names)


# -- what the pages name -------------------------------------------------------------------------------------------


def test_the_readme_states_what_status_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["status", "--results", str(ROOT / "results" / "published")]) == EXIT_OK
    state = re.match(r"\d+ of the paper's \d+ cells", capsys.readouterr().out)
    assert state
    assert f"**State: {state[0]} are filled" in README.read_text(encoding="utf-8")


def test_tests_that_the_page_on_faults_names_exist() -> None:
    names = re.findall(r"`(\w+/test_\w+\.py)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert names
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(BLOCK.sub("", text)):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if re.match(r"[a-z]+:", target) is None and (not path.exists() or (anchor and anchor not in anchors(path))):
            broken.append(target)
    assert not broken
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z0-9-]+)", text)) <= set(targets)


def anchors(page: Path) -> set[str]:
    """Headings as the usual Markdown renderers name them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_versions_and_system_packages_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == adalora_repro.__version__
    (packages,) = re.findall(r"`apt install ([\w .+-]+)`", README.read_text(encoding="utf-8"))
    assert packages == "python3-venv git make"
    assert "apt install python3-venv" in (ROOT / "Makefile").read_text(encoding="utf-8")
