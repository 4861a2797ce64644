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
from dataclasses import dataclass
from pathlib import Path

from adalora_repro.config import catalog
from adalora_repro.config.words import lr_text, word
from adalora_repro.errors import InputError, clean, one_line, one_of
from adalora_repro.records.run_record import write_atomic
from adalora_repro.records.selection import RULE, Run, at_edge, primary_mean
from adalora_repro.reports.cells import Cell, Row, Table, choose_scope, compile_table
from adalora_repro.reports.faults import without_faulty
from adalora_repro.reports.notes import optimism
from adalora_repro.reports.spec import PartlyDone, Record, Report, Request, Scope, add_partial
from adalora_repro.reports.text import plural

EDGE = "edge of its grid: widen it"
MARK = "  # chosen"  # begins the comment lines that a later choice replaces
LR_LINE = re.compile(r"^  lr: (\S+)(?:\s+#.*)?$")


@dataclass(frozen=True)
class Choice:
    """A cell with finished runs and the learning rate that the table shows."""

    task: str
    row: Row
    cell: Cell

    @property
    def name(self) -> str:
        return f"{self.task} {self.row.method}{'' if self.row.fixed_size else f' {self.row.budget}'}"

    @property
    def lr(self) -> float:
        return float(self.cell.runs[0].key["lr"])

    @property
    def edge(self) -> bool:
        return at_edge(self.lr, self.cell.lrs)

    @property
    def score(self) -> str:
        """The mean by which the learning rate was chosen: metric, value, and the split if it is the held-out one."""
        split = " on the held-out split" * self.cell.held_out
        mean = primary_mean(self.cell.runs, self.cell.held_out)
        return f"{self.cell.runs[0].record.primary_metric} {mean:.2f}{split}"

    def score_of(self, run: Run) -> float:
        return run.primary(self.cell.held_out)

    @property
    def tried(self) -> str:
        grid = self.cell.lrs
        return (
            f"{len(grid)} tried, {lr_text(grid[0])} to {lr_text(grid[-1])}" if len(grid) > 1 else "the only one tried"
        )

    def file(self, scope: Scope) -> str:
        budget = "" if self.row.fixed_size else f"_{self.row.budget}"
        return f"{self.task}_{self.row.method}{budget}_{scope.backbone}.yaml"


def choices(table: Table) -> list[Choice]:
    """Each cell once, also where several columns are of one task."""
    cells = {
        (row.name, column.task): Choice(column.task, row, cell) for row, column, cell in table.cells() if cell.runs
    }
    return list(cells.values())


def render_choices(table: Table) -> str:
    """Each choice with its runs; at the end the rule, and where it is optimistic."""
    scope = table.scope
    lines = [
        f"{table.spec.title}. Backbone {scope.backbone}; data {scope.data}; protocol {scope.protocol}",
        *scope.remarks,
    ]
    cells = choices(table)
    for choice in cells:
        seeds = plural(len(choice.cell.runs), "seed")
        flag = f"; {EDGE}" if choice.edge else ""
        lines.append(f"{choice.name}: lr {lr_text(choice.lr)}, {choice.score}, {seeds}; {choice.tried}{flag}")
        for run in choice.cell.runs:
            flag = "  degenerate" * run.record.degenerate
            lines.append(f"  {choice.score_of(run):.2f}  seed {run.key['seed']}  {run.path}{flag}")
    lines += optimism(choice.cell for choice in cells)
    lines.append(RULE if cells else "no cell has a finished run")
    return "\n".join(map(clean, lines)) + "\n"


def keep(choice: Choice, scope: Scope, folder: Path, today: str) -> str | None:
    """Writes the choice to ``folder``; returns one line about it, None where the file says the same already.

    Raises:
        InputError: the file that is there has no line to put the learning rate in.
    """
    path = folder / choice.file(scope)
    try:
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else header(choice, scope)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--write: cannot read '{path}': {one_line(error)}; left alone") from None
    line = lr_line(path, old) if path.exists() else len(old)
    before = LR_LINE.match(old[line]) if path.exists() else None
    first = line
    while first and old[first - 1].startswith(MARK):
        first -= 1
    origin = reasons(choice, scope, today)
    if before is not None and float(before[1]) == choice.lr and old[first + 1 : line] == origin[1:]:
        return None
    was = f"; before: {before[1]}" if before is not None else ""
    edge = f"; {EDGE}" if choice.edge else ""
    new = [*old[:first], *origin, f"  lr: {yaml_number(choice.lr)}  # chosen {today}{edge}{was}", *old[line + 1 :]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, ("\n".join(new) + "\n").encode())
    except OSError as error:
        raise InputError(f"--write: cannot write '{path}': {error.strerror}") from None
    return f"wrote {path}: optim.lr {lr_text(choice.lr)}{was}"


def header(choice: Choice, scope: Scope) -> list[str]:
    words = [word("task", choice.task), word("method", choice.row.method)]
    words += [] if choice.row.fixed_size else [word("budget", choice.row.budget)]
    command = " ".join(["adalora-run", *words, word("backbone", scope.backbone)])
    return [
        "# @package _global_",
        f"# The learning rate of {choice.name} on {scope.backbone} from our own runs; nothing else is set here.",
        f"# Command: {command}",
        "optim:",
    ]


def reasons(choice: Choice, scope: Scope, today: str) -> list[str]:
    """Comment lines: date, scope and grid, the runs with their scores, the rule."""
    runs = choice.cell.runs
    key = runs[0].key
    grid = ", ".join(map(lr_text, choice.cell.lrs))
    comments = [
        f"{today}",
        f"from data={scope.data} protocol={scope.protocol}, setting {key['variant']} ({key['total_steps']:,} steps)",
        f"among {grid}: {choice.score}, mean of {plural(len(runs), 'seed')}",
        *(f"from {choice.score_of(run):.2f}  {run.path}" for run in runs),
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
    for choice in choices(table):
        if choice.row.method == "lora_rank_pattern":  # its budget is another run's, and no word of the command line
            lines.append(f"not written: {choice.name}: type optim.lr={lr_text(choice.lr)} beside its ranks")
            continue
        if len(choice.cell.lrs) < 2 or not (choice.row.fixed_size or choice.row.budget in catalog.budgets()):
            lines.append(f"not written: {choice.name}: {choice.tried}, or no budget of conf/budget")
            continue
        try:
            folder = catalog.resource("conf") / "tuned" / "lr"
            lines.append(keep(choice, table.scope, folder, time.strftime("%Y-%m-%d")) or f"unchanged: {choice.name}")
        except InputError as error:
            problems.append(str(error))
    return lines


REPORT = Report("choose", "the learning rate of each cell", add_arguments, make, writes=False)
