"""reports/render.py: each format says the same, fits where it must, and escapes what records say."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from compiled import compiled
from fake_records import GLUE, METRICS, make
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.cli.report import discover
from adalora_repro.errors import clean
from adalora_repro.reports import render
from adalora_repro.reports.cells import Table
from adalora_repro.reports.notes import commands_of
from adalora_repro.reports.render import FORMATS, paper_style
from adalora_repro.reports.spec import Scope
from adalora_repro.reports.tables.table1 import SPEC

EVIL = '<script>alert("x")</script>|*a*_b_$\\end{document}%&#{}[x](y)`~^\u202e\x1b[31m\n# h'
SPECS = discover()
TEXTS = [form for form in FORMATS if form != "csv"]


def example(**changes: object) -> Table:
    records = [make(score, seed=seed) for seed, score in enumerate((0.70, 0.71, 0.69))]
    records += [make(0.65, method="adalora"), make({"accuracy_m": 0.8, "accuracy_mm": 0.79}, task="mnli")]
    return replace(compiled(records), **changes)


def in_paper() -> Table:
    """All of CoLA with the paper's backbone."""
    rows = {"train": 8551, "validation": 1043}
    records = [
        make(score, seed=i, backbone="deberta-v3-base", data={"rows": rows}) for i, score in enumerate((0.7, 0.71))
    ]
    return compiled(records, SPEC, Scope("deberta-v3-base", "local"))


def evil() -> Table:
    settings = {"train.epochs": EVIL}
    records = [make(0.5, method=EVIL), make(0.5, variant=EVIL, settings=settings), make(0.4, variant="b")]
    return compiled([*records, make(0.4, method="adalora", rank_pattern={EVIL: 1})])


def plain(text: str) -> str:
    """A text without the markup of its format."""
    text = re.sub(r"\\text(?:bf|it)\{(.*?)\}|</?[bi]>", r"\1", text.replace(r"\allowbreak{}", ""))
    return text.replace(r"$\pm$", "±").replace("$", "").replace("**", "").replace(r"\%", "%")


@pytest.mark.parametrize("form", TEXTS)
def test_every_format_has_every_figure(form: str) -> None:
    text = plain(render.render(example(), form, notes=True))
    figures = (
        ("70.0 ± 1.0 (3)", "65.0 (1)", "80.0/79.0 (1)")
        if form == "text"
        else ("70.00 ± 1.00 (3)", "65.00 (1)", "80.00/79.00 (1)", "0.92M")
    )
    for figure in (*figures, "0.33M", "Selection rule", "Backbone minilm; data local; protocol paper"):
        assert " ".join(figure.split()) in " ".join(text.split()), figure
    assert "68.71" not in text  # the paper's numbers are of another backbone
    bold = {"markdown": "**70.00**", "latex": r"\textbf{70.00}", "html": "<b>70.00</b>"}
    assert form == "text" or render.render(example(), form).count(bold[form]) == 1


@pytest.mark.parametrize("form", TEXTS)
def test_the_papers_line_and_the_difference(form: str) -> None:
    text = plain(render.render(in_paper(), form))
    for figure in ("68.7 (+1.8)", "69.8") if form == "text" else ("68.71 (+1.79)", "69.82"):
        assert figure in text, figure
    for line in commands_of(in_paper())[: 1 if form == "text" else None]:
        assert line in text


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_text_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    everything = [make(0.5, task=task, seed=seed) for task in GLUE for seed in (0, 1)]
    for table in (compiled([]), example(), compiled(everything), compiled([], SPECS["table3"])):
        text = render.render(table, "text")
        assert "#" not in text.replace("# Params", "")
        for line in text.splitlines():
            assert len(line) <= min(100, max(80, columns)) or line.startswith("  adalora-run"), line
    assert "--notes" in text


def test_a_name_wider_than_the_terminal_has_no_part_of_its_own() -> None:
    sheet = render.Sheet("x", "", "", pd.DataFrame([["n" * 90, "1"]], columns=["Method", "a"]))
    assert render.bands(sheet, 80) == [["Method", "a"]]


def test_text_says_how_to_fill_an_empty_cell_and_keeps_notes_for_later() -> None:
    brief, whole = (render.render(example(), "text", notes=notes) for notes in (False, True))
    assert "Selection rule" not in brief
    assert "Selection rule" in " ".join(whole.split())
    commands = commands_of(example())
    assert f"  {commands[0]}\n" in brief
    assert commands[1] not in brief
    assert all(line in whole for line in commands)


@pytest.mark.parametrize("form", TEXTS)
def test_degenerate_runs_are_flagged_beside_their_score(form: str) -> None:
    table = compiled([make(0.0, degenerate=True), make(0.5, method="adalora")])
    text = plain(render.render(table, form))
    assert ("0.0 (1)!" if form == "text" else "0.00 (1)!") in text
    assert "same prediction" in " ".join(text.split())
    assert r"\underline{0.00}!" in paper_style(table)


def test_csv_is_tidy_exact_and_complete() -> None:
    rows = list(csv.DictReader(io.StringIO(render.render(example(), "csv"))))
    assert len(rows) == 12 * (10 + 1)
    row = next(r for r in rows if (r["method"], r["budget"], r["task"]) == ("lora", "0.3M", "cola"))
    assert (row["mean"], row["sd"], row["paper"]) == ("70.0", "1.0", "68.71")
    assert (row["n_seeds"], row["seeds"]) == ("3", "0 1 2")
    assert (row["best"], row["difference"], row["lr"], row["params_total_max"]) == ("true", "", "0.001", "923906")
    assert len(row["records"].split()) == 3
    empty = next(r for r in rows if (r["method"], r["task"]) == ("bitfit", "rte"))
    assert empty["mean"] == empty["sd"] == ""
    assert empty["command"] == "adalora-run task=rte method=bitfit backbone=minilm data=local data.dir=DIR"
    assert len(list(csv.DictReader(io.StringIO(render.render(example(), "csv", only_filled=True))))) == 4
    assert render.render(compiled([]), "csv").splitlines()[0] == ",".join(row)  # also without a run


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_text_is_no_formula(text: str) -> None:
    rows = list(csv.DictReader(io.StringIO(render.render(compiled([make(0.5, method=text)]), "csv"))))
    assert {row["method"] for row in rows if row["method"].endswith(text)} == {"'" + text}


