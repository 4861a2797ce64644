"""The report to look at: one HTML file with the state, every table and figure, and all runs.

The file needs nothing else: no network, no font, no library. Its markup is in ``templates/``. Backbones, data sources
and protocols are never mixed: each combination with a finished run has its own part of the page. What a run is travels
as JSON in the file; the script (``templates/page.js``) shows it on demand, as text and never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adalora_repro import __version__
from adalora_repro.config import catalog
from adalora_repro.errors import clean
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports.cells import Cell, Table, compile_table, in_scope
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.notes import commands_of, fill_title
from adalora_repro.reports.output import GENERATOR, form_of
from adalora_repro.reports.page_runs import data_of, filter_words, row_of, words_of
from adalora_repro.reports.render import html_table, markup, sheet_of, template
from adalora_repro.reports.significance import with_marks
from adalora_repro.reports.spec import (
    DATA_SOURCES,
    PAPER_BACKBONE,
    Record,
    Report,
    Request,
    Scope,
    Spec,
    add_partial,
    default_backbone,
)
from adalora_repro.reports.status import PaperState, as_seen, paper_state, statuses_text
from adalora_repro.reports.text import plural

if TYPE_CHECKING:
    import pandas as pd

FILE = "report.html"
OPENING = "claims"
FIRST = ("scores", "hours", "curves")  # above the tables


def make(request: Request) -> str:
    out = request.args.out or str(request.results / FILE)
    form_of("html", out, ["html"])
    now, host = time.time(), socket.gethostname()
    records = [(path, as_seen(path, record, now, host)) for path, record in request.records]
    scopes = scopes_of(records, request.results) or [Scope(PAPER_BACKBONE, "hub", results=request.results)]
    scopes = [replace(scope, include_partial=request.args.include_partial) for scope in scopes]
    runs = frame_of(records, request.args.include_partial, ["final"])
    parts = [part(request, f"s{i}", scope, records, runs) for i, scope in enumerate(scopes)]
    common = [
        one for report in request.reports.values() if report.common for one in section(report, report.common(request))
    ]
    state = paper_state(request.specs.values(), records)
    script = asset("page.js")
    return template(
        "page.html",
        title=f"AdaLoRA reproduction: {in_short(state)}",
        state=state,
        generator=markup(GENERATOR),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=markup(asset("page.css")),
        script=markup(script),
        data=markup(data_of(request.records, request.results, Path(out).parent)),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        facts=facts([record for _, record in records], list(dict.fromkeys(request.refused))),
        scopes=parts,
        common=common,
        runs=[row_of(path, record, request.results) for path, record in records],
    )


def scopes_of(records: Sequence[Record], results: Path) -> list[Scope]:
    """Backbones, data sources and protocols with a finished run, first the one that other reports show by default."""
    keys = [record.key for _, record in records if record.status == "ok"]
    first = default_backbone(key["backbone"] for key in keys)
    names = {(key["backbone"], key["data"], key["protocol"]) for key in keys}
    order = sorted(names, key=lambda of: (of[0] != first, of[0], [*DATA_SOURCES, of[1]].index(of[1]), of[2]))
    return [Scope(*of, results=results) for of in order]


def in_short(state: PaperState) -> str:
    if not state.runs:
        return "no finished run yet"
    counted = f"{state.counted:,} of them" if state.counted else "none"
    return f"{plural(state.runs, 'run')}, {counted} in the paper's setting{' yet' * (not state.counted)}"


def asset(name: str) -> str:
    return (files("adalora_repro.reports") / "templates" / name).read_text(encoding="utf-8")


def facts(records: Sequence[RunRecord], refused: Sequence[str]) -> dict[str, str]:
    """How many runs there are, and which files were refused."""
    runs = statuses_text(record.status for record in records)
    degenerate = sum(record.degenerate for record in records)
    runs += f"; {degenerate:,} degenerate (the same prediction for every example)" if degenerate else ""
    earlier = sum(outdated(record) is not None for record in records)
    runs += f"; {earlier:,} of an earlier definition of the method, not counted" if earlier else ""
    lines = {"Runs": runs, "Refused": f"{plural(len(refused), 'file')}: {'; '.join(refused)}" if refused else ""}
    return {name: text for name, text in lines.items() if text}


# --- one backbone, data source and protocol ---------------------------------------------------------------------------


def part(request: Request, name: str, scope: Scope, records: Sequence[Record], runs: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of a scope."""
    title = f"{scope.backbone}, {scope.data} data, protocol {scope.protocol}"
    print(f"adalora-report: {clean(title)} …", file=sys.stderr)
    ours = [record for _, record in records if in_scope(record, scope)]
    tables = [with_marks(compile_table(spec, records, scope)) for spec in request.specs.values()]
    request.refused.extend(line for table in tables for line in table.refused)
    sections = {}
    for report in request.reports.values():
        sections[report.name] = section(report, report.section(runs, scope) if report.section else "")
    return {
        "id": name,
        "title": title,
        "matrix": matrix(tables, ours, scope),
        "opening": sections.pop(OPENING, []),
        "first": [one for key in FIRST for one in sections.pop(key, [])],
        "tables": [table_values(table) for table in tables],
        "figures": [one for of_report in sections.values() for one in of_report],
    }


