"""The page of all reports in Chromium: no complaint in the console, every click shows what the records say, axe-core
finds nothing.

Skipped where Chromium or axe-playwright-python (dev extra) is not installed.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_records import make, save

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK

sync_api = pytest.importorskip("playwright.sync_api", reason="axe-playwright-python is not installed (dev extra)")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
EVIL = "<script>alert(1)</script>\u202e\"'&</title>"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
ROLES = ("q", "k", "v", "attn_out", "ffn_in", "ffn_out")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-quic"])
        yield chromium
        chromium.close()


def write_log(folder: Path) -> None:
    lines: list[dict[str, Any]] = []
    for t in range(10, 200, 10):
        lines.append({"t": t, "loss": math.exp(-t / 100), "b_t": 200 - t, "orthogonality_P": [1 / t] * 36})
    lines += [{"t": t, "evaluation": {"matthews_correlation": t / 400}} for t in (100, 200)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scopes; several learning rates, a degenerate run, a failed one, one that runs, text to be afraid of."""
    folder = tmp_path_factory.mktemp("page")
    for seed in range(3):
        for lr, score in ((1e-4, 0.21), (5e-5, 0.31)):
            settings = {"optim.lr": lr, "seed": seed, "text": EVIL, "small": 5e-05}
            path = save(folder, make(score + seed / 100, seed=seed, lr=lr, settings=settings, variant=EVIL[8:16]))
            write_log(path.parent)
    ranks = {f"encoder.{i}.{role}": i for i in range(6) for role in ROLES}
    environment = {"device": "a GPU", "threads": 3, "git": {"commit": "0123456789abcdef", "dirty": True}}
    write_log(save(folder, make(0.5, method="adalora", rank_pattern=ranks, environment=environment)).parent)
    save(folder, make(0.45, task="mnli", method=EVIL.replace("/", "|")))
    save(folder, make(0.0, task="rte", method="bitfit", budget="bitfit", degenerate=True))
    save(folder, make(87.65, task="squad", budget="0.65%", backbone="roberta", data="hub"))
    save(folder, make(task="rte", status="failed", error=f"{EVIL}\nline two", final=None))
    save(folder, make(task="sst2", status="running", final=None, progress={"updated": 9e14, "host": "elsewhere"}))
    assert report.main(["html", "--results", str(folder)]) == EXIT_OK
    return folder / "report.html"


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page in a window, and what it complains of."""
    page = browser.new_page(viewport=options.pop("viewport", DESKTOP), reduced_motion="reduce", **options)
    page.set_default_timeout(30_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    return page, complaints


@pytest.fixture(scope="module")
def window(browser: Any, page_file: Path) -> Iterator[tuple[Any, list[str]]]:
    page, complaints = opened(browser, page_file, permissions=["clipboard-read", "clipboard-write"])
    yield page, complaints
    page.close()


@pytest.fixture
def page(window: tuple[Any, list[str]], page_file: Path) -> Iterator[Any]:
    """The page as it opens, in one window for all tests. Whatever a test does, the console must stay silent."""
    page, complaints = window
    page.goto("about:blank")
    page.goto(page_file.as_uri())
    yield page
    assert complaints == []


def flat(values: Any, name: str = "") -> dict[str, str]:
    """What a record says, by dotted name: an independent reading of it."""
    if isinstance(values, dict) and values:
        return {key: text for part, value in values.items() for key, text in flat(value, f"{name}.{part}").items()}
    return {name[1:]: values if isinstance(values, str) else json.dumps(values)}


def visible_rows(page: Any) -> list[list[str]]:
    return page.locator("#list tbody tr:visible").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )


def test_a_number_leads_to_its_runs_and_a_run_to_its_record(page: Any, page_file: Path) -> None:
    page.locator("article:visible td a", has_text="50.00").first.click()
    rows = visible_rows(page)
    assert [row[1:7] for row in rows] == [["cola", "adalora", "0.3M", "1e-3", "0", "50.00"]]
    page.locator("#list tbody tr:visible th a").click()
    page.wait_for_selector("dialog[open]")
    (path,) = page_file.parent.glob("runs/minilm/cola/adalora/**/metrics.json")
    assert page.locator("dialog .path a").text_content() == str(path)
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    told = {(row[0], row[1]) for row in page.locator("dialog table.values tr").evaluate_all(script) if len(row) == 2}
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in ("final", "best", "params", "budget", "time", "memory", "progress"):
        assert set(flat(record[part], f".{part}").items()) <= {*told, (part, "{}")}
    for part in ("settings", "key", "environment", "data"):
        assert set(flat(record[part]).items()) <= told
    assert set(flat(record["rank_pattern"]).items()) <= told
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    assert "#" not in page.url


def test_text_of_records_is_text(page: Any) -> None:
    assert page.locator("td script, dialog script, li script, th script, svg script").count() == 0
    page.locator("#list tbody tr th a", has_text="failed").click()
    assert page.locator("dialog pre").text_content() == f"{EVIL}\nline two"


def test_filter_sort_and_copy(page: Any) -> None:
    page.fill("#words", "cola method=lora seed=1 LR=5e-5")
    assert [row[1:6] for row in visible_rows(page)] == [["cola", "lora", "0.3M", "5e-5", "1"]]
    page.locator("#list tbody tr:visible button.copy").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("adalora-run task=cola method=lora budget=0.3M backbone=minilm data=local data.dir=DIR")
    assert "optim.lr=5e-05 seed=1" in command
    page.fill("#words", "nothing of the kind")
    assert visible_rows(page) == []
    page.fill("#words", "status=ok")
    for order in (sorted, lambda scores: sorted(scores, reverse=True)):
        page.locator("#list thead button", has_text="Score").click()
        scores = [float(row[6].split()[0]) for row in visible_rows(page)]
        assert len(scores) == 10
        assert scores == order(scores)
    assert page.locator("#list th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_a_point_of_a_figure_leads_to_its_run(page: Any) -> None:
    point = page.locator("article:visible section", has_text="Figure 3").locator("svg a").last
    assert "rank 5" in point.locator("title").first.text_content()
    point.dispatch_event("click")
    page.wait_for_selector("dialog[open]")
    assert "minilm/cola/adalora" in page.locator("dialog h2").inner_text()


def test_one_scope_at_a_time(page: Any) -> None:
    scopes = page.locator("article.scope")
    assert [scopes.nth(i).is_visible() for i in range(2)] == [True, False]
    page.locator("a.scope-link").nth(1).click()
    page.wait_for_function("!document.getElementById('s1').hidden")
    assert [scopes.nth(i).is_visible() for i in range(2)] == [False, True]
    assert "87.65" in page.locator("article:visible").inner_text()


def test_a_degenerate_run_is_flagged_in_the_list_the_table_and_the_figure(page: Any) -> None:
    assert page.locator("#list tr", has_text="bitfit").locator(".flag").inner_text() == "degenerate"
    assert "0.00 (1)!" in page.locator("article:visible td a", has_text="0.00").first.inner_text()
    assert "Hollow" in page.locator("article:visible figcaption").first.inner_text()


def test_the_matrix_says_what_there_is(page: Any) -> None:
    kinds = {
        (cell.get_attribute("title") or "").split(":")[0]: cell.get_attribute("class")
        for cell in page.locator("#s0 .matrix td[title]").all()
    }
    assert kinds["LoRA, CoLA"] == "filled"
    assert kinds["LoRA, RTE"] == "failed"
    assert kinds["LoRA, SST-2"] == "running"
    assert kinds["LoRA, QNLI"] == "missing"


def violations(page: Any, context: str = "html") -> list[tuple[str, str]]:
    """Rules of axe-core that are broken, each with the first element that breaks it."""
    return [(one["id"], one["nodes"][0]["html"]) for one in Axe().run(page, context).response["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(browser: Any, page_file: Path, viewport: dict[str, int], scheme: str) -> None:
    """axe-core's rules with everything opened: contrast, names, keyboard; the page never scrolls sideways."""
    page, complaints = opened(browser, page_file, viewport=viewport, color_scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    assert violations(page) == []
    page.evaluate("location.hash = document.querySelector('#list tbody th a').hash")
    page.wait_for_selector("dialog[open]")
    assert violations(page, "dialog") == []
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")
    assert complaints == []
    page.close()