@pytest.mark.parametrize("form", FORMATS)
def test_only_filled_leaves_out_rows_and_columns_without_records(form: str) -> None:
    text = render.render(in_paper(), form, only_filled=True)
    assert "BitFit" not in text
    assert "LoRA" in text
    assert render.render(compiled([]), form, only_filled=True)


def test_markdown_is_one_rectangular_table() -> None:
    for table in (example(), evil(), compiled([])):
        lines = [line for line in render.render(table, "markdown").splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_text_of_records_stays_text_in_html() -> None:
    assert "<script" not in render.render(evil(), "html")
    assert "&lt;script&gt;" in render.render(evil(), "html")
    assert '<th scope="col"' in render.render(example(), "html")


def unescaped_latex(text: str) -> str:
    """What is left of LaTeX text when every escaped character and every command of ours is taken out."""
    text = re.sub(r"(?m)^%.*$|(?<=\{!\}\{)%$", "", text)
    return re.sub(r"\\[a-zA-Z]+\*?|\\[\\{}$&#%_]", "", text)


def test_latex_is_balanced_and_every_row_has_all_columns() -> None:
    starts = compiled([make(method="[2pt]"), make(method="*")])  # read as an argument of what is before
    for text in [render.render(table, "latex") for table in (example(), evil(), starts, in_paper())] + [
        paper_style(evil())
    ]:
        bare = unescaped_latex(re.sub(r"\\(begin|end)\{([a-z*]+)\}|\\label\{[a-z0-9:]+\}|\\underline", "", text))
        assert bare.count("{") == bare.count("}")
        assert not set("%#~^") & set(bare.replace("$^{", ""))
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert len(rows) >= 3
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert not re.search(r"\\(\\|midrule|item)\s*[\[*]", text)
        assert all(line.count("$") % 2 == 0 for line in unescaped_latex(text).splitlines())


@pytest.mark.parametrize("form", FORMATS)
def test_no_control_or_direction_character_passes(form: str) -> None:
    text = render.render(evil(), form, notes=True)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@given(st.text())
def test_markdown_text_cannot_break_a_cell(text: str) -> None:
    safe = render.escape_markdown(text)
    assert "\n" not in safe
    assert not re.search(r"(?<!\\)(\\\\)*[|<`]", safe)


@given(st.text())
def test_latex_text_holds_no_live_special_character(text: str) -> None:
    bare = unescaped_latex(re.sub(r"\$(\\pm|-)\$", "", render.escape_latex(text)))
    assert not set("%#_~^$&\\") & set(bare)
    assert bare.count("{") == bare.count("}")
    assert bare.count("?") == clean(text).count("?")


def test_latex_has_minus_signs() -> None:
    assert render.escape_latex("[-9.5, +1] 5e-4 r-1") == "{[}$-$9.5, +1{]} 5e-4 r-1"
    table = compiled([make(-0.02), make(0.5, method="adalora")])
    assert "& $-$2.00 (1)" in render.render(table, "latex")
    assert r"\underline{$-$2.00}" in paper_style(table)


# --- LaTeX as pdfLaTeX takes it, and in the paper's layout ------------------------------------------------------------


def large(name: str) -> Table:
    """Some cells with several seeds, some missing, a row that the paper has not, and text to be afraid of."""
    spec, records = SPECS[name], []
    budget = "0.3M" if name in ("table1", "table14", "controls") else "0.08%"
    for column in spec.columns[:3]:
        scores = dict.fromkeys(METRICS[column.task], 61.0 if "squad" in column.task or name == "table3" else 0.61)
        of_cell = {"task": column.task, "budget": budget, "variant": EVIL}
        records += [make(scores, method=(spec.methods or ("lora",))[0], seed=seed, **of_cell) for seed in range(3)]
        records += [make(scores, **of_cell | {"method": "adalora", "budget": size}) for size in (EVIL, budget)]
    return compiled(records, spec, Scope("minilm", "local", results=Path("a_b")))


def test_the_papers_layout() -> None:
    lines = paper_style(example()).splitlines()
    assert lines[1] == r"\begin{table*}[t]"
    assert any(line.startswith(r"\caption{Reproduction of Table 1") for line in lines)
    assert r"\label{tab:table1}" in lines
    assert {r"\toprule", r"\midrule", r"\bottomrule"} <= set(lines)
    (row,) = [line for line in lines if line.startswith("LoRA &")]
    assert row == r"LoRA & 0.33M & 80.00/79.00 & \textbf{70.00}$_{\pm 1.00}$ \\"
    assert any(line.endswith(r"\underline{65.00} \\") for line in lines)
    assert "paper's numbers" in paper_style(compiled([]))


DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\begin{document}
%s
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_takes_it(tmp_path: Path) -> None:
    tables = [table for name in SPECS for table in (large(name), compiled([], SPECS[name]))]
    text = "\n".join([*(render.render(table, "latex") for table in tables), *map(paper_style, tables)])
    (tmp_path / "page.tex").write_text(DOCUMENT % text, encoding="utf-8")
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
