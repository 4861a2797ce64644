"""All settings with their meanings: a page of Markdown (docs/settings.md), and text for ``adalora-run --help``."""

from __future__ import annotations

from collections.abc import Iterable

from adalora_repro import methods
from adalora_repro.config.schema import Config
from adalora_repro.methods.base import BaseOptions
from adalora_repro.settings import Row, rows

HEAD = """\
# Settings

Every setting of `adalora-run`, written `name=value` on its command line. This page is made by `adalora-run settings`.

*Identity* says whether another value makes another run, with a folder of its own. `no`: it changes where, how fast or
how observed a run is, not its result. `unless X`: at X the setting is left out, so that runs from before it existed
keep their folders.
"""
METHOD_HEAD = """\
## Options of the methods

Options of `method.…`, by module. Defaults are those of the code; the files of `conf/method/`, the budget and
`conf/tuned/` set others and those left empty here. The options that every method has are above, in the group method; a
method without a table has no others.
"""


def markdown() -> str:
    """The page: settings by group, then the options of every method."""
    groups: dict[str, list[Row]] = {}
    for row in rows(Config):
        group = row.name.partition(".")[0] if "." in row.name else "run"
        groups.setdefault(group, []).append(row)
    lines = [HEAD]
    for group, members in groups.items():
        lines += [f"## {group}", "", *_table(members)]
    lines.append(METHOD_HEAD)
    common, by_budget = list(rows(BaseOptions, "method.")), f"method.{methods.BY_BUDGET}"
    for name in methods.modules():
        options = vars(methods.module_of(name))["Options"]
        own = [row for row in rows(options, "method.") if row not in common and row.name != by_budget]
        if own:
            lines += [f"### {name}", "", *_table(own)]
    return "\n".join(lines).rstrip()


def help_text() -> str:
    """One line a setting."""
    return "\n".join(f"  {row.name:<28}  {row.meaning}" for row in rows(Config) if row.meaning)


def _table(members: list[Row]) -> list[str]:
    titles = ("Setting", "Default", "Meaning", "Identity", "Range")
    cells = [[cell.replace("|", "\\|") for cell in row] for row in members]
    lines = [[f"`{name}`", f"`{default}`" if default else "", *rest] for name, default, *rest in cells]
    return [_line(titles), _line(["---"] * len(titles)), *map(_line, lines), ""]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
