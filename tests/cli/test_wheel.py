"""The built wheel, installed alone: configurations and the paper's numbers travel with it."""

import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from programs import copy_project, python

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is in the dev extra")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a build leaves nothing in the checkout, and nothing in the checkout is in its way."""
    source = tmp_path_factory.mktemp("source")
    copy_project(source)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel))
    return target


def pip(*words: str) -> None:
    done = python("-m", "pip", "--disable-pip-version-check", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def program(target: Path, cwd: Path, name: str, *words: str) -> str:
    done = python(str(target / "bin" / name), *words, project=target, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_is_needed(source: Path, wheel: Path) -> None:
    def files(*patterns: str) -> set[str]:
        return {str(path.relative_to(source)) for pattern in patterns for path in source.glob(pattern)}

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configurations = {f"adalora_repro/{name}" for name in files("conf/**/*.yaml", "sweeps/*.yaml")}
    numbers = files("adalora_repro/reports/tables/paper/*.csv")
    assert len(configurations) > 50
    assert len(numbers) == 9
    assets = files("adalora_repro/reports/templates/*")
    assert {"page.html", "page.css", "page.js"} <= {Path(name).name for name in assets}
    assert configurations | numbers | assets | files("adalora_repro/**/*.py", "hydra_plugins/*.py") == names


def test_its_programs_run_anywhere(installed: Path, tmp_path: Path) -> None:
    code = "import adalora_repro; print(adalora_repro.__file__)"
    found = python("-c", code, project=installed, cwd=tmp_path)
    assert Path(found.stdout.strip()).is_relative_to(installed)  # and not the checkout
    text = program(installed, tmp_path, "adalora-run", "--help")
    assert text.startswith("adalora-run trains one cell of the AdaLoRA paper's tables")
    sweeps = "controls, figure1, figure2, lr, lr_wide, quickstart, seeds, stages, study, table1, table14, table15, "
    sweeps += "table2, table3, table4, table5"
    assert f"sweep: {sweeps}" in text
    words = ("+sweep=table3", "method=lora", "budget=2.20%,0.13%", "task=xsum", "dry_run=true")
    runs = program(installed, tmp_path, "adalora-run", "-m", *words).splitlines()  # the sweeper came along
    assert [line.split(" lora ")[0] for line in runs[:2]] == ["[1/2] xsum", "[2/2] xsum"]
    assert not (tmp_path / "results").exists()  # a dry run writes nothing
    plan = program(installed, tmp_path, "adalora-run", "task=mnli", "method=adalora", "budget=0.3M", "dry_run=true")
    assert "331,920" in plan
    assert "conf/tuned/mnli_adalora.yaml" in plan
    table = program(installed, tmp_path, "adalora-report", "table1", "--format", "csv")
    assert "88.86" in table  # a number of the paper
    program(installed, tmp_path, "adalora-report", "html", "--out", "page.html")
    assert "textContent" in (tmp_path / "page.html").read_text(encoding="utf-8")  # the script came along
    (tmp_path / "page.html").unlink()
    assert list(tmp_path.iterdir()) == []
