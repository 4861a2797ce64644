"""The page of all reports in Chromium: no complaint in the console, and every click shows what the records say.

Skipped where Chromium, its driver or selenium is not installed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fake_records import GLUE, make, save

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (dev extra)")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver here")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
EVIL = "<script>alert(1)</script>\u202e\"'&</title>"
Driver = Any


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for seed in range(3):
        for lr, score in ((1e-4, 0.21), (5e-5, 0.31)):
            settings = {"optim.lr": lr, "seed": seed, "text": EVIL, "small": 5e-05}
            path = save(folder, make(score + seed / 100, seed=seed, lr=lr, settings=settings, variant=EVIL[8:16]))
            write_log(path.parent)
    ranks = {f"encoder.{i}.{role}": i for i in range(6) for role in ("q", "k", "v", "attn_out", "ffn_in", "ffn_out")}
    environment = {"device": "a GPU", "threads": 3, "git": {"commit": "0123456789abcdef", "dirty": True}}
    write_log(save(folder, make(0.5, method="adalora", rank_pattern=ranks, environment=environment)).parent)
    save(folder, make(0.45, task="mnli", method=EVIL.replace("/", "|")))
    save(folder, make(87.65, task="squad", budget="0.65%", backbone="deberta-v3-base", data="hub"))
    save(folder, make(task="rte", status="failed", error=f"{EVIL}\nline two", final=None))
    return folder


def write_log(folder: Path) -> None:
    lines = [{"t": t, "loss": math.exp(-t / 100), "orthogonality_P": [1 / t] * 36} for t in range(10, 200, 10)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def shown(results: Path, browser: Driver) -> Iterator[Driver]:
    """The page in a window of a desktop; whatever a test did to it, the console must have stayed silent."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    prefer(browser, "light")
    browser.set_window_size(1280, 900)
    open_page(browser, results)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def prefer(browser: Driver, scheme: str) -> None:
    """Light or dark, and no motion: what is scrolled to must stand still before it is clicked."""
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})


def open_page(browser: Driver, results: Path) -> None:
    page = results / "report.html"
    if not page.exists():
        assert report.main(["html", "--results", str(results)]) == EXIT_OK
    browser.get("about:blank")
    browser.get(page.as_uri())


