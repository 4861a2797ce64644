"""adalora-report: records below results/ -> the paper's tables with our numbers in them, and what is still missing.

Reads only ``metrics.json`` files, imports neither torch nor Hydra, and starts at once. A table is a module of
``reports/`` with a ``SPEC``, another report one with a ``REPORT``: each becomes a subcommand by being there.

Exit codes: 0 printed (files refused are named on stderr), 2 wrong input, 1 a bug in the program (one line on stderr
each).
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from adalora_repro import __version__, reports
from adalora_repro.cli import slurm
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError, one_of
from adalora_repro.records import run_record
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports.base import (
    CHECKPOINTS,
    DATA_SOURCES,
    PROTOCOLS,
    Report,
    Request,
    Scope,
    Spec,
    Table,
    add_partial,
    choose_scope,
    compile_table,
    lr_text,
    sort_in,
)
from adalora_repro.reports.choose import choices, keep, render_choices
from adalora_repro.reports.defence import fault, without_faulty
from adalora_repro.reports.marks import with_marks
from adalora_repro.reports.out import add_format, add_out, checked, form_of, write
from adalora_repro.reports.render import FORMATS, render
from adalora_repro.reports.status import render_status
from adalora_repro.terminal import clean, guarded, raw, tolerate_any_locale

EXAMPLES = """\
examples:
  adalora-report table1                                   the paper's backbone, the records of ./results
  adalora-report table2                                   SQuAD 1.1 and 2.0
  adalora-report table3 --data local                      XSum and CNN/DailyMail, data of a local folder
  adalora-report table4                                   ablations: table4, table5, table14, and controls
  adalora-report table1 --backbone minilm --data local    another backbone, files of a local folder
  adalora-report table1 --only-filled                     only rows and columns that have records
  adalora-report table1 --out table1.tex                  also .csv, .html, .md; --overwrite replaces a file
  adalora-report table1 --select best                     best evaluation at the final budget, not the last step
  adalora-report table15                                  time and memory of training steps, AdaLoRA's over LoRA's
  adalora-report html                                     results/report.html: all of it, to look at
  adalora-report figure2 --out figure2.svg                also .png, .pdf, .csv; without --out in the terminal
  adalora-report status                                   done, running, queued, failed, missing
  adalora-report status --watch                           the same, again every 10 seconds until Ctrl-C
  adalora-report choose table1                            the learning rate of each cell, and the runs it came from
  adalora-report choose table1 --write                    keep them in conf/tuned/lr, where adalora-run reads them
  adalora-report compare RUN_A RUN_B                      two runs of one task, example by example
  adalora-report check-paper                              which of the paper's figures are possible as means of counts
