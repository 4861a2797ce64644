"""The learning rate of each cell, by the rule of the tables: where it came from, and a file that keeps it.

A file of conf/tuned/lr holds one learning rate, for one backbone and (unless the method has one size) one budget; it is
loaded after the pair's recipe, conf/tuned/<task>_<method>.yaml, which stays as it is.
"""

from __future__ import annotations

import argparse
import re
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from adalora_repro.config import catalog
from adalora_repro.config.words import lr_text, word
from adalora_repro.errors import InputError, clean, one_line, one_of
from adalora_repro.records.run_record import write_atomic
from adalora_repro.records.selection import RULE, primary_mean
from adalora_repro.reports.cells import Cell, Table, choose_scope, compile_table
from adalora_repro.reports.faults import without_faulty
from adalora_repro.reports.notes import optimism_of
from adalora_repro.reports.spec import PartlyDone, Record, Report, Request, Scope, add_partial
from adalora_repro.reports.text import cell_name, plural, wrapped

EDGE = "edge of its grid: widen it"
MARK = "  # chosen"  # begins the comment lines that a later choice replaces
LR_LINE = re.compile(r"^  lr: (\S+)(?:\s+#.*)?$")


def choices(table: Table) -> list[Cell]:
    """The cells with finished runs, each once, also where several columns are of one task."""
    return list({(row.name, column.task): cell for row, column, cell in table.filled()}.values())


def score_text(cell: Cell) -> str:
    """The mean by which the learning rate was chosen: metric, value, and the split if it is the held-out one."""
    split = " on the held-out split" * cell.held_out
    return f"{cell.runs[0].record.primary_metric} {primary_mean(cell.runs, cell.held_out):.2f}{split}"


def tried_text(cell: Cell) -> str:
    grid = cell.lrs
    return f"{len(grid)} tried, {lr_text(grid[0])} to {lr_text(grid[-1])}" if len(grid) > 1 else "the only one tried"


def render_choices(table: Table) -> str:
    """Each choice with its runs; at the end the rule, and where it is optimistic."""
    scope = table.scope
    lines = wrapped(f"{table.spec.title}. Backbone {scope.backbone}; data {scope.data}; protocol {scope.protocol}")
    lines += [line for remark in scope.remarks for line in wrapped(remark)]
    cells = choices(table)
    for cell in cells:
        flag = f"; {EDGE}" if cell.edge else ""
        name, seeds = cell_name(cell.key), plural(len(cell.runs), "seed")
        text = f"{name}: lr {lr_text(cell.lr)}, {score_text(cell)}, {seeds}; {tried_text(cell)}{flag}"
        lines += ["", *wrapped(text, "  ")]
        for run in cell.runs:
            flag = "  degenerate" * run.record.degenerate
            lines.append(clean(f"  {run.primary(cell.held_out):.2f}  seed {run.key['seed']}  {run.path}{flag}"))
    lines += ["", *(line for sentence in optimism_of(table) for line in wrapped(sentence))] if cells else []
    lines += wrapped(RULE) if cells else ["no cell has a finished run"]
    return "\n".join(lines) + "\n"


def keep(cell: Cell, scope: Scope, folder: Path, today: str) -> str | None:
    """Writes the choice to ``folder``; returns one line about it, None where the file says the same already.

    Raises:
        InputError: the file that is there has no line to put the learning rate in.
    """
    budget = "" if cell.fixed_size else f"_{cell.key['budget']}"
    path = folder / f"{cell.key['task']}_{cell.key['method']}{budget}_{scope.backbone}.yaml"
    try:
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else header(cell, scope)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--write: cannot read '{path}': {one_line(error)}; left alone") from None
    line = lr_line(path, old) if path.exists() else len(old)
    before = LR_LINE.match(old[line]) if path.exists() else None
    first = line
    while first and old[first - 1].startswith(MARK):
        first -= 1
    origin = reasons(cell, scope, today)
    if before is not None and float(before[1]) == cell.lr and old[first + 1 : line] == origin[1:]:
        return None
    was = f"; before: {before[1]}" if before is not None else ""
    edge = f"; {EDGE}" if cell.edge else ""
    new = [*old[:first], *origin, f"  lr: {yaml_number(cell.lr)}  # chosen {today}{edge}{was}", *old[line + 1 :]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, ("\n".join(new) + "\n").encode())
    except OSError as error:
        raise InputError(f"--write: cannot write '{path}': {error.strerror}") from None
    return f"wrote {path}: optim.lr {lr_text(cell.lr)}{was}"


