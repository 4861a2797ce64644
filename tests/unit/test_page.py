"""The page of all reports as a file: what is in it, what must not be, and which files it replaces."""

import base64
import hashlib
import json
import os
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fake_records import make, save

from adalora_repro.cli import report
from adalora_repro.config.words import command_line
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.reports import output, page, tables
from adalora_repro.reports.page_runs import command_of, command_of_record

Captured = pytest.CaptureFixture[str]
EVIL = "<script>alert(1)</script>\u202e\"'&</title>"


class Seen(HTMLParser):
    """The elements of a page with their attributes, the text of its scripts, the words of each run of the list."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.scripts = re.findall("<script[^>]*>(.*?)</script>", text, re.DOTALL)
        self.ids, self.words = self.values("id"), [set(words.split(" ")) for words in self.values("data-words")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def values(self, *names: str) -> list[str]:
        return [values[name] or "" for _, values in self.elements for name in names if name in values]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two scopes, every status, several learning rates, and text to be afraid of."""
    folder = tmp_path_factory.mktemp("page")
    for seed in range(3):
        for lr, score in ((1e-4, 0.21), (5e-5, 0.31), (1e-3, 0.2)):
            save(folder, make(score + seed / 100, seed=seed, lr=lr))
    settings = {"optim.lr": 1e-3, "seed": 0, "x": EVIL, "small": 5e-05, "none": None, "list": ["a", 1]}
    save(folder, make(0.5, method="adalora", settings=settings, rank_pattern={"encoder.0.q": 3, "encoder.1.q": 4}))
    save(folder, make(87.65, task="squad", budget="0.65%", backbone="deberta-v3-base", data="hub"))
    save(folder, make(task="rte", status="failed", error=f"line one {EVIL}\nline two", final=None))
    gone = {"updated": 1.0, "host": "elsewhere", "pid": 1}
    elsewhere = {"backbone": "deberta-v3-base", "data": "hub", "progress": gone}
    save(folder, make(task="rte", status="running", seed=1, final=None, **elsewhere))
    return folder


Built = tuple[str, Seen, dict[str, Any]]


def built(results: Path, *words: str) -> Built:
    assert report.main(["html", "--results", str(results), *words]) == EXIT_OK
    text = (results / page.FILE).read_text(encoding="utf-8")
    seen = Seen(text)
    return text, seen, json.loads(seen.scripts[0])


@pytest.fixture(scope="module")
def made(results: Path) -> Built:
    """Text, parts and data of the page, made once for the tests that read it."""
    return built(results)


def parts_of(data: dict[str, Any], name: str) -> dict[str, dict[str, str]]:
    return {title: data["shared"][place] for title, place in data["runs"][name]["parts"].items()}


def test_the_page_is_whole_and_leads_nowhere_else(results: Path, made: Built) -> None:
    text, seen, data = made
    assert len(seen.ids) == len(set(seen.ids))
    assert {"h1", "main", "nav", "article", "dialog", "caption"} <= {tag for tag, _ in seen.elements}
    kinds = set()
    for link in seen.values("href", "src"):
        kind, _, name = link[1:].partition("=")
        kinds.add(kind)
        assert link.startswith("#"), link
        if kind == "list":
            assert any(set(unquote(name).split(" ")) <= words for words in seen.words), link
        else:
            assert unquote(name or kind) in (data["runs"] if kind == "run" else seen.ids), link
    assert {"run", "list", "runs", "main"} <= kinds
    assert not re.search(r"(?:src|href|url|@import)\W{1,3}(?:https?:)?//", text)
    for run in data["runs"].values():
        assert (results / unquote(run["href"])).resolve() == Path(run["path"]).resolve()


def test_only_the_pages_own_script_runs_and_text_of_records_stays_text(made: Built) -> None:
    text, seen, _ = made
    assert len(seen.scripts) == [tag for tag, _ in seen.elements].count("script") == 2
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1].encode()).digest()).decode()
    (policy,) = (text for text in seen.values("content") if "default-src" in text)
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, values in seen.elements for name in values if name.startswith("on")]
    assert "innerHTML" not in seen.scripts[1]
    assert not set(seen.scripts[0]) & set("<>&\u2028\u2029\u202e")
    assert text.count("alert(1)") == text.count("alert(1)&lt;/script&gt;") + seen.scripts[0].count("alert(1)")
    assert "\u202e" not in text


