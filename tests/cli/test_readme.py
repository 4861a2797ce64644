"""The documentation: every command in its sh blocks is executed in the sense that fits, every link leads somewhere.

A command that nothing here knows how to check is an error: documentation that cannot be tested goes stale.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins

from adalora_repro.cli import report
from adalora_repro.config.sweep import words_of
from adalora_repro.errors import EXIT_OK
from adalora_repro.tasks import toy_text

ROOT = Path(__file__).parents[2]
ADDING = ROOT / "docs" / "adding.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_BLOCK = re.compile(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SIZES = {"train": 40, "validation": 20}
DIR = "DIR"  # how the documentation writes a folder of the reader's
SWEEPER = "hydra_plugins.adalora_sweeper.CellSweeper"
SYSTEM_PACKAGES = ("python3-venv", "git", "make")

Cli = Callable[..., Any]


def commands(page: Path) -> list[str]:
    """Command lines of the sh blocks, without comments; a backslash continues a line."""
    blocks = [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "sh"]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    return [shlex.join(split(line)) for line in lines if split(line)]


def split(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def all_commands() -> list[tuple[Path, str]]:
    return [(page, command) for page in PAGES if page != ADDING for command in commands(page)]


def of_program(name: str) -> list[str]:
    return [command for _, command in all_commands() if split(command)[0] == name]


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """What stands for DIR: a few rows of each task in the layout that the README describes, and a saved model."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # resolved only: never loaded
    (folder / "config.json").write_text("{}", encoding="utf-8")
    for path in sorted((ROOT / "conf" / "task").glob("*.yaml")):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))["task"]
        sizes = {"train": SIZES["train"]} | dict.fromkeys(task["validation"].values(), SIZES["validation"])
        (folder / task["name"]).mkdir(parents=True)
        for name in sizes:
            rows = toy_text.generate(task["name"], name, sizes, 0)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task["name"] / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def with_folder(words: Sequence[str], folder: Path) -> list[str]:
    return [word.replace(f"={DIR}", f"={folder}") for word in words]


# -- commands ------------------------------------------------------------------------------------------------------


def test_readme_has_the_two_commands_a_run_and_a_report() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    screen = text.splitlines()[:40]
    for needed in ("make quickstart", "make test", "adalora-run task=", "adalora-report table1"):
        assert any(line.startswith(needed) for line in screen), f"the first screen has no '{needed}'"
    assert max(len(line) for line in screen) <= 135


def test_every_command_is_one_that_is_checked_here() -> None:
    known = {"make", "adalora-run", "adalora-report", "."}
    unknown = [f"{page.name}: {command}" for page, command in all_commands() if split(command)[0] not in known]
    assert not unknown


def test_the_activation_script_is_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    folder = re.search(r"^VENV := (\S+)$", makefile, re.MULTILINE)
    assert folder is not None
    assert {split(command)[1] for command in of_program(".")} == {f"{folder[1]}/bin/activate"}