def header(cell: Cell, scope: Scope) -> list[str]:
    words = [word(name, cell.key[name]) for name in ("task", "method", *(() if cell.fixed_size else ("budget",)))]
    command = " ".join(["adalora-run", *words, word("backbone", scope.backbone)])
    name = cell_name(cell.key)
    return [
        "# @package _global_",
        f"# The learning rate of {name} on {scope.backbone} from our own runs; nothing else is set here.",
        f"# Command: {command}",
        "optim:",
    ]


def reasons(cell: Cell, scope: Scope, today: str) -> list[str]:
    """Comment lines: date, scope and grid, the runs with their scores, the rule."""
    key, grid = cell.key, ", ".join(map(lr_text, cell.lrs))
    comments = [
        f"{today}",
        f"from data={scope.data} protocol={scope.protocol}, setting {key['variant']} ({key['total_steps']:,} steps)",
        f"among {grid}: {score_text(cell)}, mean of {plural(len(cell.runs), 'seed')}",
        *(f"from {run.primary(cell.held_out):.2f}  {run.path}" for run in cell.runs),
        *textwrap.wrap(f"by the {RULE[0].lower()}{RULE[1:]}", 100),
    ]
    return [f"{MARK} {clean(line)}" for line in comments]


def lr_line(path: Path, lines: Sequence[str]) -> int:
    """The one line ``lr:`` of the section ``optim``.

    Raises:
        InputError: there is none, or several: someone wrote the file otherwise than this program does.
    """
    section, numbers = "", []
    for number, line in enumerate(lines):
        if line and not line[0].isspace() and not line.startswith("#"):
            section = line.split("#")[0].strip()
        elif section == "optim:" and LR_LINE.match(line):
            numbers.append(number)
    try:
        if len(numbers) != 1:
            raise ValueError
        float(lines[numbers[0]].split()[1])
    except ValueError:
        raise InputError(f"{path} has not one line '  lr: NUMBER' below 'optim:': edited by hand, left alone") from None
    return numbers[0]


def yaml_number(lr: float) -> str:
    """5.0e-4: with the point, without which YAML 1.1 reads a text."""
    mantissa, _, exponent = lr_text(lr).partition("e")
    return (
        f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent.startswith('-') else '+' + exponent}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", nargs="?", metavar="TABLE", help="default: all tables")
    parser.add_argument("--write", action="store_true", help="keep the choices in conf/tuned/lr")
    add_partial(parser)


def make(request: Request) -> tuple[str, list[str]]:
    """The learning rate of each cell; with ``--write`` those that were chosen among several are kept.

    Raises:
        PartlyDone: a file cannot be written, or was written by hand; the other files are written.
    """
    args, specs = request.args, request.specs
    if args.table is not None and args.table not in specs:
        raise one_of("table", args.table, list(specs))
    if args.write and args.protocol != "paper":
        raise InputError("--write: conf/tuned/lr is for protocol=paper; the released settings are in conf/script")
    records, refused = request.read
    wish = Scope("", "", args.protocol, include_partial=args.include_partial, results=request.results)

    def chosen(records: Sequence[Record]) -> list[Table]:
        wanted = [specs[args.table]] if args.table else list(specs.values())
        scopes = [(spec, choose_scope(spec, records, args.backbone, args.data, wish)) for spec in wanted]
        return [compile_table(spec, records, scope) for spec, scope in scopes]

    tables, faulty = without_faulty(chosen, records)
    text = "\n".join(map(render_choices, tables))
    if args.write:
        problems: list[str] = []
        text += "".join(f"{clean(line)}\n" for table in tables for line in keep_all(table, problems))
        if problems:
            raise PartlyDone("; ".join(problems), text)
    return text, [*refused, *(line for table in tables for line in table.refused), *faulty]


def keep_all(table: Table, problems: list[str]) -> list[str]:
    """Writes each choice of a table; a line for each. ``problems`` gets one for each file that cannot be written."""
    lines = []
    folder = catalog.resource("conf") / "tuned" / "lr"
    for cell in choices(table):
        name = cell_name(cell.key)
        if cell.key["method"] == "lora_rank_pattern":  # its budget is another run's, and no word of the command line
            lines.append(f"not written: {name}: type optim.lr={lr_text(cell.lr)} beside its ranks")
            continue
        if len(cell.lrs) < 2 or not (cell.fixed_size or cell.key["budget"] in catalog.choices_of("budget")):
            lines.append(f"not written: {name}: {tried_text(cell)}, or no budget of conf/budget")
            continue
        try:
            lines.append(keep(cell, table.scope, folder, time.strftime("%Y-%m-%d")) or f"unchanged: {name}")
        except InputError as error:
            problems.append(str(error))
    return lines


REPORT = Report("choose", "the learning rate of each cell", add_arguments, make, writes=False)
