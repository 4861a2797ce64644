"""The report to look at: one HTML file with every table and figure, and behind each number the runs it came from.

The file needs nothing else: no network, no font, no library. What the runs are travels as JSON in it; a small script
(``assets/page.js``) shows it on demand, as text and never as markup. Backbones, data sources and protocols are never
mixed: each combination with a finished run has its own part of the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adalora_repro import __version__
from adalora_repro.config.words import word
from adalora_repro.records.selection import at_edge, primary_mean
from adalora_repro.reports.curves import losses
from adalora_repro.reports.faults import attempt, fault, without_faulty
from adalora_repro.reports.figures.drawing import Records, run_link, run_name
from adalora_repro.reports.layout import (
    Sheet,
    budgets_of,
    command,
    filled_columns,
    fixed,
    optimism,
    plural,
    sheet_of,
    tried,
)
from adalora_repro.reports.marks import Done, with_marks
from adalora_repro.reports.output import check, form_of
from adalora_repro.reports.render import escape_html, html_notes, html_table, html_values
from adalora_repro.reports.spec import (
    DATA_SOURCES,
    Cell,
    Column,
    Report,
    Request,
    Row,
    Scope,
    Spec,
    Table,
    add_partial,
    compile_table,
    in_scope,
    left_out_because,
    lr_text,
)
from adalora_repro.reports.status import HEADINGS, SYMBOLS, State, state_of
from adalora_repro.terminal import clean, first_line

FILE = "report.html"
GENERATOR = '<meta name="generator" content="adalora-report">'
CURVE_POINTS = 100
STATUSES = ("ok", *SYMBOLS)
WORDS = {"ok": "finished"}


def place(request: Request) -> str:
    """``--out``, or report.html in the folder of results; an earlier page needs no ``--overwrite``.

    Raises:
        InputError: something else is there, or what cannot be written.
    """
    out = request.args.out or str(request.results / FILE)
    form_of("html", out, ["html"])
    check(out, request.args.overwrite, GENERATOR.encode())
    return out


def make(request: Request) -> tuple[str, list[str]]:
    """The page, and a line for each file that was refused."""
    refused = list(request.found[1])
    now, host = time.time(), socket.gethostname()
    data = Data(request.results, Path(place(request)).parent)
    states: list[State] = []
    for path, record in request.found[0]:
        try:
            state = state_of(path, record, now, host)
            data.add_run(state)
            states.append(state)
        except Exception as error:
            refused.append(f"{path}: {fault(error)}")
    found = [(state.path, state.record) for state in states]
    specs = [request.specs[name] for name in sorted(request.specs, key=paper_order)]
    sections = [request.reports[name] for name in sorted(request.reports, key=paper_order)]
    scopes = scopes_of(found, request, specs[0])
    parts, tests = [], Done()
    for number, scope in enumerate(scopes):
        tables = []
        for spec in specs:
            make_table = partial(marked_table, spec, scope, tests)
            made = attempt(short_title(spec.name), partial(without_faulty, make_table, found), None, refused)
            if made is not None:
                tables.append(made[0])
                refused += [*made[0].refused, *made[1]]
        parts.append(scope_part(f"s{number}", scope, tables, sections, found, states, data, refused))
    common = []
    for report in sections:
        if report.common:
            nothing: tuple[str, list[str]] = "", []
            html, more = attempt(short_title(report.name), partial(report.common, request.results), nothing, refused)
            common += [(report, html)] if html else []
            refused += more
    refused = list(dict.fromkeys(refused))
    return page(scopes, parts, common, states, refused, data), refused


def marked_table(spec: Spec, scope: Scope, tests: Done, found: Records) -> Table:
    return with_marks(compile_table(spec, found, scope), tests)


def scopes_of(found: Records, request: Request, first: Spec) -> list[Scope]:
    """Those with a finished run, the one with most first; that of the paper's ``first`` table where there is none."""
    wish = Scope("", "", include_partial=request.args.include_partial, results=request.results)
    counts = Counter(
        (record.key["backbone"], record.key["data"], record.key["protocol"])
        for _, record in found
        if left_out_because(record, wish) is None
    )
    names = sorted(counts, key=lambda name: (-counts[name], name)) or [(first.backbone, DATA_SOURCES[0], "paper")]
    return [
        Scope(backbone, data, protocol, "final", request.args.include_partial, request.results)
        for backbone, data, protocol in names
    ]


