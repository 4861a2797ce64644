r"""A sheet -> markdown, LaTeX, HTML; a table -> CSV. All text passes an escape function here and only here.

Names in records were written by whoever made the record: control characters go in every format, and each format's own
special characters lose their meaning.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from adalora_repro.reports.base import Table
from adalora_repro.reports.layout import (
    DIFFERENCE,
    OURS,
    PAPER,
    SPREAD,
    Block,
    Line,
    Part,
    Sheet,
    long_rows,
    sheet_of,
)
from adalora_repro.terminal import clean

FORMATS = ("markdown", "latex", "csv", "html")
FILL = "Cells without a record of ours are filled by the commands below"


def render(table: Table, form: str, only_filled: bool = False) -> str:
    """The table in one of ``FORMATS``, ending with a line break."""
    if form == "csv":
        rows = long_rows(table)
        return to_csv(list(rows[0]), [row for row in rows if row["mean"] is not None or not only_filled])
    return render_sheet(sheet_of(table, only_filled), form)


def render_sheet(sheet: Sheet, form: str) -> str:
    """A sheet in one of ``FORMATS`` but CSV (``to_csv``), ending with a line break."""
    renderers: dict[str, Callable[[Sheet], str]] = {"markdown": to_markdown, "latex": to_latex, "html": to_html}
    return renderers[form](sheet)


def fill_title(sheet: Sheet) -> str:
    """The sentence before the commands, which are the shortest form: settings that a user varied are not in them."""
    where = "DIR is the folder with the data; " if any("data.dir=DIR" in line for line in sheet.commands) else ""
    return f"{FILL} ({where}add the overrides that the other runs had)"


# --- markdown ---------------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Backslashes before what markdown would read as markup; an underscore inside a word and a later # are not."""
    return re.sub(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|^[#+-](?= )", r"\\\g<0>", clean(text))


def to_markdown(sheet: Sheet) -> str:
    """A pipe table padded to be read in a terminal too."""
    heading = ["Method", "", *(escape_markdown(" ".join(filter(None, pair))) for pair in sheet.heading)]
    rows = [row for block in sheet.blocks for row in markdown_rows(block)]
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [escape_markdown(sheet.caption), "", *(pad(row, widths) for row in [heading, rule, *rows]), ""]
    lines += [f"- {escape_markdown(note)}" for note in sheet.notes]
    if sheet.commands:
        commands = [clean(line) for line in sheet.commands]
        fence = "`" * max(3, 1 + max(len(run) for line in commands for run in re.findall("`*", line)))
        lines += ["", f"{fill_title(sheet)}:", "", f"{fence}sh", *commands, fence]
    return "\n".join(lines) + "\n"


def markdown_rows(block: Block) -> list[list[str]]:
    names = [escape_markdown(block.name)] + [""] * len(block.lines)
    return [
        [name, line.label, *("/".join(markdown_part(part) for part in cell) for cell in line.cells)]
        for name, line in zip(names, block.lines, strict=False)
    ]


def markdown_part(part: Part) -> str:
    text = escape_markdown(part.text)
    return (f"**{text}**" if part.bold else text) + escape_markdown(part.mark)


def pad(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.ljust(width) if i < 2 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"


# --- LaTeX ------------------------------------------------------------------------------------------------------------

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "[": "{[}",  # bare, it would be read as an argument of the line break or rule before it
    "]": "{]}",
    "*": "{*}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "–": "--",
    "…": r"\dots{}",
}
LATEX_MARKS = {"*": "*", "†": r"\dagger", "‡": r"\ddagger", "§": r"\S", "¶": r"\P"}  # in mathematics


def escape_latex(text: str) -> str:
    """Special characters as commands; what pdfLaTeX may have no glyph for, beyond Latin-1, as a question mark."""
    return "".join(LATEX.get(c, c if ord(c) < 256 else "?") for c in clean(text))


def escape_latex_quote(text: str) -> str:
    """Running text: a typewriter apostrophe is an apostrophe here, and double hyphens stay two hyphens."""
    return escape_latex(text).replace(r"\textquotesingle{}", "'").replace("--", "-{}-")


def to_latex(sheet: Sheet) -> str:
    r"""A ``table*`` with booktabs rules, scaled to the text width, and the notes below it; to be ``\input``."""
    columns = "ll" + "r" * len(sheet.heading)
    first = ["Method", "", *(escape_latex(top) for top, _ in sheet.heading)]
    second = ["", "", *(escape_latex(bottom) for _, bottom in sheet.heading)]
    lines = [
        r"% needs \usepackage{booktabs,graphicx} and \usepackage[T1]{fontenc}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape_latex_quote(sheet.caption)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        latex_row(first),
        latex_row(second),
    ]
    budget = None
    for block in sheet.blocks:
        lines.append(r"\midrule" if block.budget != budget else r"\addlinespace")
        budget = block.budget
        names = [escape_latex(block.name)] + [""] * len(block.lines)
        lines += [latex_line(name, line) for name, line in zip(names, block.lines, strict=False)]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", "", r"{\footnotesize\raggedright", r"\begin{itemize}"]
    lines += [rf"\item {escape_latex_quote(note)}" for note in sheet.notes]
    if sheet.commands:
        lines.append(rf"\item {escape_latex_quote(fill_title(sheet))}:")
        commands = [escape_latex(line).replace(",", r",\allowbreak{}") for line in sheet.commands]
        lines += [rf"  \\ \texttt{{{line}}}" for line in commands]
    lines += [r"\end{itemize}}"]
    return "\n".join(lines) + "\n"


def latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_line(name: str, line: Line) -> str:
    style = r"\textit{%s}" if line.label == PAPER else "%s"
    cells = ["/".join(latex_part(part, line.label) for part in cell) for cell in line.cells]
    return latex_row([name, *(style % text if text else "" for text in [escape_latex(line.label), *cells])])


def latex_part(part: Part, label: str) -> str:
    text = escape_latex(part.text)
    if label == DIFFERENCE and text[:1] in ("+", "-") and text != "--":
        text = f"${text}$"  # a minus sign, not a hyphen
    mark = f"$^{{{''.join(LATEX_MARKS[one] for one in part.mark)}}}$" if part.mark else ""
    return (rf"\textbf{{{text}}}" if part.bold else text) + mark


# --- HTML -------------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; max-width: 90rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { text-align: left; padding-bottom: .8rem; white-space: normal; font-weight: 600; }
th, td { padding: .12rem .6rem; text-align: right; }
thead { border-block: 2px solid; } tbody { border-bottom: 2px solid; }
tbody th, thead th:nth-child(-n+2), td.label { text-align: left; vertical-align: top; font-weight: 600; }
td.label { font-weight: 400; opacity: .7; }
tr.first > * { border-top: 1px solid #8886; padding-top: .3rem; }
tr.paper { font-style: italic; opacity: .75; } tr.spread { opacity: .75; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid #8886; } li { margin-bottom: .2rem; max-width: 60rem; }
""".strip()


def escape_html(text: str) -> str:
    return html.escape(clean(text), quote=True)


def to_html(sheet: Sheet) -> str:
    """One page that needs nothing else: no script, no font, no network."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape_html(sheet.title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        *html_table(sheet),
        *html_notes(sheet),
    ]
    if sheet.commands:
        commands = "\n".join(escape_html(line) for line in sheet.commands)
        lines += [f"<p>{escape_html(fill_title(sheet))}:</p>", f"<pre><code>{commands}</code></pre>"]
    return "\n".join([*lines, "</body></html>"]) + "\n"


#: (place of the block, place of its cell) -> address of what is behind our number there, None for nothing
Links = Callable[[int, int], str | None]


def html_table(sheet: Sheet, links: Links = lambda block, cell: None) -> list[str]:
    top = "".join(f'<th scope="col">{escape_html(a)}<br>{escape_html(b)}</th>' for a, b in sheet.heading)
    lines = [
        '<div class="wide"><table>',
        f"<caption>{escape_html(sheet.caption)}</caption>",
        f'<thead><tr><th scope="col">Method</th><th scope="col"></th>{top}</tr></thead>',
    ]
    budget = None
    for place, block in enumerate(sheet.blocks):
        if block.budget != budget:
            lines += ["</tbody>"] * (budget is not None) + ["<tbody>"]
            budget = block.budget
        lines += html_rows(block, [links(place, i) for i in range(len(sheet.heading))])
    return [*lines, *["</tbody>"] * (budget is not None), "</table></div>"]


def html_notes(sheet: Sheet) -> list[str]:
    return ["<ul>", *(f"<li>{escape_html(note)}</li>" for note in sheet.notes), "</ul>"]


def html_rows(block: Block, links: Sequence[str | None]) -> list[str]:
    """The lines of a row; ``links`` of the cells lie on the line of ours."""
    rows = []
    for i, line in enumerate(block.lines):
        kind = "spread" if line.label == SPREAD else line.label
        name = f'<th scope="rowgroup" rowspan="{len(block.lines)}">{escape_html(block.name)}</th>' if i == 0 else ""
        hrefs = links if line.label == OURS else [None] * len(line.cells)
        cells = "".join(html_cell(cell, href) for cell, href in zip(line.cells, hrefs, strict=True))
        label = f'<td class="label">{escape_html(line.label)}</td>'
        rows.append(f'<tr class="{kind}{" first" * (i == 0)}">{name}{label}{cells}</tr>')
    return rows


def html_cell(cell: Sequence[Part], href: str | None) -> str:
    text = "/".join(html_part(part) for part in cell)
    return f'<td><a href="{escape_html(href)}">{text}</a></td>' if href else f"<td>{text}</td>"


def html_values(rows: Sequence[Sequence[str]]) -> str:
    """A plain table of texts; the first row is its heading, the first cell of the others names the row."""
    head = "".join(f'<th scope="col">{escape_html(text)}</th>' for text in rows[0])
    lines = [
        f'<tr><th scope="row">{escape_html(name)}</th>{"".join(f"<td>{escape_html(text)}</td>" for text in rest)}</tr>'
        for name, *rest in rows[1:]
    ]
    return (
        f'<div class="wide"><table class="values"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def html_part(part: Part) -> str:
    text = escape_html(part.text)
    mark = f"<sup>{escape_html(part.mark)}</sup>" if part.mark else ""
    return (f"<b>{text}</b>" if part.bold else text) + mark


# --- CSV --------------------------------------------------------------------------------------------------------------


def to_csv(fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Tidy long format, one figure a line; scores in percent, not rounded; empty where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_field(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def csv_field(value: Any) -> str:
    """A spreadsheet would run text that begins as a formula does: such text gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(round(value, 10))  # 69.82, not 69.82000000000001
    text = clean(str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not isinstance(value, int) else text