def find(browser: Driver, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def wait_for_details(browser: Driver, there: bool = True) -> None:
    """The page opens them when it is told of a new address: perhaps after the click or key has been dealt with."""
    WebDriverWait(browser, 30).until(lambda _: bool(find(browser, "dialog[open]")) == there)


def facts(browser: Driver) -> list[tuple[str, str]]:
    """Names and texts of the details that are open, as the script put them there."""
    script = (
        "return [...document.querySelectorAll('dialog table.facts tr')]"
        ".filter(row => row.getClientRects().length).map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [(name, text) for name, text in browser.execute_script(script)]


def flat(values: Any, name: str = "") -> dict[str, str]:
    """What a record says, by dotted name: an independent reading of it."""
    if isinstance(values, dict) and values:
        return {key: text for part, value in values.items() for key, text in flat(value, f"{name}.{part}").items()}
    return {name[1:]: values if isinstance(values, str) else json.dumps(values)}


def address(browser: Driver, name: str) -> str:
    return f"a[href='#cell={quote(name)}']"


def test_tables_show_our_numbers_and_a_click_leads_to_the_record(shown: Driver, results: Path) -> None:
    (link,) = find(
        shown, f"article:not([hidden]) tr.first {address(shown, 'table1/minilm/local/paper/adalora/0.3M/cola')}"
    )[:1]
    assert link.text == "50.00‡"  # one rate was tried for AdaLoRA, two for the other method
    link.click()
    wait_for_details(shown)
    (dialog,) = find(shown, "dialog[open]")
    assert "AdaLoRA 0.3M, CoLA" in dialog.text
    told = facts(shown)
    (path,) = (results / "runs/minilm/cola/adalora").glob("**/metrics.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    for section in ("final", "best", "params", "budget", "time", "memory", "progress"):
        assert set(flat(record[section], f".{section}").items()) <= {*told, (section, "{}")}
    for section in ("settings", "key", "environment", "data"):
        assert set(flat(record[section]).items()) <= set(told)
    assert ("git.commit", "0123456789abcdef") in told
    assert find(shown, "dialog .path a")[0].text == str(path)
    assert len(find(shown, "dialog table.ranks tbody tr")) == 6
    assert find(shown, "dialog .curve polyline")
    find(shown, "dialog header button")[0].click()
    wait_for_details(shown, there=False)
    assert "#" not in shown.current_url


def test_details_of_the_other_seeds_open_one_by_one(shown: Driver) -> None:
    find(shown, f"article:not([hidden]) {address(shown, 'table1/minilm/local/paper/lora/0.3M/cola')}")[0].click()
    wait_for_details(shown)
    runs = find(shown, "dialog details.run")
    assert len(runs) == 3
    assert ("final.metrics.matthews_correlation", "0.31") in facts(shown)
    runs[0].find_element("css selector", "summary").click()
    runs[2].find_element("css selector", "summary").click()
    shown.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    told = dict(facts(shown))
    assert (told["seed"], told["final.metrics.matthews_correlation"]) == ("2", "0.33")
    assert (told["text"], told["small"], told["lr"]) == (EVIL, "5e-05", "5e-05")


def test_text_of_records_is_text(shown: Driver) -> None:
    assert not find(shown, "td script, dialog script, li script, th script, svg script")
    assert shown.execute_script("return document.title") == "AdaLoRA reproduction: report"
    failed = next(row for row in find(shown, "#list tbody tr") if "failed" in row.text)
    failed.find_element("css selector", "a").click()
    wait_for_details(shown)
    assert shown.execute_script("return document.querySelector('dialog pre').textContent") == f"{EVIL}\nline two"
    names = [cell.text for cell in find(shown, "article:not([hidden]) tbody th")]
    assert any("<script>alert(1)<|script>" in name for name in names)


def test_every_link_inside_the_page_leads_somewhere(shown: Driver) -> None:
    script = """
      const broken = [];
      for (const link of document.querySelectorAll("a[href^='#']")) {
        const [kind, ...rest] = link.getAttribute("href").slice(1).split("=");
        const name = decodeURIComponent(rest.join("="));
        const found = kind === "run" ? byName.has(name) : kind === "cell" ? name in data.cells
          : document.getElementById(kind);
        if (!found) broken.push(link.outerHTML);
      }
      return [broken, document.querySelectorAll("a[href^='#']").length];
    """
    broken, count = shown.execute_script(script)
    assert broken == []
    assert count > 100


def test_a_point_of_a_figure_leads_to_its_run(shown: Driver) -> None:
    (figure,) = find(shown, "article:not([hidden]) section[id$=figure3] svg")
    link = figure.find_elements("css selector", "a")[-1]
    assert "rank 5" in link.find_element("css selector", "title").get_attribute("textContent")
    shown.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", link)
    wait_for_details(shown)
    assert "minilm/cola/adalora" in find(shown, "dialog[open] h2")[0].text


def test_filter(shown: Driver) -> None:
    box = find(shown, "#words")[0]
    box.send_keys("cola lora seed=1 lr=5e-5")
    rows = find(shown, "#list tbody tr")
    assert [[cell.text for cell in row.find_elements("css selector", "td")][:5] for row in rows] == [
        ["cola", "lora", "0.3M", "5e-5", "1"]
    ]
    assert find(shown, "#count")[0].text == "1 of 10 runs"
    box.clear()
    box.send_keys("nothing of the kind")
    assert find(shown, "#list tbody tr") == []


def test_one_scope_at_a_time(shown: Driver) -> None:
    assert [one.is_displayed() for one in find(shown, "article.scope")] == [True, False]
    find(shown, ".scopes a")[1].click()
    shown.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    assert [one.is_displayed() for one in find(shown, "article.scope")] == [False, True]
    assert [one.is_displayed() for one in find(shown, ".contents [data-scope]")] == [False, True]
    assert "87.65" in find(shown, "article:not([hidden])")[0].text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_and_never_the_page(shown: Driver, scheme: str) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    prefer(shown, scheme)
    shown.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    script = "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    width, background = shown.execute_script(script)
    assert width == 360
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    shown.execute_script("arguments[0].click()", find(shown, "article:not([hidden]) td a")[0])
    shown.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    assert shown.execute_script("const d = document.querySelector('dialog'); return d.scrollWidth <= d.clientWidth")


def test_colours_of_text_can_be_read(shown: Driver) -> None:
    """WCAG's contrast of 4.5 between text and paper, light and dark."""
    for scheme in ("light", "dark"):
        prefer(shown, scheme)
        read = (
            "const s = getComputedStyle(document.documentElement); return arguments[0].map(n => s.getPropertyValue(n))"
        )
        paper, *texts = shown.execute_script(read, ["--paper", "--ink", "--muted", "--link"])
        for text in texts:
            assert contrast(paper.strip(), text.strip()) >= 4.5, (scheme, text)


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_keyboard_is_enough(shown: Driver) -> None:
    link = find(shown, "article:not([hidden]) td a")[0]
    shown.execute_script("arguments[0].focus()", link)
    link.send_keys("\ue007")  # Enter
    wait_for_details(shown)
    shown.switch_to.active_element.send_keys("\ue00c")  # Escape
    wait_for_details(shown, there=False)


@pytest.mark.slow
def test_two_thousand_records_load(browser: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    many = {f"setting{i}": i for i in range(80)}
    for task in GLUE:
        for lr in range(1, 11):
            for seed in range(25):
                record = make(
                    0.5 + lr / 1000, task=task, lr=lr * 1e-4, seed=seed, settings=many | {"optim.lr": lr * 1e-4}
                )
                write_log(save(tmp_path, record).parent)
    open_page(browser, tmp_path)
    assert find(browser, "#count")[0].text == "2000 of 2000 runs"
    assert len(find(browser, "#list tbody tr")) == 100
    find(browser, "#more")[0].click()
    assert len(find(browser, "#list tbody tr")) == 200
    assert (tmp_path / "report.html").stat().st_size < 6e6
    assert browser.get_log("browser") == []