# --- what the script shows --------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Everything behind the numbers, for JSON. What many runs have in common is kept once, in ``shared``.

    A run's ``parts`` are titles with places in ``shared`` or with values of their own; all values are the record's own
    JSON texts, so that the page shows what the record says.
    """

    results: Path
    beside: Path  # the folder of the page, which links to records start from
    runs: list[dict[str, Any]] = field(default_factory=list)
    shared: list[Any] = field(default_factory=list)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    numbers: dict[Path, int] = field(default_factory=dict)

    def share(self, value: Any) -> int:
        text = json.dumps(value, allow_nan=False)
        if text not in self.places:
            self.places[text] = len(self.shared)
            self.shared.append(value)
        return self.places[text]

    def add_run(self, state: State) -> None:
        record, key = state.record, state.record.key
        values = record.to_json()
        settings = dict(values["settings"])
        own = {name: settings.pop(name) for name in ("optim.lr", "seed") if name in settings}
        score = (record.final or {}).get("metrics", {}).get(record.primary_metric)
        ranks = record.rank_pattern or {}
        curve = losses(state.path.parent, CURVE_POINTS)
        self.numbers[state.path] = len(self.runs)
        self.runs.append(
            {
                "name": run_name(state.path, self.results),
                "path": str(state.path),
                "href": quote(os.fsencode(os.path.relpath(state.path, self.beside))),
                "status": WORDS.get(state.status, state.status) + " (degenerate)" * record.degenerate,
                "key": [key[name] for name in ("task", "method", "budget", "backbone", "data", "protocol", "seed")],
                "lr": lr_text(float(key["lr"])),
                "score": "" if score is None else f"{score:.6g}",
                "metric": record.primary_metric,
                "error": record.error or "",
                "parts": {
                    "Result": flat(
                        {name: values[name] for name in ("status", "primary_metric", "final", "best", "degenerate")}
                    ),
                    "Key": flat(key),
                    "Learning rate and seed": flat(own),
                    "Other settings": self.share(flat(settings)),
                    "Parameters and budget": self.share(flat({name: values[name] for name in ("params", "budget")})),
                    "Time and memory": flat({name: values[name] for name in ("time", "memory", "progress")}),
                    "Environment": self.share(flat(values["environment"])),
                    "Data": self.share(flat(values["data"])),
                },
                "ranks": [self.share(list(ranks)), list(ranks.values())] if ranks else None,
                "curve": [[step for step, _ in curve], [float(f"{value:.4g}") for _, value in curve]],
            }
        )

    def add_cell(self, name: str, table: Table, row: Row, column: Column, cell: Cell) -> None:
        scope = table.scope
        told = [
            f"{metric} {fixed(value.mean)}"
            + (f" ± {fixed(value.sd)}" if value.sd is not None else "")
            + (f", paper {fixed(value.paper, table.spec.decimals)}" if value.paper is not None else "")
            for metric, value in zip(column.metrics, cell.values, strict=True)
        ]
        self.cells[name] = {
            "title": f"{row.name}, {column.heading}",
            "said": f"{scope.backbone}, data {scope.data}, protocol {scope.protocol}, {scope.select} step. "
            f"{'; '.join(told)}; lr {lr_text(float(cell.runs[0].key['lr']))}, {tried(cell)}.",
            "notes": [*cell.notes, *optimism([cell])],
            "runs": [self.numbers[run.path] for run in cell.runs],
            "command": command([column.task], [row.method], budgets_of(row), scope),
        }

    def to_json(self) -> str:
        """JSON that is inert inside HTML: no character in it can end the element or the line."""
        values = {"runs": self.runs, "shared": self.shared, "cells": self.cells}
        text = json.dumps(values, separators=(",", ":"), allow_nan=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def flat(values: Any, name: str = "") -> dict[str, str]:
    """Nested values by dotted name, each as the record's JSON has it; a text without its quotes."""
    if isinstance(values, dict) and values:
        found: dict[str, str] = {}
        for key, value in values.items():
            found |= flat(value, f"{name}.{key}" if name else str(key))
        return found
    text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, allow_nan=False)
    return {name: text} if name else {}


