"""The report to look at: one HTML file with the state, every table and figure, and all runs.

The file needs nothing else: no network, no font, no library. Its markup is in ``templates/``. Backbones, data sources
and protocols are never mixed: each combination with a finished run has its own part of the page. What a run is travels
as JSON in the file; the script (``templates/page.js``) shows it on demand, as text and never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adalora_repro import __version__
from adalora_repro.config.words import word
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import percent, run_of
from adalora_repro.reports.cells import Row, Table, compile_table
from adalora_repro.reports.faults import attempt, fault, without_faulty
from adalora_repro.reports.figures.drawing import Records, run_name, scopes_of
from adalora_repro.reports.html import environment, markup
from adalora_repro.reports.notes import caption_of, commands_of, notes_of, tried
from adalora_repro.reports.output import check, form_of
from adalora_repro.reports.render import marks_of
from adalora_repro.reports.significance import with_marks
from adalora_repro.reports.spec import Report, Request, Scope, Spec, add_partial
from adalora_repro.reports.status import SYMBOLS, State, duration, paper_state, real, state_of
from adalora_repro.reports.text import extent, fixed, lr_text, plural, signed
from adalora_repro.terminal import clean, first_line

FILE = "report.html"
GENERATOR = '<meta name="generator" content="adalora-report">'
STATUSES = ("ok", *SYMBOLS)
WORDS = {"ok": "finished"}
NOT_YET = "none in the paper's setting yet"
FIRST = ("scores", "curves")  # figures above the tables
#: settings that a command repeats; those that are scaled with the number of steps follow from it
REPEATED = ("train.", "budget.match", "budget.params", "data.holdout", "eval.max_examples", "method.r")
REPEATED += ("method.gamma", "method.targets", "method.layers")
DERIVED = ("train.eval_steps",)


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
    refused = list(request.found[1])
    runs = Runs(request.results, Path(place(request)).parent)
    for path, record in request.found[0]:
        try:
            runs.add(state_of(path, record, time.time(), socket.gethostname()))
        except Exception as error:
            refused.append(f"{path}: {fault(error)}")
    found = [(state.path, state.record) for state in runs.states]
    specs = [request.specs[name] for name in sorted(request.specs, key=paper_order)]
    scopes = scopes_of(found, request.results) or [Scope(specs[0].backbone, "hub", results=request.results)]
    scopes = [scope_with(scope, request.args.include_partial) for scope in scopes]
    reports = [request.reports[name] for name in sorted(request.reports, key=paper_order)]
    parts = [part(f"s{i}", scope, specs, reports, found, runs.states, refused) for i, scope in enumerate(scopes)]
    common = []
    for report in reports:
        if report.common:
            nothing: tuple[str, list[str]] = "", []
            html, more = attempt(report.title, partial(report.common, request.results), nothing, refused)
            common += [(report.name, report.title, markup(html))] if html else []
            refused += more
    refused = list(dict.fromkeys(refused))
    script = asset("page.js")
    page = (
        environment()
        .get_template("page.html")
        .render(
            headline=headline(specs, found),
            generator=markup(GENERATOR),
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            style=markup(asset("page.css")),
            script=markup(script),
            data=markup(runs.to_json()),
            made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            version=__version__,
            facts=facts(runs.states, refused),
            pages=parts,
            common=common,
            runs=runs.rows,
        )
    )
    return page, refused


def scope_with(scope: Scope, include_partial: bool) -> Scope:
    return Scope(scope.backbone, scope.data, scope.protocol, "final", include_partial, scope.results)


def asset(name: str) -> str:
    return (files("adalora_repro.reports") / "templates" / name).read_text(encoding="utf-8")


def paper_order(name: str) -> tuple[bool, str, int]:
    """Tables first; table2 before table14."""
    stem = name.rstrip("0123456789")
    return stem != "table", stem, int(name[len(stem) :] or 0)


def short_title(name: str) -> str:
    """table1 -> Table 1, as the paper names it."""
    stem = name.rstrip("0123456789")
    return f"{stem.capitalize()} {name[len(stem) :]}".strip()


# --- the state --------------------------------------------------------------------------------------------------------


def headline(specs: Sequence[Spec], found: Records) -> str:
    """What is true of the reproduction, in one line: finished runs, and cells of the paper in the paper's setting."""
    state = paper_state(specs, found)
    if not state.runs:
        return "AdaLoRA reproduction: no finished run yet"
    filled = f"{state.filled:,} of {state.cells:,} cells of the paper filled"
    return f"AdaLoRA reproduction: {plural(state.runs, 'run')}, {filled if state.filled else NOT_YET}"