"""


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def discover() -> dict[str, Spec]:
    """Tables by name: the modules of ``reports/`` that have a ``SPEC``."""
    return {module.SPEC.name: module.SPEC for module in modules_with("SPEC")}


def discover_reports() -> dict[str, Report]:
    """The other reports by name: the modules that have a ``REPORT``."""
    return {module.REPORT.name: module.REPORT for module in modules_with("REPORT")}


def modules_with(attribute: str) -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(reports.__path__, f"{reports.__name__}.")]
    names.sort(key=lambda name: (len(name.rpartition(".")[2]), name.rpartition(".")[2]))  # table2 before table14
    modules = [importlib.import_module(name) for name in names]
    return [module for module in modules if hasattr(module, attribute)]


def parser_of(specs: dict[str, Spec], reports: dict[str, Report]) -> Parser:
    parser = Parser(
        prog="adalora-report",
        description="Compile the paper's tables from the records of adalora-run, ours beside the paper's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"adalora-report {__version__}")
    commands = parser.add_subparsers(dest="report", metavar="REPORT", title="reports")
    for spec in specs.values():
        table = commands.add_parser(spec.name, help=spec.title, description=spec.title, allow_abbrev=False)
        add_scope(table)
        table.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")
        add_format(table, FORMATS)
        add_partial(table)
        table.add_argument("--only-filled", action="store_true", help="leave out rows and columns without a record")
        add_out(table)
    for other in reports.values():
        command = commands.add_parser(other.name, help=other.title, description=other.title, allow_abbrev=False)
        other.add_arguments(command)
        if other.reads == "scope":
            add_scope(command)
        elif other.reads == "results":
            add_results(command)
        add_out(command)
    status = commands.add_parser("status", help="what is done, running, failed, missing", allow_abbrev=False)
    add_scope(status)
    add_partial(status)
    status.add_argument(
        "--watch", nargs="?", type=seconds, const=10.0, metavar="SECONDS", help="again and again, Ctrl-C ends it"
    )
    choose = commands.add_parser("choose", help="the learning rate of each cell", allow_abbrev=False)
    choose.add_argument("table", nargs="?", choices=list(specs), metavar="TABLE", help=f"{', '.join(specs)} or all")
    add_scope(choose)
    add_partial(choose)
    choose.add_argument("--write", action="store_true", help="keep the choices in conf/tuned/lr")
    return parser


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value


def add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="NAME", help="default: the paper's, or the only one with records")
    parser.add_argument("--data", choices=DATA_SOURCES, help="default: the first of these with records; never mixed")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="default: %(default)s")
    add_results(parser)


def add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", metavar="DIR", help="folder with runs/ in it (default: results)")


@guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    tolerate_any_locale()
    try:
        return report(argv)
    except InputError as error:
        print(f"adalora-report: error: {clean(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:  # no single record is to blame, see ``without_faulty``
        print(f"adalora-report: failed: {fault(error)}; this is a bug in the program", file=sys.stderr)
        return EXIT_FAILED


def report(argv: Sequence[str] | None) -> int:
    specs, reports = discover(), discover_reports()
    args = parser_of(specs, reports).parse_args(argv)
    if args.report is None:
        valid = [*specs, *reports, "status", "choose"]
        raise InputError(f"say which report; valid: {', '.join(valid)} (--help shows examples)")
    results = results_folder(getattr(args, "results", None))
    if args.report == "status" and args.watch is not None:
        return watch(lambda: status_text(args, specs, results), args.watch)
    text: str | bytes
    if args.report in reports:
        request = Request(args, specs, results, reports)
        if reports[args.report].reads == "scope" and args.backbone is not None:
            known_backbone(args.backbone, request.found[0], specs)
        out = reports[args.report].place(request)
        text, refused = made(reports[args.report], request)
    elif args.report == "status":
        text, refused = status_text(args, specs, results)
        out = None
    elif args.report == "choose":
        return choose(args, specs, results)
    else:
        form, out = form_of(args.format, args.out, FORMATS), checked(args)
        found, refused = run_record.read_all(results)

        def table_text(found: Sequence[Record]) -> tuple[str, tuple[str, ...]]:
            (table,) = compiled(args, [specs[args.report]], specs, results, found, args.select)
            return render(with_marks(table), form, args.only_filled), table.refused

        (text, unusable), faulty = without_faulty(table_text, found)
        refused += [*unusable, *faulty]
    warn(refused)
    deliver(text, out)
    return EXIT_OK


Specs = dict[str, Spec]
Record = tuple[Path, RunRecord]


def made(report: Report, request: Request) -> tuple[str | bytes, list[str]]:
    """A report and its refused files; a record that makes it fail is left out."""
    try:
        return report.make(request)
    except InputError:
        raise
    except Exception:
        if report.reads == "nothing":
            raise
        (text, refused), faulty = without_faulty(lambda found: report.make(request.of(found)), request.found[0])
        return text, refused + faulty


def compiled(
    args: argparse.Namespace,
    wanted: Sequence[Spec],
    specs: Specs,
    results: Path,
    found: Sequence[Record],
    select: str = "final",
) -> list[Table]:
    known_backbone(args.backbone, found, specs)
    wish = Scope("", "", args.protocol, select, args.include_partial, results)
    return [compile_table(spec, found, choose_scope(spec, found, args.backbone, args.data, wish)) for spec in wanted]


def status_text(args: argparse.Namespace, specs: Specs, results: Path) -> tuple[str, list[str]]:
    found, refused = run_record.read_all(results)
    waiting, more = slurm.queued(results, [path for path, _ in found])
    found, refused = found + waiting, refused + more
    known_backbone(args.backbone, found, specs)
    wish = Scope("", "", args.protocol, include_partial=args.include_partial, results=results)

    def text(found: Sequence[Record]) -> tuple[str, list[str]]:
        scopes = [(spec, choose_scope(spec, found, args.backbone, args.data, wish)) for spec in specs.values()]
        unusable = [line for spec, scope in scopes for line in sort_in(spec, found, scope)[2]]
        return render_status(scopes, found), list(dict.fromkeys(unusable))

    (shown, unusable), faulty = without_faulty(text, found)
    return shown, refused + unusable + faulty


def watch(look: Callable[[], tuple[str, list[str]]], every: float) -> int:
    """Redraws the terminal's second screen until Ctrl-C, the way to end it: what was seen last then stays.

    Raises:
        InputError: the output is no terminal.
    """
    if not sys.stdout.isatty():
        raise InputError("--watch redraws a terminal, and this output is none")
    text = ""
    screen = raw(sys.stdout)  # this moves the cursor on purpose; the text itself is clean
    # what a script starts in the background would ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        screen.write("\x1b[?1049h")
        while True:
            shown, refused = look()
            text = shown + "".join(f"adalora-report: skipped: {clean(line)}\n" for line in refused)
            screen.write(f"\x1b[H\x1b[2J{text}{time.strftime('%H:%M:%S')}, every {every:g} s; Ctrl-C ends it\n")
            screen.flush()
            time.sleep(every)
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        signal.signal(signal.SIGINT, before)
        screen.write(f"\x1b[?1049l{text}")
        screen.flush()


def choose(args: argparse.Namespace, specs: Specs, results: Path) -> int:
    """Prints the learning rate of each cell; with ``--write`` keeps those that were chosen among several.

    Raises:
        InputError: there is nowhere to write, or what is there was written by hand; other files are written.
    """
    if args.write and args.protocol != "paper":
        raise InputError("--write: conf/tuned/lr is for protocol=paper; the released settings are in conf/script")
    wanted = [specs[args.table]] if args.table else list(specs.values())
    found, refused = run_record.read_all(results)

    def chosen(found: Sequence[Record]) -> tuple[list[Table], str]:
        built = compiled(args, wanted, specs, results, found)
        return built, "\n".join(map(render_choices, built))

    (built, text), faulty = without_faulty(chosen, found)
    warn([*refused, *(line for table in built for line in table.refused), *faulty])
    deliver(text, None)
    problems = []
    for table in built if args.write else ():
        for choice in choices(table):
            if choice.row.method == "lora_rank_pattern":  # its budget is another run's, and no word of the command line
                print(f"not written: {clean(choice.name)}: type optim.lr={lr_text(choice.lr)} beside its ranks")
                continue
            if len(choice.cell.lrs) < 2 or not (choice.row.fixed_size or choice.row.budget in budgets()):
                print(f"not written: {clean(choice.name)}: {choice.tried}, or no budget of conf/budget")
                continue
            try:
                line = keep(choice, table.scope, conf_folder() / "tuned" / "lr", time.strftime("%Y-%m-%d"))
            except InputError as error:
                problems.append(str(error))
            else:
                print(clean(line or f"unchanged: {choice.name}"))
    if problems:
        raise InputError("; ".join(problems))
    return EXIT_OK


def conf_folder() -> Path:
    from adalora_repro.config.catalog import resource  # imports OmegaConf: only here

    return resource("conf")


def budgets() -> set[str]:
    return {path.stem for path in (conf_folder() / "budget").glob("*.yaml")}


def warn(refused: Sequence[str]) -> None:
    for line in dict.fromkeys(refused):
        print(f"adalora-report: skipped: {clean(line)}", file=sys.stderr)


def results_folder(name: str | None) -> Path:
    """The folder asked for, which must hold what runs leave: a misspelt one must not look like an empty table.

    The default one, named or not, need not be there yet: then the paper speaks alone.

    Raises:
        InputError: there is no such folder, or it is none of results.
    """
    results = Path("results" if name is None else name)
    if results != Path("results"):
        if not results.is_dir():
            raise InputError(f"--results: no folder '{name}'")
        if not any((results / part).is_dir() for part in ("runs", "cost", "sweeps")):
            raise InputError(f"--results: '{name}' holds no runs/, cost/ or sweeps/: name the results.dir of the runs")
    return results


def known_backbone(name: str | None, found: Sequence[tuple[Path, RunRecord]], specs: Specs) -> None:
    """A backbone is known when it has records or a configuration: a misspelt one must not look like an empty table."""
    if name is None or name in {record.key["backbone"] for _, record in found}:
        return
    configured = {path.stem for path in (conf_folder() / "backbone").glob("*.yaml")}
    choices = configured | {record.key["backbone"] for _, record in found} | {spec.backbone for spec in specs.values()}
    if name not in choices:
        raise one_of("backbone", name, sorted(choices))


def deliver(text: str | bytes, out: str | None) -> None:
    """To the terminal or to a file.

    Raises:
        InputError: the file cannot be written, or there is none for what is no text.
    """
    if out is None and isinstance(text, bytes):
        raise InputError("--out FILE is needed: this is no text for a terminal")
    if out is None:
        sys.stdout.write(str(text))
        sys.stdout.flush()
        return
    write(text, out)
    print(f"wrote {clean(out)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
