"""The page of all reports as a file: what is in it, what must not be, and which files it replaces."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fake_records import make, save

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.reports import page, tables

Captured = pytest.CaptureFixture[str]
EVIL = "<script>alert(1)</script>\u202e\"'&</title>"
PAGE = Path("results") / "report.html"


class Seen(HTMLParser):
    """Elements, ids and links of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.events: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.in_script = False
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        self.in_script = tag == "script"
        self.scripts += [""] * self.in_script
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs of two scopes, every status, several learning rates, and text to be afraid of."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    for seed in range(3):
        for lr, score in ((1e-4, 0.21), (5e-5, 0.31), (1e-3, 0.2)):
            path = save(folder, make(score + seed / 100, seed=seed, lr=lr))
            lines = [{"t": t, "loss": 1 / t} for t in range(1, 400)]
            (path.parent / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = {"optim.lr": 1e-3, "seed": 0, "x": EVIL, "small": 5e-05, "none": None, "list": ["a", 1]}
    save(folder, make(0.5, method="adalora", settings=settings, rank_pattern={"encoder.0.q": 3, "encoder.1.q": 4}))
    save(folder, make(87.65, task="squad", budget="0.65%", backbone="deberta-v3-base", data="hub"))
    save(folder, make(task="rte", status="failed", error=f"line one {EVIL}\nline two", final=None))
    gone = {"updated": 1.0, "host": "elsewhere", "pid": 1}
    save(folder, make(task="rte", status="running", seed=1, final=None, progress=gone))
    return folder


def built(*words: str) -> tuple[str, Seen, dict[str, Any]]:
    assert report.main(["html", *words]) == EXIT_OK
    text = PAGE.read_text(encoding="utf-8")
    seen = Seen(text)
    return text, seen, json.loads(seen.scripts[0])


def test_the_page_is_whole_and_leads_nowhere_else(results: Path, capsys: Captured) -> None:
    text, seen, data = built()
    assert capsys.readouterr() == ("", f"wrote {PAGE}\n")
    assert len(seen.ids) == len(set(seen.ids))
    assert {"h1", "main", "nav", "article", "dialog", "caption"} <= set(seen.tags)
    names = {run["name"] for run in data["runs"]}
    for link in seen.links:
        kind, _, name = link[1:].partition("=")
        assert link.startswith("#"), link
        found = names if kind == "run" else data["cells"] if kind == "cell" else seen.ids
        assert unquote(name or kind) in found, link
    assert not re.search(r"(?:src|href|url|@import)\W{1,3}(?:https?:)?//", text)
    for run in data["runs"]:
        assert (PAGE.parent / unquote(run["href"])).resolve() == Path(run["path"]).resolve()


def test_only_the_pages_own_script_runs(results: Path) -> None:
    text, seen, _ = built()
    assert len(seen.scripts) == seen.tags.count("script") == 2
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in seen.policy
    assert f"script-src 'sha256-{digest}'" in seen.policy
    assert seen.events == []
    assert "innerHTML" not in seen.scripts[1]
    assert not set(seen.scripts[0]) & set("<>&\u2028\u2029\u202e")
    assert text.count("alert(1)") == text.count("alert(1)&lt;/script&gt;") + seen.scripts[0].count("alert(1)")
    assert "\u202e" not in text


def test_scopes_are_never_mixed_and_the_fullest_comes_first(results: Path) -> None:
    text, _, data = built()
    articles = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert ["minilm, local data" in one for one in articles] == [True, False]
    assert [("87.65" in one, "50.00" in one) for one in articles] == [(False, True), (True, False)]
    assert {name.split("/")[1:4][0] for name in data["cells"]} == {"minilm", "deberta-v3-base"}


def test_numbers_are_those_of_the_table_and_lead_to_its_runs(results: Path, capsys: Captured) -> None:
    assert report.main(["table1", "--backbone", "minilm"]) == EXIT_OK
    markdown = capsys.readouterr().out
    text, _, data = built()
    linked = re.findall(r'<a href="#cell=([^"]+)">(?:<b>)?([\d.]+)', text)
    assert ("table1/minilm/local/paper/lora/0.3M/cola", "32.00") in [(unquote(name), score) for name, score in linked]
    for name, score in linked:
        cell = data["cells"][unquote(name)]
        runs = [data["runs"][number] for number in cell["runs"]]
        task, method, budget = unquote(name).split("/")[-1], *unquote(name).split("/")[-3:-1]
        assert all(run["key"][:3] == [task, method, budget] for run in runs)
        assert "table2" in name or f"{score}" in markdown
    cell = data["cells"]["table1/minilm/local/paper/lora/0.3M/cola"]
    assert [data["runs"][number]["lr"] for number in cell["runs"]] == ["5e-5"] * 3
    assert "lr 5e-5, the best of 3 tried" in cell["said"]


def test_details_are_the_records_own_texts(results: Path) -> None:
    _, _, data = built()
    run = next(run for run in data["runs"] if run["key"][1] == "adalora")
    record = json.loads(Path(run["path"]).read_text(encoding="utf-8"))
    parts = {title: data["shared"][part] if isinstance(part, int) else part for title, part in run["parts"].items()}
    assert parts["Other settings"] == {"x": EVIL, "small": "5e-05", "none": "null", "list": '["a", 1]'}
    assert parts["Learning rate and seed"] == {"optim.lr": "0.001", "seed": "0"}
    assert parts["Result"]["final.metrics.matthews_correlation"] == "0.5"
    assert parts["Data"] == {"source": "local", "rows.train": "8551", "rows.validation": "1043"}
    assert {name: json.loads(text) for name, text in parts["Key"].items() if name in ("lr", "seed")} == {
        "lr": record["key"]["lr"],
        "seed": record["key"]["seed"],
    }
    assert [data["shared"][run["ranks"][0]], run["ranks"][1]] == [["encoder.0.q", "encoder.1.q"], [3, 4]]


def test_what_runs_share_is_there_once_and_curves_are_thin(results: Path) -> None:
    _, _, data = built()
    lora = [run for run in data["runs"] if run["key"][:2] == ["cola", "lora"]]
    assert len({run["parts"]["Other settings"] for run in lora}) == 1
    texts = [json.dumps(value) for value in data["shared"]]
    assert len(texts) == len(set(texts))
    steps, values = lora[0]["curve"]
    assert (steps[0], steps[-1], len(steps), len(values)) == (1, 399, 100, 100)


def test_learning_rates_and_what_is_missing(results: Path) -> None:
    text, _, _ = built()
    (figure,) = re.findall(r'<figure class="rate">.*?</figure>', text, re.DOTALL)
    assert figure.count("<circle") == 9 + 1
    assert "lr 5e-5, seed 2: 33.00" in figure
    assert "lr 5e-5 of 3, at the edge of its grid; matthews_correlation 32.00" in figure
    assert "line one &lt;script&gt;" in text
    assert "line two" not in Seen(text).text  # of an error the first line; the whole in its details
    assert "Interrupted (the process is gone" in text
    assert (
        "adalora-run task=rte method=lora budget=0.3M backbone=minilm data=local data.dir=DIR optim.lr=0.001 seed=1"
        in text
    )
    assert "Table 3: 18 empty cells" in text


def test_partial_evaluations_are_named_and_shown_on_request(results: Path) -> None:
    save(results, make(71.25, task="squad_v2", budget="0.65%", max_examples=100))
    _, seen, _ = built()
    assert "1 record evaluated on a part of the examples" in seen.text
    assert "71.25" not in seen.text
    _, seen, _ = built("--include-partial")
    assert "71.25" in seen.text


def test_without_a_record_the_paper_speaks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, seen, data = built()
    assert "No record yet" in text
    assert "88.86" in seen.text
    assert data["runs"] == []


def test_refused_files_are_named_there_too(results: Path, capsys: Captured) -> None:
    damaged = results / "runs" / "x" / "metrics.json"
    damaged.parent.mkdir()
    damaged.write_text('{"final": ', encoding="utf-8")
    text, _, _ = built()
    assert "1 file: results/runs/x/metrics.json" in text
    assert "skipped: results/runs/x/metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values", [{"lr": 1e-300}, {"progress": {"updated": 9e14}}, {"environment": {"git": {"commit": "x"}}}]
)
def test_odd_records_do_not_keep_the_others_away(results: Path, values: dict[str, Any]) -> None:
    save(results, make(0.3, seed=7, environment={"git": {"commit": "y"}}))
    save(results, make(0.3, seed=8, **values))
    _, _, data = built()
    assert len(data["runs"]) == 15