def facts(states: Sequence[State], refused: Sequence[str]) -> dict[str, str]:
    """How many runs there are, where they were made and from which source."""
    counts = Counter(state.status for state in states)
    degenerate = sum(state.record.degenerate for state in states)
    runs = ", ".join(f"{counts[status]:,} {WORDS.get(status, status)}" for status in STATUSES if counts[status])
    environments = [state.record.environment for state in states]
    git = [environment.get("git", {}) for environment in environments]
    commits = listed(found["commit"][:10] for found in git if found.get("commit"))
    dirty = sum(bool(found.get("dirty")) for found in git)
    lines = {
        "Runs": runs + (f"; {degenerate:,} degenerate (all predictions the same)" if degenerate else ""),
        "Devices": listed(str(environment.get("device", "")) for environment in environments),
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
    return ", ".join(
        f"{name} {installed[name]}" for name in ("adalora-repro", "torch", "transformers") if name in installed
    )


def matrix(tables: Sequence[Table], states: Sequence[State]) -> dict[str, Any]:
    """Method × task: finished runs, and where there are none whether one is running, failed or missing.

    Cells that no table of the paper has and without a run are empty.
    """
    columns = {column.task: column.heading for table in tables for column in table.spec.columns}
    labels: dict[str, str] = {}
    wanted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            for column in table.spec.columns if row.in_paper else ():
                labels.setdefault(row.method, row.name.removesuffix(row.budget).strip())
                wanted[row.method, column.task].append(row.budget)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for state in states:
        counts[state.record.key["method"], state.record.key["task"]][state.status] += 1
    others = sorted({method for method, _ in counts} - set(labels))
    names = {row.method: row.name.removesuffix(row.budget).strip() for table in tables for row in table.rows}
    labels |= {method: names.get(method, method) for method in others}
    rows = []
    for method, label in labels.items():
        cells = [cell_state(counts[method, task], (method, task) in wanted) for task in columns]
        words = [quote(f"task={task} method={method}") for task in columns]
        rows.append((label, list(zip(cells, words, columns.values(), strict=True))))
    return {"columns": list(columns.values()), "rows": rows}


def cell_state(counts: Counter[str], wanted: bool) -> dict[str, str]:
    """``kind`` filled, running, failed, missing or none; what stands in the cell, and its words."""
    said = ", ".join(f"{counts[status]:,} {WORDS.get(status, status)}" for status in STATUSES if counts[status])
    under_way = counts["running"] + counts["queued"]
    if counts["ok"]:
        return {"kind": "filled running" if under_way else "filled", "text": str(counts["ok"]), "said": said}
    if under_way:
        return {"kind": "running", "text": "▸", "said": said}
    if counts:
        return {"kind": "failed", "text": "✕", "said": said}
    return {"kind": "missing", "text": "·", "said": "missing"} if wanted else {"kind": "none", "text": "", "said": ""}


# --- one scope --------------------------------------------------------------------------------------------------------


def part(
    name: str,
    scope: Scope,
    specs: Sequence[Spec],
    reports: Sequence[Report],
    found: Records,
    states: Sequence[State],
    refused: list[str],
) -> dict[str, Any]:
    """All of one backbone, data source and protocol; ``refused`` gets a line for what cannot be shown."""
    tables = []
    for spec in specs:
        table = attempt(
            short_title(spec.name),
            partial(without_faulty, lambda found, spec=spec: with_marks(compile_table(spec, found, scope)), found),
            None,
            refused,
        )
        if table is not None:
            tables.append(table[0])
            refused += [*table[0].refused, *table[1]]
    ours = [
        state
        for state in states
        if (scope.backbone, scope.data, scope.protocol)
        == tuple(state.record.key[key] for key in ("backbone", "data", "protocol"))
    ]
    sections = {}
    for report in reports:
        if report.section:
            make_section = partial(without_faulty, lambda found, report=report: report.section(found, scope), found)
            html, faulty = attempt(f"{report.title}, {scope.backbone}", make_section, ("", []), refused)
            refused += faulty
            sections[report.name] = {"name": report.name, "title": report.title, "html": markup(html)}
    return {
        "id": name,
        "title": f"{scope.backbone}, {scope.data} data, protocol {scope.protocol}",
        "matrix": matrix(tables, ours),
        "first": [sections.pop(key) for key in FIRST if key in sections],
        "tables": [table_values(table) for table in tables],
        "figures": list(sections.values()),
        "open": [
            {
                "name": run_name(state.path, scope.results),
                "status": state.status,
                "error": first_line(state.record.error or ""),
            }
            for state in sorted(ours, key=lambda state: (STATUSES.index(state.status), str(state.path)))
            if state.status != "ok"
        ],
    }


def table_values(table: Table) -> dict[str, Any]:
    """A table for the template: our rows, and the paper's own numbers. The paper's stand beside ours where the
    backbone and the data are the paper's.
    """
    spec = table.spec
    comparable = table.comparable
    filled = [i for i in range(len(spec.columns)) if any(row.cells[i].runs for row in table.rows)]
    paper = [row for row in table.rows if row.in_paper]
    return {
        "id": spec.name,
        "short": short_title(spec.name),
        "title": spec.title.removeprefix("Reproduction of "),
        "caption": caption_of(table).removeprefix(f"{spec.title}. "),
        "columns": [(spec.columns[i].heading, spec.columns[i].unit) for i in filled],
        "rows": [
            {
                "name": row.name,
                "params": extent(row.params("method")),
                "cells": [cell_values(table, row, i) for i in filled],
            }
            for row in table.rows
            if row.runs
        ],
        "comparable": comparable,
        "paper_columns": ["Method", "# Params", *(f"{column.heading} {column.unit}" for column in spec.columns)],
        "paper": [
            [row.name, row.params_label, *(papers(table, row, i) for i in range(len(spec.columns)))] for row in paper
        ],
        "empty": sum(not cell.runs for row in paper for cell in row.cells),
        "notes": notes_of(table),
        "commands": commands_of(table),
    }


def papers(table: Table, row: Row, place: int) -> str:
    return "/".join(fixed(figure.paper, table.spec.decimals) for figure in table.of(row, place))


def cell_values(table: Table, row: Row, place: int) -> dict[str, Any] | None:
    """One cell with runs: scores with spread and number of seeds, marks, and the address of its runs in the list."""
    cell, column, figures = row.cells[place], table.spec.columns[place], table.of(row, place)
    if not cell.runs:
        return None
    key = cell.runs[0].key
    names = ("backbone", "data", "protocol")
    words = {"task": column.task, "method": row.method, "budget": row.budget, "lr": lr_text(float(key["lr"]))}
    words |= {name: key[name] for name in names} | {"setting": key["variant"]}
    spreads = [fixed(value.sd) for value in figures if value.sd == value.sd]
    return {
        "scores": [(fixed(value.mean), value.best, marks_of(value)) for value in figures],
        "spread": "/".join(spreads),
        "seeds": len(cell.runs),
        "degenerate": len(cell.degenerate),
        "paper": "/".join(fixed(value.paper) for value in figures) if table.comparable else "",
        "difference": "/".join(signed(value.difference) for value in figures) if table.comparable else "",
        "words": quote(" ".join(f"{name}={token(value)}" for name, value in words.items())),
        "said": f"lr {words['lr']}, {tried(cell)}",
    }


def token(value: Any) -> str:
    """A value as one word of the filter."""
    return "_".join(clean(str(value)).split()) or "_"


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """The list of runs for the template, and what is behind each for the script.

    A run's ``parts`` are titles with places in ``shared``, where what many runs have in common is kept once. All values
    are the record's own JSON texts, so that the page shows what the record says.
    """

    results: Path
    beside: Path  # the folder of the page, which links to records start from
    states: list[State] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared: list[dict[str, str]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def share(self, values: dict[str, str]) -> int:
        text = json.dumps(values, allow_nan=False)
        if text not in self.places:
            self.places[text] = len(self.shared)
            self.shared.append(values)
        return self.places[text]

    def add(self, state: State) -> None:
        values = state.record.to_json()
        name = run_name(state.path, self.results)
        settings = dict(values["settings"])
        own = {key: settings.pop(key) for key in ("optim.lr", "seed") if key in settings}
        result = {key: values[key] for key in ("status", "primary_metric", "final", "best", "degenerate")}
        parts = {
            "Result": flat(result),
            "Key": flat(values["key"]),
            "Learning rate and seed": flat(own),
            "Parameters and budget": flat({key: values[key] for key in ("params", "budget")}),
            "Time and memory": flat({key: values[key] for key in ("time", "memory", "progress")}),
            "Other settings": flat(settings),
            "Environment": flat(values["environment"]),
            "Data": flat(values["data"]),
        }
        self.rows.append(row_of(state, name, self.results))
        self.details[name] = {
            "path": str(state.path),
            "href": quote(os.fsencode(os.path.relpath(state.path, self.beside))),
            "error": state.record.error or "",
            "parts": {title: self.share(part) for title, part in parts.items() if part},
            "ranks": [self.share(flat(dict.fromkeys(ranks, ""))), list(ranks.values())]
            if (ranks := state.record.rank_pattern)
            else None,
        }
        self.states.append(state)

    def to_json(self) -> str:
        """JSON that is inert inside HTML: no character in it can end the element or the line."""
        text = json.dumps({"runs": self.details, "shared": self.shared}, separators=(",", ":"), allow_nan=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def flat(values: Any, name: str = "") -> dict[str, str]:
    """Nested values by dotted name, each as the record's JSON has it; a text without its quotes."""
    if isinstance(values, dict) and values:
        parts: dict[str, str] = {}
        for key, value in values.items():
            parts |= flat(value, f"{name}.{key}" if name else str(key))
        return parts
    text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, allow_nan=False)
    return {name: text} if name else {}


def row_of(state: State, name: str, results: Path) -> dict[str, Any]:
    """One line of the list: (text, value to sort by) of each column, words to filter by, and the command."""
    record, key = state.record, state.record.key
    run = run_of(state.path, record)
    score = percent(record) * (run.scores[record.primary_metric]) if run.scores else None
    seconds, peak = real(record.time.get("train_s")), real(record.memory.get("peak"))
    step = real(record.progress.get("step")) if record.status != "ok" else key["total_steps"]
    words = {
        key: token(record.key[key]) for key in ("task", "method", "budget", "backbone", "data", "protocol", "seed")
    }
    words |= {"lr": lr_text(float(key["lr"])), "setting": token(key["variant"]), "status": state.status}
    return {
        "name": name,
        "href": quote(name, errors="replace"),
        "status": WORDS.get(state.status, state.status),
        "kind": state.status,
        "degenerate": record.degenerate,
        "words": " ".join(f"{name}={value}" for name, value in words.items()),
        "cells": [
            ("Task", key["task"], None),
            ("Method", key["method"], None),
            ("Budget", key["budget"], None),
            ("lr", words["lr"], float(key["lr"])),
            ("Seed", str(key["seed"]), key["seed"]),
            ("Score (%)", "" if score is None else f"{score:.2f}", score),
            ("Metric", record.primary_metric, None),
            ("Time", "" if seconds is None else duration(seconds), seconds),
            ("Memory", "" if peak is None else f"{peak / 2**30:.2f} GiB", peak),
            ("Steps", "" if step is None else f"{step:,.0f}", step),
            ("Backbone", key["backbone"], None),
            ("Data", key["data"], None),
            ("Protocol", key["protocol"], None),
        ],
        "command": command_of(record, results),
    }


def command_of(record: RunRecord, results: Path) -> str:
    """The command that runs this again. What is scaled with the number of steps (warmup, t_i) follows from it."""
    key, settings = record.key, record.settings
    words = [word("task", key["task"]), word("method", key["method"])]
    named = key["budget"] != key["method"] and settings.get("budget.match") is None and "method.r" not in settings
    words += [word("budget", key["budget"])] if named or "budget.label" in settings else []
    words += [word("backbone", key["backbone"]), word("data", key["data"])]
    words += ["data.dir=DIR"] if key["data"] == "local" else []
    words += [word("protocol", key["protocol"])] if key["protocol"] != "paper" else []
    words += [word("optim.lr", float(key["lr"])), word("seed", key["seed"])]
    for name, value in settings.items():
        if name.startswith(REPEATED) and name not in DERIVED and value is not None:
            words.append(f"'{name}=[{','.join(map(str, value))}]'" if isinstance(value, list) else word(name, value))
    words += [word("results.dir", str(results))] if str(results) != "results" else []
    return " ".join(["adalora-run", *words])


REPORT = Report(
    "html",
    "one page to look at: the state, tables, figures, and the runs behind every number",
    add_partial,
    make,
    reads="results",
    place=place,
)