def section(report: Report, html: str) -> list[dict[str, Any]]:
    """What the template shows of a report, if there is something."""
    return [{"name": report.name, "title": report.title, "html": markup(html)}] if html else []


@cache
def papers_numbers(spec: Spec, title: str) -> Any:
    """The paper's own table, which every scope shows."""
    return table_html(compile_table(spec, [], Scope(spec.backbone, DATA_SOURCES[0])), title, False)


def table_values(table: Table) -> dict[str, Any]:
    """Our rows with links to their runs, the paper's own numbers, and the commands that fill the empty cells."""
    spec = table.spec

    def link(cell: Cell) -> str:
        return f"#list={quote(filter_words(cell.runs[0].record))}"

    title = spec.title.removeprefix("Reproduction of ")
    commands = commands_of(table)
    cells = [cell for row in table.rows if row.in_paper for cell in row.cells]
    empty = sum(not cell for cell in cells)
    return {
        "name": spec.name,
        "title": title,
        "ours": table_html(table, f"Our runs in {title}", True, link) if table.runs else "",
        "paper": papers_numbers(spec, f"The paper's numbers of {title}"),
        "notes": sheet_of(table, "html").notes,
        "missing": f"{empty:,} of {plural(len(cells), 'cell')} without a run" if empty else "the paper's numbers",
        "left_out": [f"{plural(count, 'record')} {why}" for why, count in sorted(table.left_out.items())],
        "fill": fill_title(commands),
        "commands": commands,
    }


def table_html(table: Table, title: str, only_filled: bool, link: Callable[[Cell], str] | None = None) -> Any:
    sheet = sheet_of(table, "html", only_filled, link)
    return markup(html_table(replace(sheet, title=title, caption=sheet.caption.removeprefix(f"{table.spec.title}. "))))


def matrix(tables: Sequence[Table], records: Sequence[RunRecord], scope: Scope) -> dict[str, Any]:
    """Method × task: finished runs, and where there are none whether one is running, failed or missing.

    What no table asks for and no run has is empty.
    """
    columns = {column.task: column.heading for table in tables for column in table.spec.columns}
    wanted: dict[str, set[str]] = defaultdict(set)
    for row, column, _ in (cell for table in tables for cell in table.cells()):
        wanted[row.method] |= {column.task} if row.in_paper else set()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.key["method"], record.key["task"]][record.status] += 1
        columns.setdefault(record.key["task"], record.key["task"])
    methods = dict.fromkeys([*wanted, *sorted(method for method, _ in counts)])
    of_scope = {name: getattr(scope, name) for name in ("backbone", "data", "protocol")}
    return {
        "columns": list(columns.values()),
        "rows": [
            (
                catalog.method(method).label,
                [
                    (
                        heading,
                        words_of({"task": task, "method": method} | of_scope),
                        *cell_state(counts[method, task], task in wanted[method]),
                    )
                    for task, heading in columns.items()
                ],
            )
            for method in methods
        ],
    }


def cell_state(counts: Counter[str], wanted: bool) -> tuple[str, str, str]:
    """Kind (filled, running, failed, missing or none), text, and the text in words."""
    words = statuses_text(counts.elements())
    under_way = counts["running"] + counts["queued"]
    if counts["ok"]:
        return "filled running" if under_way else "filled", f"{counts['ok']:,}", words
    if counts:
        return ("running", "▸", words) if under_way else ("failed", "✕", words)
    return ("missing", "·", "missing") if wanted else ("none", "", "")


REPORT = Report(
    "html",
    "One page to look at: the state, tables, figures, and the runs behind every number",
    add_partial,
    make,
    reads="results",
    file=FILE,
)
