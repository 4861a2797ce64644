"""The learning rate of each cell, by the rule of the tables: where it came from, and a file that keeps it.

A file of conf/tuned/lr holds one learning rate, for one backbone and (unless the method has one size) one budget; it is
loaded after the pair's recipe, conf/tuned/<task>_<method>.yaml, which stays as it is.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from adalora_repro.config import catalog
from adalora_repro.config.words import lr_text, word
from adalora_repro.errors import InputError, clean, one_of
from adalora_repro.records.run_record import write_atomic
from adalora_repro.records.selection import RULE, primary_mean
from adalora_repro.reports.cells import Cell, Table, compile_scoped
from adalora_repro.reports.notes import optimism_of
from adalora_repro.reports.spec import Report, Request, Scope, add_partial
from adalora_repro.reports.text import cell_name, plural, wrapped

EDGE = "edge of its grid: widen it"
WRITTEN = "# Written by adalora-report choose --write, which replaces a file with this line at its head."
HEAD = f"# @package _global_\n{WRITTEN}\n"


def choices(table: Table) -> list[Cell]:
    """The cells with finished runs, each once, also where several columns are of one task."""
    return list({(row.method, row.budget, column.task): cell for row, column, cell in table.filled()}.values())


def score_text(cell: Cell) -> str:
    """The mean by which the learning rate was chosen: metric, value, and the split if it is the held-out one."""
    split = " on the held-out split" * cell.held_out
    return f"{cell.runs[0].record.primary_metric} {primary_mean(cell.runs, cell.held_out):.2f}{split}"


def choice_text(cell: Cell) -> str:
    flag = f"; {EDGE}" if cell.edge else ""
    seeds = plural(len(cell.runs), "seed")
    return f"{cell_name(cell.key)}: lr {lr_text(cell.lr)}, {score_text(cell)}, {seeds}; {cell.tried}{flag}"


def render_choices(table: Table) -> str:
    """Each choice with its runs; at the end the rule, and where it is optimistic."""
    lines = [line for text in table.head for line in wrapped(text)]
    cells = choices(table)
    for cell in cells:
        lines += ["", *wrapped(choice_text(cell), "  ")]
        for run in cell.runs:
            flag = "  degenerate" * run.record.degenerate
            lines.append(clean(f"  {run.primary(cell.held_out):.2f}  seed {run.key['seed']}  {run.path}{flag}"))
    lines += ["", *(line for sentence in optimism_of(table) for line in wrapped(sentence))] if cells else []
    lines += wrapped(RULE) if cells else ["no cell has a finished run"]
    return "\n".join(lines) + "\n"


def kept(cell: Cell, scope: Scope) -> str:
    """The file of a choice: the command it is for, where it comes from, the learning rate to its last digit."""
    from numpy import format_float_scientific

    key, grid = cell.key, ", ".join(map(lr_text, cell.lrs))
    names = ("task", "method", *(() if key["budget"] == key["method"] else ("budget",)))
    command = " ".join(["adalora-run", *(word(name, key[name]) for name in names), word("backbone", scope.backbone)])
    comments = [
        f"Command: {command}",
        f"From data={scope.data} protocol={scope.protocol}, setting {key['variant']} ({key['total_steps']:,} steps)",
        f"among {grid}: {score_text(cell)}, mean of {plural(len(cell.runs), 'seed')}",
        *(f"from {run.primary(cell.held_out):.2f}  {run.path}" for run in cell.runs),
        *textwrap.wrap(RULE, 100),
    ]
    lr = format_float_scientific(cell.lr, trim="0", exp_digits=1)  # 5.0e-4: without the point YAML 1.1 reads a text
    lines = [*(f"# {clean(line)}" for line in comments), "optim:"]
    return HEAD + "\n".join([*lines, f"  lr: {lr}  # chosen among {len(cell.lrs)}{f'; {EDGE}' * cell.edge}"]) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", nargs="?", metavar="TABLE", help="default: all tables")
    parser.add_argument("--write", action="store_true", help="keep the choices in conf/tuned/lr")
    add_partial(parser)


def make(request: Request) -> str:
    """The learning rate of each cell; with ``--write`` those that were chosen among several are kept.

    Raises:
        InputError: a file to write was not written by this program.
    """
    args, specs = request.args, request.specs
    if args.table is not None and args.table not in specs:
        raise one_of("table", args.table, list(specs))
    if args.write and args.protocol != "paper":
        raise InputError("--write: conf/tuned/lr is for protocol=paper; the released settings are in conf/script")
    wanted = [specs[args.table]] if args.table else list(specs.values())
    tables = [compile_scoped(request, spec) for spec in wanted]
    text = "\n".join(map(render_choices, tables))
    if args.write:
        text += "".join(f"{clean(line)}\n" for line in dict.fromkeys(write(tables)))
    return text


def write(tables: list[Table]) -> list[str]:
    """Writes each choice of several learning rates at a budget of conf/budget; a line for each choice.

    Raises:
        InputError: a file to write was not written by this program; then none is.
    """
    folder, budgets = catalog.resource("conf") / "tuned" / "lr", catalog.choices_of("budget")
    lines: list[str] = []
    contents: dict[Path, str] = {}
    for table in tables:
        for cell in choices(table):
            key = cell.key
            fixed_size = key["budget"] == key["method"]
            if len(cell.lrs) < 2 or not (fixed_size or key["budget"] in budgets):
                lines.append(f"not written: {cell_name(key)}: {cell.tried}, or no budget of conf/budget")
                continue
            budget = "" if fixed_size else f"_{key['budget']}"
            path = folder / f"{key['task']}_{key['method']}{budget}_{table.scope.backbone}.yaml"
            contents[path] = kept(cell, table.scope)
            lines.append(f"wrote {path}: optim.lr {lr_text(cell.lr)}")
    try:
        for path in contents:
            if path.exists() and not path.read_bytes().startswith(HEAD.encode()):
                raise InputError(f"--write: '{path}' was not written by choose --write: left alone, nothing is written")
        for path, content in contents.items():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content.encode())
    except OSError as error:
        raise InputError(f"--write: cannot write to '{folder}': {error.strerror}") from None
    return lines


REPORT = Report("choose", "The learning rate of each cell", add_arguments, make, writes=False)
