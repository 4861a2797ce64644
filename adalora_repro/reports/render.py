r"""A sheet -> text for a terminal, markdown, LaTeX, HTML; a table -> its sheet, its CSV, LaTeX in the paper's layout.

Names in records were written by whoever made the record: control characters go in every format, and each format's own
special characters lose their meaning. Text and markdown are tabulate's, LaTeX and HTML pandas' Styler's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import clean
from adalora_repro.reports.cells import AVERAGE, FIELDS, Cell, Row, Table
from adalora_repro.reports.notes import (
    CONSTANT,
    DEGENERATE,
    UNEQUAL,
    caption_of,
    commands_of,
    fill_title,
    marks_of,
    notes_of,
    warnings_of,
)
from adalora_repro.reports.significance import FULL_MARK, MARK
from adalora_repro.reports.spec import Spec
from adalora_repro.reports.text import NONE, aligned, extent, fixed, piped, signed, width, wrapped

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("text", "markdown", "latex", "csv", "html")
PAPER = "paper"  # the line below ours
SIZES = ("# Params", "share", "with head")  # of a method: trained, over the backbone's, with the task's head
FIGURES = "Figures: mean over seeds ± sample standard deviation (number of seeds)."


@dataclass(frozen=True)
class Sheet:
    """A table of texts with what belongs around it; the texts of ``frame`` are in the markup of their format already.

    Attributes:
        frame: one row a line; the first column names it.
        group: of each line; a rule separates groups.
        warnings: what a terminal shows even without ``--notes``; ``notes`` are all of them.
        names: how many first columns name a line; where a table in text is too wide, they are repeated below.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    group: Sequence[str] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    commands: Sequence[str] = ()
    names: int = 1


@dataclass(frozen=True)
class Markup:
    """How one format writes text, emphasis and marks."""

    escape: Callable[[str], str]
    bold: str = "{}"
    mark: str = "{}"
    dim: str = "{}"


# --- a table's sheet --------------------------------------------------------------------------------------------------


def render(table: Table, form: str, only_filled: bool = False, notes: bool = False) -> str:
    """The table in one of ``FORMATS``, ending with a line break; ``notes``: a terminal shows all of them too."""
    if form == "csv":
        figures = table.figures[FIELDS]
        return to_csv(figures[figures["mean"].notna()] if only_filled else figures)
    return render_sheet(sheet_of(table, form, only_filled), form, notes)


def sheet_of(table: Table, form: str, only_filled: bool = False, link: Callable[[Cell], str] | None = None) -> Sheet:
    """One line a method, and below it the paper's where its numbers are comparable.

    Rows and columns without a record of ours are left out with ``only_filled``, and beside runs that are not
    comparable with the paper's.

    Args:
        link: the address of what is behind the figures of a cell, in HTML.
    """
    import pandas as pd

    markup, spec, ours_shown = MARKUPS[form], table.spec, bool(table.runs)
    only_filled = only_filled or (ours_shown and not table.comparable)
    positions = shown_positions(table, only_filled)
    sizes = [i for i, shown in enumerate((True, spec.shares, form != "text")) if shown]  # of SIZES
    lines: list[list[str]] = []
    group: list[str] = []
    for row in table.rows:
        cells = [table.of(row, i) for i in positions]
        printed = any(figure.paper == figure.paper for cell in cells for figure in cell)
        printed = printed and (table.comparable or not ours_shown)
        if row.runs:
            share = extent(row.params("method", over="backbone"), ".3%")
            counts = [extent(row.params("method")), share, extent(row.params("total"))]
            texts = [ours(table, row, i, form, link) for i in positions]
            lines.append([*map(markup.escape, [row.name, *(counts[i] for i in sizes)]), *texts])
        elif not printed and not only_filled:
            lines.append([markup.escape(row.name), *[""] * len(sizes), *[NONE] * len(positions)])
        if printed and (row.runs or not only_filled):
            label = row.params_label or NONE
            counts = ["" if spec.shares else label, label, ""]
            name = f"  {PAPER}" if row.runs else f"{row.name} ({PAPER})" if ours_shown else row.name
            texts = [papers(cell, spec.decimals, form) for cell in cells]
            texts = [*map(markup.escape, [name, *(counts[i] for i in sizes)]), *texts]
            lines.append([markup.dim.format(text) if text else "" for text in texts])
        group += [row.budget] * (len(lines) - len(group))
    headings = ["Method", *(SIZES[i] for i in sizes), *(" ".join(heading(spec, i)) for i in positions)]
    frame = pd.DataFrame(lines, columns=list(map(markup.escape, headings)))
    commands = [] if only_filled and form != "text" else commands_of(table)
    notes, warnings = notes_of(table), [*warnings_of(table), *([FIGURES] if ours_shown else [])]
    return Sheet(spec.name, spec.title, caption_of(table), frame, group, notes, warnings, commands)


