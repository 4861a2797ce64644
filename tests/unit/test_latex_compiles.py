"""Tables in LaTeX: pdflatex takes every one of them, and their figures are those of the markdown."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_records import METRICS, make

from adalora_repro.cli import report
from adalora_repro.reports import render
from adalora_repro.reports.base import Scope, Table, compile_table

SPECS = report.discover()
EVIL = r"\x{}$&#%_[2pt]*~^<|>\"'`±–…é§"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\begin{document}
%s
\end{document}
"""


def example(name: str) -> Table:
    """Some cells with several seeds, some missing, a row that the paper has not, and text to be afraid of."""
    spec = SPECS[name]
    found = []
    for place, column in enumerate(spec.columns[:3]):
        score = 61.0 if column.percent else 0.61
        for seed in range(3):
            scores = dict.fromkeys(METRICS[column.task], score + place / 100 + seed / 1000)
            found.append(make(scores, task=column.task, method="full", budget="full", seed=seed, variant=EVIL))
        found.append(make(score, task=column.task, method="adalora", budget=EVIL))
    return compile_table(spec, [(Path(f"{i}/metrics.json"), record) for i, record in enumerate(found)], SCOPE)


SCOPE = Scope("minilm", "local", results=Path("a_b"))
NAMES = [name for name, spec in SPECS.items() if all(column.task in METRICS for column in spec.columns)]


def cells_of(row: str, separator: str) -> list[str]:
    return [cell.strip() for cell in re.split(rf"(?<!\\){separator}", row)]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_markdown(name: str) -> None:
    table = example(name)
    markdown = [line for line in render.render(table, "markdown").splitlines() if line.startswith("|")][2:]
    ours = [[cell.replace("*", "") for cell in cells_of(line, r"\|")[2:-1]] for line in markdown]
    rows = [line[:-3] for line in render.render(table, "latex").splitlines() if line.endswith(r" \\")][2:]
    latex = [[plain(cell) for cell in cells_of(row, "&")[1:]] for row in rows]
    assert len(latex) >= 2
    assert latex == ours


def plain(cell: str) -> str:
    """A cell of figures as the markdown has it."""
    cell = re.sub(r"\\text(?:bf|it)\{(.*?)\}", r"\1", cell.replace(r"$\pm$", "±").replace(r"\%", "%"))
    cell = re.sub(r"\\textsuperscript\{(.*?)\}|\$\^\{(.*?)\}\$", r"\1\2", cell)
    return re.sub(r"(?<=[\d%KM])--(?=\d)|^--$", "–", cell.replace("$", ""))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_pdflatex_takes_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.tex").write_text(DOCUMENT % render.render(example(name), "latex"), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    if "File `" in said and "not found" in said:
        pytest.skip("this TeX lacks booktabs, graphicx, T1 fonts or lmodern")
    assert done.returncode == 0, said[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 0
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace", encoding="utf-8")