# --- one scope --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The part of one scope: its sections as (id, short title), and its HTML."""

    id: str
    name: str
    sections: tuple[tuple[str, str], ...]
    html: str


def scope_name(scope: Scope) -> str:
    return f"{scope.backbone}, {scope.data} data, protocol {scope.protocol}"


def scope_part(
    part: str,
    scope: Scope,
    tables: Sequence[Table],
    sections: Sequence[Report],
    found: Records,
    states: Sequence[State],
    data: Data,
    refused: list[str],
) -> Part:
    """``refused`` is given a line for each record that a section cannot show, and each section that cannot be made."""
    makers: list[tuple[str, str, Callable[[str], str]]] = []
    for table in tables:
        makers.append((table.spec.name, short_title(table.spec.name), partial(table_html, table=table, data=data)))
    for report in sections:
        if report.section:
            make_section = partial(report_html, report=report, found=found, scope=scope, refused=refused)
            makers.append((report.name, short_title(report.name), make_section))
    makers.append(("rates", "Learning rates", partial(rates_html, tables=tables)))
    ours = [state for state in states if in_scope(state.record, scope)]
    makers.append(("open", "What is missing", partial(open_html, states=ours, tables=tables, scope=scope)))
    pieces: list[tuple[str, str, str]] = []
    for stem, heading, make_html in makers:
        name = f"{part}-{stem}"
        html = attempt(f"{heading} of {scope_name(scope)}", partial(make_html, name), "", refused)
        pieces += [(name, heading, html)] if html else []
    title = escape_html(scope_name(scope))
    html = "\n".join(html for _, _, html in pieces)
    return Part(
        part,
        scope_name(scope),
        tuple((name, title) for name, title, _ in pieces),
        f'<article class="scope" id="{part}" aria-labelledby="{part}-title"><h2 id="{part}-title">{title}</h2>\n'
        f"{html}\n</article>",
    )


def report_html(name: str, report: Report, found: Records, scope: Scope, refused: list[str]) -> str:
    """The section of a report that is no table; "" where it has nothing to show."""

    def make_section(found: Records) -> str:
        return report.section(found, scope) if report.section else ""

    html, faulty = without_faulty(make_section, found)
    refused += faulty
    return section_html(name, report.title, html) if html else ""


def stem_and_number(name: str) -> tuple[str, str]:
    stem = name.rstrip("0123456789")
    return stem, name[len(stem) :]


def short_title(name: str) -> str:
    """table1 -> Table 1, as the paper names it."""
    stem, number = stem_and_number(name)
    return f"{stem.capitalize()} {number}".strip()


def paper_order(name: str) -> tuple[bool, str, int]:
    """Tables first; table2 before table14."""
    stem, number = stem_and_number(name)
    return stem != "table", stem, int(number or 0)


def section_html(name: str, title: str, html: str) -> str:
    heading = f'<h3 id="{name}-title">{escape_html(title)}</h3>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}\n{html}\n</section>'


def table_html(name: str, table: Table, data: Data) -> str:
    """What has records of ours first; all rows of the paper's table one click away."""
    heading = table.spec.title.removeprefix("Reproduction of ")
    whole = told_once(sheet_of(table))
    notes = f"<details><summary>{plural(len(whole.notes), 'note')}</summary>{''.join(html_notes(whole))}</details>"
    if not table.runs:
        left_out = "; ".join(f"{plural(count, 'record')} {why}" for why, count in sorted(table.left_out.items()))
        said = f"No finished run here{f' ({left_out})' if left_out else ''}."
        paper = "".join(html_table(whole))
        body = f"<p>{escape_html(said)}</p><details><summary>The paper's numbers</summary>{paper}</details>"
        return section_html(name, heading, body)
    for row in table.rows:
        for column, cell in zip(table.spec.columns, row.cells, strict=True):
            if cell.runs:
                data.add_cell(cell_name(table, row, column), table, row, column, cell)
    filled = told_once(sheet_of(table, only_filled=True))
    body = "".join(html_table(filled, links(table, only_filled=True)))
    more = ""
    if len(filled.blocks) < len(whole.blocks) or len(filled.heading) < len(whole.heading):
        every = "".join(html_table(whole, links(table, only_filled=False)))
        more = f"<details><summary>The whole table, with what has no run of ours yet</summary>{every}</details>"
    return section_html(name, heading, body + more + notes)