def shown_positions(table: Table, only_filled: bool) -> list[int]:
    """Numbers of the columns shown; the table's own mean where all of them are."""
    everything = range(len(table.spec.columns))
    positions = [i for i in everything if not only_filled or any(row.cells[i] for row in table.rows)]
    return [*positions, AVERAGE] if table.spec.average and len(positions) == len(everything) else positions


def heading(spec: Spec, position: int) -> tuple[str, str]:
    """Name and unit of a column."""
    column = None if position == AVERAGE else spec.columns[position]
    return (column.heading, column.unit) if column else ("All", "Ave.")


def ours(table: Table, row: Row, position: int, form: str, link: Callable[[Cell], str] | None) -> str:
    """ "70.12 ± 0.43 (5)", with two figures "90.30/90.45 ± 0.21/0.20 (5)"; with marks, and the best in bold."""
    cell = [figure for figure in table.of(row, position) if figure.mean == figure.mean]
    if not cell:
        return NONE
    markup, decimals, texts = MARKUPS[form], 1 if form == "text" else 2, []
    for figure in cell:
        text, marks = markup.escape(fixed(figure.mean, decimals)), escape_mark(marks_of(figure), form)
        texts.append((markup.bold.format(text) if figure.best else text) + (markup.mark.format(marks) if marks else ""))
    sds = [fixed(figure.sd, decimals) for figure in cell if figure.sd == figure.sd]
    spread = f" {markup.escape('±')} {'/'.join(sds)}" if sds else ""
    seeds = f" ({cell[0].n_seeds})" if cell[0].n_seeds else ""
    text = "/".join(texts) + spread + seeds + CONSTANT * bool(cell[0].degenerate_seeds)
    behind = row.cells[position] if position != AVERAGE else None
    return f'<a href="{escape_html(link(behind))}">{text}</a>' if link and behind else text


def escape_mark(marks: str, form: str) -> str:
    return "".join(LATEX_MARKS[mark] for mark in marks) if form == "latex" else MARKUPS[form].escape(marks)


def papers(cell: Sequence[Any], decimals: int, form: str) -> str:
    """ "68.71 (+1.29)": the paper's figures, and ours less the paper's."""
    if all(figure.paper != figure.paper for figure in cell):
        return ""
    decimals, of_difference = (1, 1) if form == "text" else (decimals, 2)
    text = "/".join(fixed(figure.paper, decimals) for figure in cell)
    if any(figure.difference == figure.difference for figure in cell):
        text += f" ({'/'.join(signed(figure.difference, of_difference) for figure in cell)})"
    return MARKUPS[form].escape(text)


def render_sheet(sheet: Sheet, form: str, notes: bool = False) -> str:
    """A sheet in one of ``FORMATS`` but CSV (``to_csv``), ending with a line break."""
    if form == "text":
        return to_text(sheet, notes)
    return {"markdown": to_markdown, "latex": to_latex, "html": to_html}[form](sheet)


# --- text for a terminal ----------------------------------------------------------------------------------------------


def to_text(sheet: Sheet, notes: bool = False) -> str:
    """At most ``WIDE`` columns wide; columns for which there is no room follow below."""
    parts = [wrapped(sheet.caption)]
    for names in bands(sheet, width()) if len(sheet.frame) else []:
        part = sheet.frame[names]
        parts.append(aligned([list(part.columns), *part.values.tolist()], rule=True))
    shown_notes = sheet.notes if notes else sheet.warnings
    parts.append([line for note in shown_notes for line in wrapped(f"- {note}", "  ")])
    if sheet.commands:
        shown = sheet.commands if notes else sheet.commands[:1]
        more = len(sheet.commands) - len(shown)
        title = f"{fill_title(shown)}{f'; --notes shows {more} more' * bool(more)}:"
        parts.append([*wrapped(title), *(f"  {clean(line)}" for line in shown)])
    if not notes:
        parts.append([f"--notes prints all notes{' and commands' * bool(sheet.commands)}."])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def bands(sheet: Sheet, most: int) -> list[list[str]]:
    """The columns in groups that fit, each of which begins with the names of the lines."""
    widths = {name: max(map(len, [name, *sheet.frame[name]])) for name in sheet.frame}
    first, rest = list(sheet.frame)[: sheet.names], list(sheet.frame)[sheet.names :]
    groups = [[*first]]
    for name in rest:
        if len(groups[-1]) > len(first) and sum(widths[one] + 2 for one in [*groups[-1], name]) - 2 > most:
            groups.append([*first])
        groups[-1].append(name)
    return groups


