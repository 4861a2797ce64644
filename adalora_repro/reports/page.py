"""The report to look at: one HTML file with the state, every table and figure, and all runs.

The file needs nothing else: no network, no font, no library. Its markup is in ``templates/``. Backbones, data sources
and protocols are never mixed: each combination with a finished run has its own part of the page. What a run is travels
as JSON in the file; the script (``templates/page.js``) shows it on demand, as text and never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adalora_repro import __version__
from adalora_repro.errors import clean, first_line
from adalora_repro.records.revisions import outdated
from adalora_repro.reports.cells import Row, Table, compile_table, in_scope
from adalora_repro.reports.faults import attempt, fault, without_faulty
from adalora_repro.reports.figures.data import Records, run_name, scopes_of
from adalora_repro.reports.html import markup, render
from adalora_repro.reports.notes import commands_of, fill_title
from adalora_repro.reports.output import check, form_of
from adalora_repro.reports.page_runs import STATUSES, WORDS, Runs, filter_words
from adalora_repro.reports.render import html_table, sheet_of
from adalora_repro.reports.significance import with_marks
from adalora_repro.reports.spec import Report, Request, Scope, Spec, add_partial, label_of
from adalora_repro.reports.status import PaperState, State, paper_state, state_of
from adalora_repro.reports.text import plural

FILE = "report.html"
GENERATOR = '<meta name="generator" content="adalora-report">'
FIRST = ("scores", "curves")  # figures above the tables


def place(request: Request) -> str:
    """``--out``, or report.html in the folder of results; an earlier page needs no ``--overwrite``.

    Raises:
        InputError: another file is there, or it cannot be written.
    """
    out = request.args.out or str(request.results / FILE)
    form_of("html", out, ["html"])
    check(out, request.args.overwrite, GENERATOR.encode())
    return out


def make(request: Request) -> tuple[str, list[str]]:
    """The page, and a line for each file that was refused."""
    (page, refused), faulty = without_faulty(partial(page_of, request), request.read[0])
    return page, [*refused, *faulty]


def page_of(request: Request, found: Records) -> tuple[str, list[str]]:
    refused = list(request.read[1])
    runs = Runs(request.results, Path(place(request)).parent)
    for path, record in found:
        try:
            runs.add(state_of(path, record, time.time(), socket.gethostname()))
        except Exception as error:
            refused.append(f"{path}: {fault(error)}")
    records = [(state.path, state.record) for state in runs.states]
    specs = [request.specs[name] for name in sorted(request.specs, key=paper_order)]
    reports = [request.reports[name] for name in sorted(request.reports, key=paper_order)]
    scopes = scopes_of(records, request.results) or [Scope(specs[0].backbone, "hub", results=request.results)]
    scopes = [replace(scope, include_partial=request.args.include_partial) for scope in scopes]
    parts = [part(f"s{i}", scope, specs, reports, runs.states, refused) for i, scope in enumerate(scopes)]
    common = []
    for report in reports:
        if report.common:
            nothing: tuple[str, list[str]] = "", []
            html, more = attempt(report.title, partial(report.common, request.results), nothing, refused)
            refused += more
            common += [section(report, html)] if html else []
    refused = list(dict.fromkeys(refused))
    state = paper_state(specs, records)
    script = asset("page.js")
    page = render(
        "page.html",
        title=f"AdaLoRA reproduction: {in_short(state)}",
        state=state,
        generator=markup(GENERATOR),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=markup(asset("page.css")),
        script=markup(script),
        data=markup(runs.to_json()),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
        facts=facts(runs.states, refused),
        scopes=parts,
        common=common,
        runs=runs.rows,
    )
    return page, refused


def in_short(state: PaperState) -> str:
    if not state.runs:
        return "no finished run yet"
    counted = f"{state.counted:,} of them" if state.counted else "none"
    return f"{plural(state.runs, 'run')}, {counted} in the paper's setting{' yet' * (not state.counted)}"


def asset(name: str) -> str:
    return (files("adalora_repro.reports") / "templates" / name).read_text(encoding="utf-8")


def paper_order(name: str) -> tuple[bool, str, int]:
    """Tables first; table2 before table14."""
    stem = name.rstrip("0123456789")
    return stem != "table", stem, int(name[len(stem) :] or 0)


def facts(states: Sequence[State], refused: Sequence[str]) -> dict[str, str]:
    """How many runs there are, where they were made and from which source; only what is recorded."""
    counts = Counter(state.status for state in states)
    degenerate = sum(state.record.degenerate for state in states)
    runs = ", ".join(f"{counts[status]:,} {WORDS.get(status, status)}" for status in STATUSES if counts[status])
    earlier = sum(outdated(state.record) is not None for state in states)
    runs += f"; {degenerate:,} degenerate (the same prediction for every example)" if degenerate else ""
    runs += f"; {earlier:,} of an earlier definition of the method, not counted" if earlier else ""
    environments = [state.record.environment for state in states]
    git = [environment.get("git", {}) for environment in environments]
    commits = listed((source.get("commit") or "")[:10] for source in git)
    dirty = sum(bool(source.get("dirty")) for source in git)
    lines = {
        "Runs": runs,
        "Devices": listed(environment.get("device", "") for environment in environments),
        "Source": f"commit {commits}; {plural(dirty, 'run')} with uncommitted changes" if commits else "",
        "Versions": listed(versions(environment.get("versions", {})) for environment in environments),
        "Refused": f"{plural(len(refused), 'file')}: {'; '.join(refused)}" if refused else "",
    }
    return {name: text for name, text in lines.items() if text}


def listed(texts: Iterable[str], most: int = 4) -> str:
    counts = Counter(text for text in texts if text)
    first = [f"{clean(text)} ({plural(count, 'run')})" for text, count in counts.most_common(most)]
    return ", ".join(first + [f"and {len(counts) - most} more"] * (len(counts) > most))


def versions(installed: Mapping[str, str]) -> str:
    names = ("adalora-repro", "torch", "transformers")
    return ", ".join(f"{name} {installed[name]}" for name in names if name in installed)


# --- one backbone, data source and protocol ---------------------------------------------------------------------------


def part(
    name: str,
    scope: Scope,
    specs: Sequence[Spec],
    reports: Sequence[Report],
    states: Sequence[State],
    refused: list[str],
) -> dict[str, Any]:
    """What the template shows of a scope; ``refused`` gets a line for whatever cannot be shown."""
    ours = [state for state in states if in_scope(state.record, scope)]
    records = [(state.path, state.record) for state in ours]
    name_of_scope = f"{scope.backbone}, {scope.data} data, protocol {scope.protocol}"

    def attempted(title: str, make_part: Callable[[Records], Any]) -> Any:
        nothing: tuple[Any, list[str]] = None, []
        making = partial(without_faulty, make_part, records)
        made, faulty = attempt(f"{title}, {name_of_scope}", making, nothing, refused)
        refused.extend(faulty)
        return made

    tables = []
    for spec in specs:
        table = attempted(spec.title, partial(marked_table, spec, scope))
        if table is not None:
            refused.extend(table.refused)
            tables.append(table)
    sections = {report.name: attempted(report.title, partial(section_of, report, scope)) for report in reports}
    sections = {key: value for key, value in sections.items() if value}
    unfinished = sorted((state for state in ours if state.status != "ok"), key=lambda state: str(state.path))
    return {
        "id": name,
        "title": name_of_scope,
        "matrix": matrix(tables, ours),
        "unfinished": [
            (run_name(s.path, scope.results), s.status, first_line(s.record.error or "")) for s in unfinished
        ],
        "first": [sections.pop(key) for key in FIRST if key in sections],
        "tables": [table_values(table) for table in tables],
        "figures": list(sections.values()),
    }


def marked_table(spec: Spec, scope: Scope, records: Records) -> Table:
    return with_marks(compile_table(spec, records, scope))


def section_of(report: Report, scope: Scope, records: Records) -> dict[str, Any] | None:
    html = report.section(records, scope) if report.section else ""
    return section(report, html) if html else None


def section(report: Report, html: str) -> dict[str, Any]:
    return {"name": report.name, "title": report.title, "html": markup(html)}


def table_values(table: Table) -> dict[str, Any]:
    """Our rows with links to their runs, the paper's own numbers, and the commands that fill the empty cells."""
    spec, scope = table.spec, table.scope

    def link(row: Row, i: int) -> str | None:
        cell = row.cells[i] if 0 <= i < len(row.cells) else None
        return f"#list={quote(filter_words(cell.runs[0].record))}" if cell and cell.runs else None

    title = spec.title.removeprefix("Reproduction of ")
    paper, commands = compile_table(spec, [], scope), commands_of(table)
    cells = [cell for row in table.rows if row.in_paper for cell in row.cells]
    empty = sum(not cell.runs for cell in cells)
    return {
        "name": spec.name,
        "title": title,
        "ours": table_html(table, f"Our runs in {title}", True, link) if table.runs else "",
        "paper": table_html(paper, f"The paper's numbers of {title}", False, lambda row, i: None),
        "notes": sheet_of(table, "html").notes,
        "missing": f"{empty:,} of {plural(len(cells), 'cell')} without a run" if empty else "the paper's numbers",
        "left_out": [f"{plural(count, 'record')} {why}" for why, count in sorted(table.left_out.items())],
        "fill": fill_title(commands),
        "commands": commands,
    }