def told_once(sheet: Sheet) -> Sheet:
    """Without the title, which stands above it, in the caption."""
    return replace(sheet, caption=sheet.caption.removeprefix(f"{sheet.title}. "))


def links(table: Table, only_filled: bool) -> Callable[[int, int], str | None]:
    """Addresses of our numbers in the sheet of ``table``: of its cells with runs, not of counts and averages."""
    rows = [row for row in table.rows if row.runs or not only_filled]
    chosen = sorted(filled_columns(table)) if only_filled else list(range(len(table.spec.columns)))
    before = 3 if table.spec.shares else 2

    def link(block: int, cell: int) -> str | None:
        if not before <= cell < before + len(chosen):
            return None
        column = chosen[cell - before]
        if not rows[block].cells[column].runs:
            return None
        return cell_link(cell_name(table, rows[block], table.spec.columns[column]))

    return link


def cell_name(table: Table, row: Row, column: Column) -> str:
    scope = table.scope
    return "/".join((table.spec.name, scope.backbone, scope.data, scope.protocol, row.method, row.budget, column.task))


def cell_link(name: str) -> str:
    return f"#cell={quote(name, errors='replace')}"


# --- learning rates ---------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 168, 76, 8


def rates_html(name: str, tables: Sequence[Table]) -> str:
    """A small curve for each cell with several learning rates, of the first table that has it; "" for none."""
    found: dict[tuple[str, str, str], str] = {}
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.spec.columns, row.cells, strict=True):
                place = (column.task, row.method, row.budget)
                if len(cell.lrs) > 1 and place not in found:
                    found[place] = rate_figure(table, row, column, cell)
    if not found:
        return ""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    lead = (
        "<p>Score of each learning rate that was tried, on the held-out split if there is one: dots are seeds, the "
        "line is their mean, the ring marks the rate that the tables show.</p>"
    )
    lead += "".join(f"<p>{escape_html(sentence)}</p>" for sentence in optimism(cells))
    return section_html(name, "Learning rates", f'{lead}<div class="rates">{"".join(found.values())}</div>')


def rate_figure(table: Table, row: Row, column: Column, cell: Cell) -> str:
    chosen = float(cell.runs[0].key["lr"])
    means = {lr: primary_mean(runs, cell.held_out) for lr, runs in sorted(cell.by_lr.items())}
    scores = {run.path: run.primary(cell.held_out) for runs in cell.by_lr.values() for run in runs}
    x, y = axis(map(math.log10, means), MARGIN, WIDTH - MARGIN), axis(scores.values(), HEIGHT - MARGIN, MARGIN)
    line = " ".join(f"{x(math.log10(lr)):.1f},{y(mean):.1f}" for lr, mean in means.items())
    dots = "".join(
        f'<a href="{escape_html(run_link(run.path, table.scope.results))}" tabindex="-1">'
        f'<circle cx="{x(math.log10(lr)):.1f}" cy="{y(scores[run.path]):.1f}" r="2.2"><title>lr {lr_text(lr)}, '
        f"seed {run.key['seed']}: {scores[run.path]:.2f}</title></circle></a>"
        for lr, runs in cell.by_lr.items()
        for run in runs
    )
    edge = ", at the edge of its grid" if at_edge(chosen, cell.lrs) else ""
    metric = cell.runs[0].record.primary_metric + " (held-out split)" * cell.held_out
    told = f"lr {lr_text(chosen)} of {len(cell.lrs)}{edge}; {metric} {means[chosen]:.2f}"
    title = f"{column.heading}, {row.name}"
    return (
        f'<figure class="rate"><figcaption><a href="{escape_html(cell_link(cell_name(table, row, column)))}">'
        f"{escape_html(title)}</a></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape_html(title)}: {escape_html(told)}">'
        f'<polyline points="{line}"/>{dots}'
        f'<circle class="chosen" cx="{x(math.log10(chosen)):.1f}" cy="{y(means[chosen]):.1f}" r="5"/></svg>'
        f"<small>{escape_html(lr_text(min(means)))} … {escape_html(lr_text(max(means)))}<br>{escape_html(told)}</small>"
        "</figure>"
    )


