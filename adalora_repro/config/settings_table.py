"""All settings with their meanings: a page of Markdown (docs/settings.md), and text for ``adalora-run --help``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adalora_repro import methods
from adalora_repro.config.schema import Config
from adalora_repro.methods.base import BaseOptions
from adalora_repro.settings import Row, rows

HEAD = """\
# Settings

Every setting of `adalora-run`, written `name=value` on its command line. This page is made by `adalora-run settings`.

Defaults are those of the code; the files of `conf/` for the chosen task, method and backbone set many others, and
`dry_run=true` prints the values of a run and where each comes from.

*Identity* says whether another value makes another run, with a folder of its own. `no`: it changes where, how fast or
how observed a run is, not its result. `unless X`: at X the setting is left out, so that runs from before it existed
keep their folders.
"""
METHOD_HEAD = """\
## Options of the methods

Beside those of the group method above, each method has the options of its module (`module` in its file of
`conf/method/`). Those without a default are set by the budget or by `conf/tuned/`.
"""
TITLES = ("Setting", "Default", "Meaning", "Identity", "Range")


def markdown() -> str:
    """The page: settings by group, then the options of every method."""
    modules: dict[Row, list[str]] = {}
    for name in methods.modules():
        for row in rows(vars(methods.module_of(name))["Options"], "method."):
            modules.setdefault(row, []).append(name)
    common, by_budget = set(rows(BaseOptions, "method.")), f"method.{methods.BY_BUDGET}"
    options = {row: names for row, names in modules.items() if row not in common and row.name != by_budget}
    groups: dict[str, list[Row]] = {}
    for row in rows(Config):
        if row in options:
            continue
        group = row.name.partition(".")[0] if "." in row.name else "run"
        groups.setdefault(group, []).append(row)
    lines = [HEAD]
    for group, members in groups.items():
        lines += [f"## {group}", "", *_table(members)]
    lines += [METHOD_HEAD, *_table([(*row, " ".join(names)) for row, names in options.items()], (*TITLES, "Modules"))]
    return "\n".join(lines).rstrip()


def help_text() -> str:
    """One line a setting."""
    return "\n".join(f"  {row.name:<28}  {row.meaning}" for row in rows(Config) if row.meaning)


def _table(members: Iterable[tuple[str, ...]], titles: Sequence[str] = TITLES) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in members]
    lines = [[f"`{name}`", f"`{default}`" if default else "", *rest] for name, default, *rest in cells]
    return [_line(titles), _line("---" for _ in titles), *map(_line, lines), ""]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