def test_the_title_is_the_state_that_status_prints(results: Path, made: Built, capsys: Captured) -> None:
    text, _, _ = made
    assert "<title>AdaLoRA reproduction: 11 runs, none in the paper&#39;s setting yet</title>" in text
    capsys.readouterr()
    assert report.main(["status", "--results", str(results)]) == EXIT_OK
    state = capsys.readouterr().out.split(".\n")[0].replace("\n", " ")
    assert f"<p>{state.replace(chr(39), '&#39;')}." in text


def test_scopes_are_never_mixed_and_the_paper_s_backbone_comes_first(made: Built) -> None:
    text, _, _ = made
    articles = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert ["minilm, local data" in one for one in articles] == [False, True]
    assert [("87.65" in one, ">32.00" in one) for one in articles] == [(True, False), (False, True)]
    alone = re.findall(r"Backbone ([\w-]+);[^<]*the paper(?:'|&#x27;)s numbers alone", articles[1])
    assert set(alone) == {"deberta-v3-base", "bart-large"}


def test_a_number_of_a_table_leads_to_the_runs_that_it_is_the_mean_of(made: Built) -> None:
    text, seen, _ = made
    linked = dict(re.findall(r'<a href="#list=([^"]+)">(?:<b>)?([\d.]+)', text))
    numbers = {unquote(words): score for words, score in linked.items()}
    (words,) = [words for words, score in numbers.items() if score == "32.00"]
    assert "task=cola method=lora budget=0.3M" in words
    assert "lr=5e-5" in words
    assert sum(set(words.split(" ")) <= run for run in seen.words) == 3


def test_a_count_of_the_matrix_leads_to_as_many_runs(made: Built) -> None:
    text, seen, _ = made
    links = re.findall(r'<a href="#list=([^"]+)" aria-label="[^"]*, RTE: 1 (\w+)"', text)
    assert [status for _, status in links] == ["interrupted", "failed"]  # of two scopes
    assert [sum(set(unquote(words).split(" ")) <= run for run in seen.words) for words, _ in links] == [1, 1]


def test_details_are_the_records_own_texts_and_shared_ones_are_there_once(made: Built) -> None:
    _, _, data = made
    (name,) = [name for name in data["runs"] if "/adalora/" in name]
    record = json.loads(Path(data["runs"][name]["path"]).read_text(encoding="utf-8"))
    parts = parts_of(data, name)
    assert parts["Other settings"] == {"x": EVIL, "small": "5e-05", "none": "null", "list": '["a", 1]'}
    assert parts["Learning rate and seed"] == {"optim.lr": "0.001", "seed": "0"}
    assert parts["Result"]["final.metrics.matthews_correlation"] == "0.5"
    assert parts["Data"] == {"source": "local", "rows.train": "8551", "rows.validation": "1043"}
    assert [json.loads(parts["Key"][key]) for key in ("lr", "seed")] == [record["key"][key] for key in ("lr", "seed")]
    assert parts["Final ranks"] == {"encoder.0.q": "3", "encoder.1.q": "4"}
    texts = [json.dumps(value) for value in data["shared"]]
    assert len(texts) == len(set(texts))


def test_what_is_missing_is_folded_and_has_its_commands(made: Built) -> None:
    text, seen, _ = made
    assert "Table 3, validation sets of XSum and CNN/DailyMail: 18 of 18 cells without a run" in text
    assert {"status=interrupted", "status=failed"} <= set().union(*seen.words)
    assert 'data-copy="adalora-run -m task=xsum,cnn_dailymail' in text


def test_without_a_record_the_paper_speaks_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    text, _, data = built(tmp_path)
    assert "<title>AdaLoRA reproduction: no finished run yet</title>" in text
    assert "88.86" in text
    assert data["runs"] == {}


def test_partial_evaluations_are_in_tables_and_figures_or_in_neither(tmp_path: Path) -> None:
    save(tmp_path, make(max_examples=10))
    score, figure = '">50.00 (1)</a>', "<figcaption>[^<]*Evaluations on a part of the examples are included[.]"
    for words, shown in (((), False), (("--include-partial",), True)):
        text, _, _ = built(tmp_path, *words)
        assert (score in text, re.search(figure, text) is not None) == (shown, shown)


