"""adalora-report: records below results/ -> the paper's tables with our numbers in them, and what is still missing.

Reads only records, imports neither torch nor Hydra, and pandas only for what it prints. A table is a module of
``reports/`` with a ``SPEC``, another report one with a ``REPORT``: each becomes a subcommand by being there.

Exit codes: 0 printed (refused files are named on stderr), 2 wrong input (one line on stderr), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora_repro import __version__, reports
from adalora_repro.cli.arguments import Parser, add_config_dir, completed, exit_code, use_config_dir
from adalora_repro.config import catalog
from adalora_repro.errors import EXIT_OK, InputError, clean, one_of
from adalora_repro.records import cost_record
from adalora_repro.reports.cells import compile_scoped
from adalora_repro.reports.output import add_format, add_out, form_of, write
from adalora_repro.reports.render import FORMATS, PAPER, paper_style, render
from adalora_repro.reports.significance import with_marks
from adalora_repro.reports.spec import CHECKPOINTS, DATA_SOURCES, PROTOCOLS, Report, Request, Spec, add_partial

EXAMPLES = """\
examples:
  adalora-report status                                   what is done, running, queued, failed, missing
  adalora-report table1 --notes                           with every note and every command
  adalora-report table1 --backbone minilm --data local    another backbone, files of a local folder
  adalora-report table1 --only-filled                     only rows and columns that have records
  adalora-report table1 --out table1.tex                  also .csv, .html, .md; --overwrite replaces a file
  adalora-report table1 --style paper --out table1.tex    LaTeX in the paper's own layout
  adalora-report figure2 --out figure2.svg                also .png, .pdf, .csv; without --out in the terminal
  adalora-report choose table1 --write                    learning rates, kept where adalora-run reads them
  adalora-report compare RUN_A RUN_B                      two runs of one task, example by example
  adalora-report html                                     results/report.html: all of it, to look at
"""


def discover() -> dict[str, Spec]:
    """Tables by name: the modules of ``reports/`` that have a ``SPEC``."""
    return {spec.name: spec for spec in declared("SPEC")}


def discover_reports() -> dict[str, Report]:
    """The other reports by name: the modules that have a ``REPORT``."""
    return {report.name: report for report in declared("REPORT")}


def declared(attribute: str) -> list[Any]:
    names = [module.name for module in pkgutil.walk_packages(reports.__path__, f"{reports.__name__}.")]
    modules = map(importlib.import_module, names)
    return sorted((getattr(module, attribute) for module in modules if hasattr(module, attribute)), key=order)


def order(report: Spec | Report) -> tuple[int, int, str]:
    """The paper's tables by number, its figures by number, then the others by name."""
    for i, kind in enumerate(("table", "figure")):
        if (number := report.name.removeprefix(kind)).isdigit():
            return i, int(number), ""
    return 2, 0, report.name


def table_report(spec: Spec) -> Report:
    """The report of a table."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")
        add_format(parser, FORMATS)
        parser.add_argument("--style", choices=["notes", PAPER], default="notes", help="paper: LaTeX in its own layout")
        add_partial(parser)
        parser.add_argument("--only-filled", action="store_true", help="leave out rows and columns without a record")
        parser.add_argument("--notes", action="store_true", help="print all notes and commands in text output too")

    def make(request: Request) -> str:
        args = request.args
        default = "latex" if args.style == PAPER and args.out is None else None
        form = form_of(args.format or default, args.out, FORMATS)
        if args.style == PAPER and form != "latex":
            raise InputError(f"--style {PAPER} is for LaTeX: --format latex, or --out FILE.tex")
        table = with_marks(compile_scoped(request, spec))
        return paper_style(table) if args.style == PAPER else render(table, form, args.only_filled, args.notes)

    return Report(spec.name, spec.title, add_arguments, make)


def every_report() -> dict[str, Report]:
    """Tables and the other reports, by name."""
    every = [*map(table_report, discover().values()), *discover_reports().values()]
    return {report.name: report for report in sorted(every, key=order)}


def parser_of(reports: dict[str, Report]) -> Parser:
    parser = Parser(
        prog="adalora-report",
        description="Compile the paper's tables from adalora-run's records, with our numbers beside the paper's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"adalora-report {__version__}")
    commands = parser.add_subparsers(dest="report", metavar="REPORT", title="reports")
    for report in reports.values():
        title = report.title.replace("%", "%%")
        command = commands.add_parser(report.name, help=title, description=title, allow_abbrev=False)
        report.add_arguments(command)
        if report.reads == "scope":
            command.add_argument("--backbone", metavar="NAME", help="default: the paper's, or the one with most runs")
            command.add_argument("--data", choices=DATA_SOURCES, help="default: the first of these with records")
            command.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="default: %(default)s")
        if report.reads != "nothing":
            command.add_argument("--results", metavar="DIR", help="folder with runs/ in it (default: results)")
            add_config_dir(command)
        if report.writes:
            add_out(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return exit_code("adalora-report", lambda: report(sys.argv[1:] if argv is None else argv))


def report(argv: Sequence[str]) -> int:
    every = every_report()
    if argv and not argv[0].startswith("-") and argv[0] not in every:
        raise one_of("report", argv[0], every)
    args = completed(parser_of(every)).parse_args(argv)
    if args.report is None:
        raise InputError(f"choose a report; valid: {', '.join(every)} (--help shows examples)")
    use_config_dir(getattr(args, "config_dir", None))
    chosen = every[args.report]
    results = results_folder(getattr(args, "results", None))
    request = Request(args, discover(), results, discover_reports())
    if chosen.reads in ("scope", "results") and getattr(args, "backbone", None) is not None:
        check_backbone(args.backbone, request)
    content = chosen.make(request)
    for line in dict.fromkeys(request.refused):
        print(f"adalora-report: skipped: {clean(line)}", file=sys.stderr)
    out = (args.out or (results / chosen.file if chosen.file else None)) if chosen.writes else None
    if out is not None:
        write(content, out, args.overwrite)
        print(f"wrote {clean(str(out))}", file=sys.stderr)
    elif isinstance(content, bytes):
        raise InputError("--out FILE is needed: this format is binary")
    else:
        sys.stdout.write(content)
        sys.stdout.flush()
    return EXIT_OK


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


def check_backbone(name: str, request: Request) -> None:
    """Raises InputError for a backbone without records or configuration: that must not look like an empty table."""
    keys = [record.key for _, record in request.records]
    keys += [record.key for _, record in cost_record.read_all(request.results)[0]]
    names = {key["backbone"] for key in keys} | set(catalog.choices_of("backbone"))
    if name not in names:
        raise one_of("backbone", name, sorted(names))


if __name__ == "__main__":
    sys.exit(main())