def test_it_replaces_its_own_page_and_no_other_file(results: Path, capsys: Captured) -> None:
    built()
    built()
    Path("notes.html").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert report.main(["html", "--out", "notes.html"]) == EXIT_BAD_INPUT
    assert "'notes.html' is there already; --overwrite" in capsys.readouterr().err
    assert Path("notes.html").read_text(encoding="utf-8") == "mine"
    assert report.main(["html", "--out", "results"]) == EXIT_BAD_INPUT
    assert "'results' is a folder" in capsys.readouterr().err
    Path("loop.html").symlink_to("loop.html")
    assert report.main(["html", "--out", "loop.html"]) == EXIT_BAD_INPUT
    assert "cannot write 'loop.html'" in capsys.readouterr().err
    assert report.main(["html", "--out", "page.pdf"]) == EXIT_BAD_INPUT
    assert "'page.pdf' is no name for html; valid endings: .html" in capsys.readouterr().err
    assert report.main(["html", "--out", "notes.html", "--overwrite"]) == EXIT_OK
    assert report.main(["html", "--out", "made/page.html"]) == EXIT_OK
    assert page.GENERATOR in Path("made/page.html").read_text(encoding="utf-8")
    assert sorted(os.listdir("made")) == ["page.html"]


def test_tables_and_figures_are_in_the_order_of_the_paper() -> None:
    names = ["figure1", "controls", "table14", "table2", "table1", "figure10", "figure2"]
    order = ["table1", "table2", "table14", "controls", "figure1", "figure2", "figure10"]
    assert sorted(names, key=page.paper_order) == order
    assert list(map(page.short_title, ("table14", "controls"))) == ["Table 14", "Controls"]


def test_a_report_with_a_section_is_on_the_page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cost99.py").write_text(
        "from adalora_repro.reports.base import Report\n"
        "section = lambda found, scope: f'<p>{len(found)} {scope.backbone}</p>' if scope.data == 'hub' else ''\n"
        "REPORT = Report('cost99', 'what it cost', lambda parser: None, lambda request: ('', []), section=section)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    try:
        text, seen, _ = built()
    finally:
        sys.modules.pop("adalora_repro.reports.tables.cost99", None)
    assert "<p>13 deberta-v3-base</p>" in text
    assert [name for name in seen.ids if "cost99" in name] == ["s1-cost99", "s1-cost99-title"]