@pytest.mark.parametrize("command", sorted(set(of_program("make"))))
def test_make(command: str) -> None:
    assert shutil.which("make"), "make is needed"
    done = subprocess.run(
        ["make", "--dry-run", *split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == EXIT_OK, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_in_the_text(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert named <= targets


@pytest.mark.parametrize("command", sorted(set(of_program("adalora-run"))))
def test_adalora_run(command: str, cli: Cli, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed, resolved and counted by the program itself; what would train is asked for its plan instead.

    The many runs of a sweep differ in settings, not in what is counted: they are composed and resolved only.
    """
    words = with_folder(split(command)[1:], user_folder)
    if "-m" in words:
        monkeypatch.setattr(Plugins.instance().class_name_to_class[SWEEPER], "launch", resolve_only)
    plain = [word for word in words if word in ("--help", "--cfg")]
    done = cli(*words) if plain or "dry_run=true" in words else cli(*words, "dry_run=true")
    assert done.code == EXIT_OK, done.err
    assert done.out
    if not plain:
        assert done.out.count("\nfolder: ") == runs_of(words)


def resolve_only(self: Any, jobs: Sequence[Any]) -> Sequence[Any]:
    """In the place of ``CellSweeper.launch``: composed and resolved, hundreds in seconds."""
    self.plan(jobs)
    for job in jobs:
        print(f"plan\nfolder: {self.plans[words_of(job)].folder}")
    return jobs


def runs_of(words: Sequence[str]) -> int:
    """How many runs a command stands for: the product of its comma lists and of the sweeps it names.

    Of stages the first: it has one seed; the others wait for its results.
    """
    if "-m" not in words:
        return 1
    given = {key: value.split(",") for key, _, value in (word.partition("=") for word in words if "=" in word)}
    names = given.pop("+sweep", [])
    lists: dict[str, list[str]] = {}
    cells: list[dict[str, str]] = []
    for name in names:
        path = ROOT / "sweeps" / f"{name.strip('[]')}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["sweeper"]
        lists |= {key: str(values).split(",") for key, values in content.get("params", {}).items()}
        for products in content.get("cells", {}).values():
            for product in products:
                values = itertools.product(*(text.split(",") for text in product.values()))
                cells += [dict(zip(product, combination, strict=True)) for combination in values]
    lists |= given
    if cells:
        axes = [axis for axis in ("task", "method", "budget") if axis in lists]
        cells = [cell for cell in cells if all(cell.get(axis) in lists[axis] for axis in axes)]
        lists = {key: values for key, values in lists.items() if key not in axes}
    return math.prod(map(len, lists.values())) * (len(cells) or 1)


@pytest.mark.parametrize("command", sorted(set(of_program("adalora-report"))))
def test_adalora_report(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "published").symlink_to(ROOT / "results" / "published")  # the project's own records
    words = split(command)[1:]
    assert report.main(with_folder(words, tmp_path / "results")) == EXIT_OK
    out, err = capsys.readouterr()
    assert out or (err.startswith("wrote ") and (tmp_path / err.split()[1]).is_file())


def test_command_below_the_table(cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The README says that the commands below a table fill its empty cells."""
    monkeypatch.setattr(Plugins.instance().class_name_to_class[SWEEPER], "launch", resolve_only)
    assert report.main(["table1"]) == EXIT_OK
    command = next(line for line in capsys.readouterr().out.splitlines() if "adalora-run -m" in line)
    words = split(command[command.index("adalora-run") :].strip("`"))[1:]
    done = cli(*words, "dry_run=true")
    assert done.code == EXIT_OK, done.err
    assert done.out.count("\nfolder: ") == runs_of(words)


def test_printed_plan_is_the_programs(cli: Cli) -> None:
    """A text block behind a dry run shows lines of its output; … stands for those left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    shown = [
        (before[1].strip(), after[1])
        for before, after in pairwise(blocks)
        if before[0] == "sh" and after[0] == "text" and "dry_run=true" in before[1]
    ]
    assert shown
    for command, lines in shown:
        printed = cli(*split(command)[1:]).out.splitlines()
        missing = [line for line in lines.splitlines() if line != "…" and line not in printed]
        assert not missing


def test_system_packages_are_those_the_makefile_asks_for() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (packages,) = re.findall(r"`apt install ([\w .+-]+)`", text)
    assert tuple(packages.split()) == SYSTEM_PACKAGES
    assert "apt install python3-venv" in (ROOT / "Makefile").read_text(encoding="utf-8")


# -- docs/adding.md: files and commands in a copy of the project ---------------------------------------------------


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of docs/adding.md in it."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("adalora_repro", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = FILE_BLOCK.findall(ADDING.read_text(encoding="utf-8"))
    assert [Path(name).parent.name for name, _ in files] == ["methods", "method", "task", "tables"]
    for name, content in files:
        assert not (copy / name).exists(), f"{name} is part of the project by now: choose another example"
        (copy / name).write_text(content, encoding="utf-8")
    return copy


def test_adding(extended: Path) -> None:
    """The commands of the page in their order, one after the other as a reader would type them."""
    modules = {"adalora-run": "adalora_repro.cli.run", "adalora-report": "adalora_repro.cli.report"}
    environment = os.environ | {"PYTHONPATH": str(extended), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    printed = {}
    for command in commands(ADDING):
        program, *words = split(command)
        small = program == "adalora-run" and "dry_run=true" not in words
        options = ["task.max_length=16", "data.sample_rows=64", f"data.cache_dir={extended / 'cache'}"] if small else []
        done = subprocess.run(
            [sys.executable, "-m", modules[program], *words, *options],
            cwd=extended,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            encoding="utf-8",
        )
        assert done.returncode == EXIT_OK, f"{command}: {done.stderr}"
        printed[command] = done.stdout
    text = "\n".join(printed.values())
    assert "method=rslora" in text
    assert "331,776" in text  # 165,888 r: what LoRA has
    assert "rslora 0.3M" in text
    assert "task=wnli" in text
    assert "small,deberta-v3-base" in text or "small,tiny-bert" in text


def test_files_of_adding_are_linted(extended: Path) -> None:
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    names = [name for name, _ in FILE_BLOCK.findall(ADDING.read_text(encoding="utf-8")) if name.endswith(".py")]
    options = ["check", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [ruff, *options, *names], cwd=extended, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == EXIT_OK, done.stdout


# -- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Headings as the usual Markdown renderers name them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