def axis(values: Iterable[float], start: float, end: float) -> Callable[[float], float]:
    """Values -> places between ``start`` and ``end``; in the middle where there is one value alone."""
    known = list(values)
    low, high = min(known), max(known)
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


# --- what is not there ------------------------------------------------------------------------------------------------


def open_html(name: str, states: Sequence[State], tables: Sequence[Table], scope: Scope) -> str:
    """Runs that are not finished, with what stopped them, and the commands that fill the empty cells."""
    pieces = []
    for status in STATUSES[1:]:
        chosen = sorted((state for state in states if state.status == status), key=lambda state: str(state.path))
        if chosen:
            items = "".join(f"<li>{open_item(state, scope)}</li>" for state in chosen)
            pieces.append(f"<h4>{escape_html(HEADINGS[status].rstrip(':'))}</h4><ul class='open'>{items}</ul>")
    for table in tables:
        commands = sheet_of(table).commands
        if commands:
            cells = sum(not cell.runs for row in table.rows if row.in_paper for cell in row.cells)
            lines = "\n".join(escape_html(line) for line in commands)
            pieces.append(
                f"<details><summary>{short_title(table.spec.name)}: {plural(cells, 'empty cell')}</summary>"
                f'<pre tabindex="0"><code>{lines}</code></pre></details>'
            )
    return section_html(name, "What is missing", "".join(pieces) or "<p>Nothing: every cell has a finished run.</p>")