# --- markdown ---------------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Backslashes before what markdown would read as markup; an underscore inside a word and a later # are not."""
    return re.sub(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|^[#+-](?= )", r"\\\g<0>", clean(text))


def to_markdown(sheet: Sheet) -> str:
    rows = [list(sheet.frame.columns), *sheet.frame.values.tolist()]
    lines = [escape_markdown(sheet.caption), "", *piped(rows), ""]
    lines += [f"- {escape_markdown(note)}" for note in sheet.notes]
    if sheet.commands:
        commands = [clean(line) for line in sheet.commands]
        fence = "`" * max(3, 1 + max(len(run) for line in commands for run in re.findall("`*", line)))
        lines += ["", f"{fill_title(sheet.commands)}:", "", f"{fence}sh", *commands, fence]
    return "\n".join(lines) + "\n"


# --- LaTeX ------------------------------------------------------------------------------------------------------------

LATEX = {c: rf"\{c}" for c in "{}$&#%_"} | {c: f"{{{c}}}" for c in "[]*"}  # [ would begin an argument of \\ before it
LATEX |= {"±": r"$\pm$", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "–": "--", "…": r"\dots{}"}
NAMES = "backslash asciitilde asciicircum less greater bar quotedbl asciigrave"
LATEX |= {c: rf"\text{name}{{}}" for c, name in zip('\\~^<>|"`', NAMES.split(), strict=True)}
LATEX_MARKS = {MARK: "*", UNEQUAL: r"\ddagger", FULL_MARK: r"\S"}  # in mathematics
SHRINK = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"  # to the width of the text, never larger
PREAMBLE = r"% needs \usepackage{booktabs,graphicx} and \usepackage[T1]{fontenc}"


def escape_latex(text: str) -> str:
    """Special characters as commands, the sign of a number as a minus; letters stay UTF-8, which pdfLaTeX reads; for
    scripts beyond T1 take LuaLaTeX."""
    escaped = "".join(LATEX.get(c, c) for c in clean(text).replace("--", "-\0-")).replace("\0", "{}")
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def to_latex(sheet: Sheet) -> str:
    r"""A ``table*``, no wider than the text, and the notes below it; to be ``\input``."""
    frame = sheet.frame.map(lambda text: text.replace("–", "--"))
    lines = [PREAMBLE, *latex_table(frame, sheet.group, sheet.caption, sheet.name)]
    lines += ["", r"{\footnotesize\raggedright", r"\begin{itemize}"]
    lines += [rf"\item {escape_latex(note)}" for note in sheet.notes]
    if sheet.commands:
        lines.append(rf"\item {escape_latex(fill_title(sheet.commands))}:")
        commands = [escape_latex(line).replace(",", r",\allowbreak{}") for line in sheet.commands]
        commands = [line.replace("'", r"\textquotesingle{}") for line in commands]
        lines += [rf"  \\ \texttt{{{line}}}" for line in commands]
    return "\n".join([*lines, r"\end{itemize}}"]) + "\n"


def latex_table(frame: pd.DataFrame, group: Sequence[str], caption: str, name: str) -> list[str]:
    """The lines of Styler's ``table*``, with a rule between groups."""
    styler = frame.style.hide(axis="index")
    text = styler.to_latex(
        hrules=True,
        column_format="l" + "r" * (frame.shape[1] - 1),
        caption=escape_latex(caption),
        label=f"tab:{name}",
        position="t",
        position_float="centering",
        environment="table*",
    )
    lines = text.rstrip("\n").splitlines()
    first = lines.index(r"\midrule") + 1
    for i in reversed(range(1, len(group))):
        if group[i] != group[i - 1]:
            lines.insert(first + i, r"\midrule")
    start = next(i for i, line in enumerate(lines) if line.startswith(r"\begin{tabular}"))
    end = lines.index(r"\end{tabular}")
    lines[end] += "}"
    return [*lines[:start], SHRINK, *lines[start:]]


def paper_style(table: Table) -> str:
    r"""LaTeX in the paper's own layout: one row a method, the budgets apart, mean with sd as subscript.

    The best of each column is bold, the second underlined. Ours alone, or the paper's numbers where there is no run.
    """
    import pandas as pd

    spec, filled = table.spec, bool(table.runs)
    positions = shown_positions(table, filled)
    rows = [row for row in table.rows if row.runs] if filled else [row for row in table.rows if row.in_paper]
    lines = []
    for row in rows:
        size = extent(row.params("method", over="backbone"), ".2%") if spec.shares else extent(row.params("method"))
        line = [escape_latex(row.name if row.fixed_size else row.name.removesuffix(f" {row.budget}"))]
        line.append(escape_latex(size if filled else row.params_label or NONE))
        cells = [table.of(row, i) for i in positions]
        line += ["/".join(paper_figure(figure, filled, spec.decimals) for figure in cell) for cell in cells]
        lines.append(line)
    headings = ["Method", r"\# Params"]
    for top, unit in (heading(spec, i) for i in positions):
        headings.append(rf"\shortstack{{\textbf{{{escape_latex(top)}}}\\{escape_latex(unit)}}}")
    legend = "Best in bold, second underlined; subscripts: standard deviation over seeds."
    legend += f" {CONSTANT} {DEGENERATE}." * any(cell.degenerate for *_, cell in table.filled())
    caption = f"{caption_of(table)} {legend}" if filled else f"{spec.title}: the paper's numbers."
    frame = pd.DataFrame(lines, columns=headings)
    return "\n".join([PREAMBLE, *latex_table(frame, [row.budget for row in rows], caption, spec.name)]) + "\n"


def paper_figure(figure: Any, filled: bool, decimals: int) -> str:
    value = figure.mean if filled else figure.paper
    if value is None or value != value:
        return "--"
    text = escape_latex(fixed(value, decimals))
    text = rf"\textbf{{{text}}}" if figure.best else rf"\underline{{{text}}}" if figure.second else text
    text += "" if figure.sd is None or figure.sd != figure.sd else f"$_{{\\pm {fixed(figure.sd, decimals)}}}$"
    return text + CONSTANT * bool(figure.degenerate_seeds)


# --- HTML -------------------------------------------------------------------------------------------------------------


@cache
def environment() -> Any:
    """Templates of ``reports/templates``; control characters in a text become question marks before it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def harmless(value: Any) -> Any:
        return value if isinstance(value, Markup) else clean(str(value))

    return Environment(
        loader=PackageLoader("adalora_repro.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(name: str, **values: Any) -> str:
    return str(environment().get_template(name).render(**values))


def markup(html: str) -> Any:
    """``html`` as it is, for a template that would otherwise escape it."""
    from markupsafe import Markup

    return Markup(html)


def escape_html(text: str) -> str:
    return html.escape(clean(text), quote=True)


def to_html(sheet: Sheet) -> str:
    """One page that needs nothing else: no script, no font, no network."""
    return f"{template('sheet.html', sheet=sheet, table=markup(html_table(sheet)), fill=fill_title(sheet.commands))}\n"


def html_table(sheet: Sheet) -> str:
    """The table alone; a keyboard can scroll it."""
    styler = sheet.frame.style.hide(axis="index")
    table = styler.to_html(caption=escape_html(sheet.caption), exclude_styles=True)
    table = table.replace("<th >", '<th scope="col">')
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape_html(sheet.title)}">{table}</div>'


def html_part(sheet: Sheet) -> str:
    """A sheet of plain texts for a page, its notes folded."""
    notes = "\n".join(f"<li>{escape_html(note)}</li>" for note in sheet.notes)
    table = html_table(texts_sheet(sheet, "html"))
    return f"{table}\n<details><summary>Notes</summary>\n<ul>\n{notes}\n</ul>\n</details>"


MARKUPS = {
    "text": Markup(clean),
    "markdown": Markup(escape_markdown, bold="**{}**", dim="{}"),
    "latex": Markup(escape_latex, bold=r"\textbf{{{}}}", mark="$^{{{}}}$", dim=r"\textit{{{}}}"),
    "html": Markup(escape_html, bold="<b>{}</b>", mark="<sup>{}</sup>", dim="<i>{}</i>"),
}


def texts_sheet(sheet: Sheet, form: str) -> Sheet:
    """A sheet of plain texts, in the markup of a format."""
    escape = MARKUPS[form].escape
    return replace(sheet, frame=sheet.frame.map(escape).rename(columns=escape))


# --- CSV --------------------------------------------------------------------------------------------------------------


def to_csv(figures: pd.DataFrame) -> str:
    """Tidy long format, one figure a line; scores in percent, to 10 decimals; empty where there is none."""
    figures = figures.astype(object).map(csv_field)
    return str(figures.to_csv(index=False, lineterminator="\n"))


def csv_field(value: Any) -> str:
    """A spreadsheet would run text that begins as a formula does: such text gets an apostrophe in front."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        text = clean(value)
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
    if isinstance(value, bool):
        return str(value).lower()
    return repr(round(float(value), 10)) if isinstance(value, float) else str(value)