def test_a_refused_file_is_named_and_odd_records_do_not_keep_the_others_away(tmp_path: Path, capsys: Captured) -> None:
    odd: list[dict[str, Any]] = [{}, {"lr": 1e-300}, {"progress": {"updated": 9e14}}]
    odd += [{"environment": {"git": {"commit": "x"}}}, {"method": "r\u00e9sum\u00e9 of mine"}]
    for seed, values in enumerate(odd):
        save(tmp_path, make(0.3, seed=seed, **values))
    damaged = tmp_path / "runs" / "x" / "metrics.json"
    damaged.parent.mkdir()
    damaged.write_text('{"final": ', encoding="utf-8")
    text, seen, data = built(tmp_path)
    assert len(data["runs"]) == len(seen.words) == len(odd)
    assert f"1 file: {damaged}" in text
    said = capsys.readouterr().err
    assert f"skipped: {damaged}" in said
    assert "adalora-report: minilm, local data, protocol paper …" in said


def test_it_replaces_its_own_page_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "runs").mkdir(parents=True)
    built(Path("results"))
    built(Path("results"))
    Path("notes.html").write_text("mine", encoding="utf-8")
    wrong = {"notes.html": "--overwrite", "results": "is not a regular file", "page.pdf": ".html"}
    for out, says in wrong.items():
        capsys.readouterr()
        assert report.main(["html", "--out", out]) == EXIT_BAD_INPUT
        assert says in capsys.readouterr().err
    assert Path("notes.html").read_text(encoding="utf-8") == "mine"
    assert report.main(["html", "--out", "notes.html", "--overwrite"]) == EXIT_OK
    assert report.main(["html", "--out", "made/page.html"]) == EXIT_OK
    assert output.GENERATOR in Path("made/page.html").read_text(encoding="utf-8")
    assert sorted(os.listdir("made")) == ["page.html"]


def test_a_report_with_a_section_is_on_the_page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cost99.py").write_text(
        "from adalora_repro.reports.spec import Report\n"
        "section = lambda found, scope: f'<p>{len(found)} {scope.backbone}</p>' if scope.data == 'hub' else ''\n"
        "REPORT = Report('cost99', 'what it cost', lambda parser: None, lambda request: ('', []), section=section)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    try:
        text, seen, _ = built(results)
    finally:
        sys.modules.pop("adalora_repro.reports.tables.cost99", None)
    assert "<p>13 deberta-v3-base</p>" in text
    assert [name for name in seen.ids if "cost99" in name] == ["s0-cost99"]


def test_the_command_of_a_run_is_the_one_that_was_typed(tmp_path: Path) -> None:
    record = tmp_path / "metrics.json"
    words = ["task=custom", "data.dir=my data", "method.rank_pattern=ranks.json", "force=true"]
    (tmp_path / "config.yaml").write_text(f"{command_line(words)}\nseed: 0\n", encoding="utf-8")
    assert shlex.split(command_of(record, make(), Path("results"))) == ["adalora-run", *words[:3]]
    (tmp_path / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    assert command_of(record, make(), Path("results")) == command_of_record(make(), Path("results"))


def test_the_command_of_a_run_states_what_its_record_states() -> None:
    settings = {"train.epochs": 2.0, "train.max_steps": None, "train.eval_steps": None, "method.targets": ["q", "v"]}
    settings |= {"method.schedule": "scaled", "method.t_i": 12, "optim.warmup_steps": 3}
    record = make(budget="r8-q.v", settings=settings | {"method.r": 8}, seed=3, protocol="released", data="hub")
    words = command_of_record(record, Path("elsewhere")).split(" ")
    assert words[:5] == ["adalora-run", "task=cola", "method=lora", "backbone=minilm", "data=hub"]
    assert {"protocol=released", "optim.lr=0.001", "seed=3", "method.r=8", "'method.targets=[q,v]'"} <= set(words)
    assert {"train.epochs=2.0", "train.eval_steps=null", "results.dir=elsewhere"} <= set(words)
    assert not [word for word in words if word.startswith(("method.t_i", "optim.warmup", "train.max_steps", "budget"))]
    fixed = make(settings=settings | {"method.schedule": "fixed"})
    assert {"budget=0.3M", "method.t_i=12", "optim.warmup_steps=3"} <= set(
        command_of_record(fixed, Path("results")).split(" ")
    )