def open_item(state: State, scope: Scope) -> str:
    key = state.record.key
    budget = [] if key["budget"] == key["method"] else [key["budget"]]
    own = [word("optim.lr", float(key["lr"])), word("seed", key["seed"])]
    again = " ".join([command([key["task"]], [key["method"]], budget, scope), *own])
    said = f": {first_line(state.record.error)}" if state.record.error else ""
    what = f"{key['task']} {key['method']} {key['budget']} lr {lr_text(float(key['lr']))} seed {key['seed']}"
    return (
        f'<a href="{escape_html(run_link(state.path, scope.results))}">{escape_html(what)}</a>{escape_html(said)}<br>'
        f"<code>{escape_html(again)}</code> <small>(and its overrides: config.yaml beside the record)</small>"
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def asset(name: str) -> str:
    return (files("adalora_repro.reports") / "templates" / name).read_text(encoding="utf-8")


def page(
    scopes: Sequence[Scope],
    parts: Sequence[Part],
    common: Sequence[tuple[Report, str]],
    states: Sequence[State],
    refused: Sequence[str],
    data: Data,
) -> str:
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    navigation = "".join(part_navigation(part) for part in parts)
    choices = "".join(f'<li><a href="#{part.id}">{escape_html(part.name)}</a></li>' for part in parts)
    chooser = f'<nav class="scopes" aria-label="Backbone, data and protocol"><ul>{choices}</ul></nav>' * (
        len(parts) > 1
    )
    navigation += "".join(
        f'<ul><li><a href="#{report.name}">{escape_html(short_title(report.name))}</a></li></ul>'
        for report, _ in common
    )
    articles = "\n".join(part.html for part in parts)
    articles += "".join(f"\n{section_html(report.name, report.title, html)}" for report, html in common)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            GENERATOR,
            f'<meta http-equiv="Content-Security-Policy" content="{escape_html(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            "<title>AdaLoRA reproduction: report</title>",
            f"<style>{asset('page.css')}</style></head><body>",
            '<a class="skip" href="#main">Skip to the content</a>',
            '<nav class="contents" aria-label="Contents"><ul><li><a href="#overview">Overview</a></li></ul>',
            navigation,
            '<ul><li><a href="#runs">All runs</a></li></ul></nav>',
            '<main id="main">',
            overview(scopes, states, refused),
            chooser,
            articles,
            asset("runs.html").strip(),
            "</main>",
            '<dialog id="detail" aria-labelledby="detail-title"></dialog>',
            f'<script type="application/json" id="data">{data.to_json()}</script>',
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def part_navigation(part: Part) -> str:
    items = "".join(f'<li><a href="#{name}">{escape_html(title)}</a></li>' for name, title in part.sections)
    return f'<ul data-scope="{part.id}" aria-label="{escape_html(part.name)}">{items}</ul>'


def overview(scopes: Sequence[Scope], states: Sequence[State], refused: Sequence[str]) -> str:
    """How many runs there are of what, where they were made and by which source."""
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    counts = Counter(state.status for state in states)
    told = ", ".join(f"{counts[status]:,} {WORDS.get(status, status)}" for status in STATUSES if counts[status])
    facts = [
        ("Runs", told or "none yet"),
        ("Devices", listed(device(state) for state in states)),
        ("Source", commits(states)),
        ("Versions", listed(versions(state) for state in states)),
    ]
    facts += [("Refused", f"{plural(len(refused), 'file')}: {'; '.join(refused)}")] if refused else []
    terms = "".join(f"<dt>{term}</dt><dd>{escape_html(text)}</dd>" for term, text in facts)
    return (
        '<header><h1 id="overview">AdaLoRA, reproduced</h1>'
        "<p class='lead'>The tables and figures of <cite>AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient "
        "Fine-Tuning</cite> (ICLR 2023), our numbers beside the paper's. Every number of ours leads to its runs.</p>"
        f"<p class='made'>Made {made} by adalora-report {escape_html(__version__)}.</p></header>\n"
        f'<section aria-label="Overview"><dl>{terms}</dl>{scope_table(states)}</section>'
    )


def scope_table(states: Sequence[State]) -> str:
    """Runs by backbone, data and protocol, and by status."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for state in states:
        key = state.record.key
        counts.setdefault((key["backbone"], key["data"], key["protocol"]), Counter())[state.status] += 1
    if not counts:
        return "<p>No record yet: below are the paper's numbers, and the commands that make ours.</p>"
    shown = [status for status in STATUSES if any(by[status] for by in counts.values())]
    heading = ["Backbone", "Data", "Protocol", *(WORDS.get(status, status) for status in shown)]
    fullest = sorted(counts.items(), key=lambda item: -item[1].total())
    return html_values([heading, *([*name, *(f"{by[status]:,}" for status in shown)] for name, by in fullest)])


def listed(texts: Iterable[str], most: int = 4) -> str:
    known = Counter(text for text in texts if text)
    told = [f"{clean(text)} ({count:,})" for text, count in known.most_common(most)]
    return ", ".join(told + [f"and {len(known) - most} more"] * (len(known) > most)) or "not recorded"


def device(state: State) -> str:
    name, threads = (state.record.environment.get(what) for what in ("device", "threads"))
    return f"{name}, {plural(threads, 'thread')}" if name and threads is not None else name or ""


def versions(state: State) -> str:
    found = state.record.environment.get("versions", {})
    wanted = ("adalora-repro", "torch", "transformers")
    return ", ".join(f"{name} {found[name]}" for name in wanted if name in found)


def commits(states: Sequence[State]) -> str:
    """From the commit of the run that ended first to that of the last, and how many runs had changes besides."""
    git = [
        (state.updated, found) for state in states if (found := state.record.environment.get("git", {})).get("commit")
    ]
    if not git:
        return "not recorded"
    git.sort(key=lambda item: item[0])
    ends = [(found["commit"][:10], day(updated)) for updated, found in git]
    distinct = len({found["commit"] for _, found in git})
    dirty = sum(bool(found.get("dirty")) for _, found in git)
    first, last = ends[0], ends[-1]
    span = f"{first[0]} ({first[1]})" + (f" to {last[0]} ({last[1]})" if distinct > 1 else "")
    return f"{plural(distinct, 'commit')}, {span}; {plural(dirty, 'run')} from a tree with changes besides"


def day(updated: float) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(updated))
    except (OverflowError, OSError, ValueError):
        return "no date"


REPORT = Report(
    "html",
    "one page to look at: tables, figures, learning rates, and the runs behind every number",
    add_partial,
    make,
    reads="results",
    place=place,
)