def table_html(table: Table, title: str, only_filled: bool, link: Callable[[Row, int], str | None]) -> Any:
    sheet = sheet_of(table, "html", only_filled, link)
    html = html_table(replace(sheet, title=title, caption=sheet.caption.removeprefix(f"{table.spec.title}. ")))
    return markup(re.sub(r' id="[^"]*"', "", html))  # a table is on the page more than once


def matrix(tables: Sequence[Table], states: Sequence[State]) -> dict[str, Any]:
    """Method × task: finished runs, and where there are none whether one is running, failed or missing.

    What no table asks for and no run has is empty.
    """
    columns = {column.task: column.heading for table in tables for column in table.spec.columns}
    wanted: dict[str, set[str]] = defaultdict(set)
    for row, column, _ in (cell for table in tables for cell in table.cells()):
        wanted[row.method] |= {column.task} if row.in_paper else set()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for state in states:
        counts[state.record.key["method"], state.record.key["task"]][state.status] += 1
        columns.setdefault(state.record.key["task"], state.record.key["task"])
    methods = dict.fromkeys([*wanted, *sorted(method for method, _ in counts)])
    return {
        "columns": list(columns.values()),
        "rows": [
            (
                label_of(method),
                [
                    (heading, f"task={task} method={method}", *cell_state(counts[method, task], task in wanted[method]))
                    for task, heading in columns.items()
                ],
            )
            for method in methods
        ],
    }


def cell_state(counts: Counter[str], wanted: bool) -> tuple[str, str, str]:
    """Kind (filled, running, failed, missing or none), text, and the text in words."""
    words = ", ".join(f"{counts[status]:,} {WORDS.get(status, status)}" for status in STATUSES if counts[status])
    under_way = counts["running"] + counts["queued"]
    if counts["ok"]:
        return "filled running" if under_way else "filled", f"{counts['ok']:,}", words
    if counts:
        return ("running", "▸", words) if under_way else ("failed", "✕", words)
    return ("missing", "·", "missing") if wanted else ("none", "", "")


REPORT = Report(
    "html",
    "one page to look at: the state, tables, figures, and the runs behind every number",
    add_partial,
    make,
    reads="results",
    target=place,
)
