"""What the figures share: a figure as a frame of points and a list of panels, and every form it comes in.

A figure's module says what its points are and how each panel is drawn on matplotlib's ``Axes``. In a file the panels
stand side by side. On the page each is an SVG of its own, so that they flow with the width of the window, in the page's
colours; each point has its values as a title and leads to its run. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import argparse
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adalora_repro.config.words import lr_text
from adalora_repro.errors import InputError, clean
from adalora_repro.reports.cells import choose_scope
from adalora_repro.reports.compare import read_run
from adalora_repro.reports.figures.data import run_name
from adalora_repro.reports.frame import frame_of, refusals
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import Sheet, markup, render_sheet, template, texts_sheet, to_csv
from adalora_repro.reports.spec import PAPER_BACKBONE, Report, Request, Scope
from adalora_repro.reports.text import count_text, fixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FORMATS = ("text", "csv", "svg", "png", "pdf")
INK, MUTED, GRID = "#1d1c1a", "#66625a", "#d9d5cb"
#: readable on light paper, told apart with the common kinds of colour blindness together with the markers
SERIES: tuple[str, ...] = ("#0072b2", "#b94a09", "#00785a", "#a8437f", "#7a5c00", "#4f5b66")
SERIES += ("#6a4fc0", "#8c3b2e", "#0b7285", "#4e6a1a", "#b0175a", "#3d3d9e")
#: the page's variables for them, which differ in dark mode
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--rule)"}
VARIABLES |= {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)}
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}  # of matplotlib, of a text
LINES = {"-": "—", "--": "╌", ":": "┈", "-.": "┄", "": ""}
PAPER_METHODS = ("adalora", "lora", "houlsby", "pfeiffer", "bitfit", "full")
#: the paper's names of the matrices
SYMBOLS = {"q": "Wq", "k": "Wk", "v": "Wv", "attn_out": "Wo", "ffn_in": "Wf1", "ffn_out": "Wf2"}
SYMBOLS |= {"cross_q": "Wq cross", "cross_k": "Wk cross", "cross_v": "Wv cross", "cross_out": "Wo cross"}

HOLLOW = " Hollow or dashed: a run gave every example the same prediction (degenerate)."

#: how a person reads the numbers of these columns
FORMS: dict[Any, Callable[[float], str]] = {"score": fixed, "sd": fixed, "params": count_text, "lr": lr_text}
FORMS |= {"hours": "{:.3g}".format}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one series, and its words in the legend."""

    label: str
    colour: str = SERIES[0]
    marker: str = "o"
    line: str = ""
    filled: bool = True

    @property
    def style(self) -> dict[str, Any]:
        """For matplotlib's lines."""
        face = self.colour if self.filled else "none"
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker, "markerfacecolor": face}

    @property
    def glyph(self) -> str:
        return LINES[self.line] + MARKERS[self.marker]

    @property
    def series(self) -> int:
        return SERIES.index(self.colour)


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``size`` in inches."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.4, 2.9)


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn.

    Attributes:
        name, title: those of its report.
        points: one row a point; ``record`` is the file it comes from, "" for the paper's.
        table: the points as a person reads them; its first ``names`` columns name a line.
        notes: what a reader must know; ``commands`` fill what is missing.
    """

    caption: str
    points: pd.DataFrame
    table: pd.DataFrame
    panels: Sequence[Panel]
    legend: Sequence[Look] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    names: int = 3
    name: str = ""
    title: str = ""


def looks(methods: Iterable[str], labels: Iterable[str]) -> dict[str, Look]:
    """Each method's colour and marker: the paper's always the same, the others by name."""
    named = dict(zip(methods, labels, strict=True))
    order = [*PAPER_METHODS, *sorted(named.keys() - {*PAPER_METHODS})]
    markers = list(MARKERS)
    return {
        method: Look(named[method], SERIES[i % len(SERIES)], markers[i % len(markers)])
        for i, method in enumerate(order)
        if method in named
    }


def groups(frame: pd.DataFrame, by: str | list[str]) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Parts of the frame with equal ``by``, in the order in which they come."""
    return frame.groupby(by, sort=False, observed=True)


# --- the report -------------------------------------------------------------------------------------------------------


def report_of(name: str, title: str, figure_of: Callable[..., Figure], of_runs: bool = False) -> Report:
    """The subcommand of a figure and its section on the page.

    ``figure_of``: ``frame_of`` all records at the last step and a scope -> Figure; with ``of_runs`` also the runs named
    on the command line, if any.
    """

    def figure(*args: Any) -> Figure:
        made = figure_of(*args)
        degenerate = "degenerate" in made.points and made.points.degenerate.any()
        return replace(made, name=name, title=title, caption=made.caption + HOLLOW * bool(degenerate))

    def add(parser: argparse.ArgumentParser) -> None:
        if of_runs:
            words = "folders of runs or their metrics.json; default: the newest AdaLoRA runs"
            parser.add_argument("runs", nargs="*", metavar="RUN", help=words)
        add_format(parser, FORMATS)

    def make(request: Request) -> str | bytes:
        args = request.args
        form, records = form_of(args.format, args.out, FORMATS), request.records
        runs = [[read_run(one, "final") for one in args.runs]] if of_runs else []
        wish = Scope("", "", args.protocol, results=request.results)
        scope = choose_scope(PAPER_BACKBONE, [record for _, record in records], args.backbone, args.data, wish)
        every = frame_of(records, checkpoints=["final"])
        request.refused.extend(refusals(every))
        return render(figure(every, scope, *runs), form)

    def section(runs: pd.DataFrame, scope: Scope) -> str:
        made = figure(runs, scope)
        return inline(made, scope) if made.points.record.any() else ""

    return Report(name, title, add, make, section=section)


def render(figure: Figure, form: str) -> str | bytes:
    """The figure in one of ``FORMATS``.

    Raises:
        InputError: there is not one point to draw; the message has a command that makes some.
    """
    if form == "text":
        sheet = Sheet(
            figure.name,
            figure.title,
            f"{figure.title}. {figure.caption}",
            texts(figure.table),
            notes=figure.notes,
            commands=figure.commands,
            names=figure.names,
        )
        return render_sheet(texts_sheet(sheet, "text"), "text", notes=True)
    if figure.points.empty:
        how = f"; one command that fills it: {figure.commands[0]}" if figure.commands else ""
        raise InputError(f"{figure.name}: nothing to draw, no record has a point of it{how}")
    if form == "csv":
        return to_csv(figure.points)
    drawn = draw(figure, figure.panels, form)
    return re.sub("</?a\\b[^>]*>", "", drawn.decode()) if form == "svg" else drawn  # links are for the page


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """The values as a person reads them, without columns that are empty."""

    def text(value: Any, name: Any) -> str:
        if value is None or value != value or value is False:
            return ""
        if isinstance(value, float):
            return FORMS.get(name, "{:.4g}".format)(value)
        return "yes" if value is True else str(value)

    columns = {str(name): [text(value, name) for value in frame[name].tolist()] for name in frame}
    return type(frame)({name: values for name, values in columns.items() if any(values) or not values})


def draw(figure: Figure, panels: Sequence[Panel], form: str, salt: str = "") -> bytes:
    """Panels side by side, three in a row; with ``salt``, for the page, without background and legend.

    The same points give the same bytes: no date in the file, no random name. ``salt`` makes the names inside an SVG
    differ from those of others.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (max(panel.size[side] for panel in panels) for side in (0, 1))
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    out = io.BytesIO()
    with as_file(files("adalora_repro.reports") / "templates" / "figure.mplstyle") as style:
        settings = matplotlib.rc_params_from_file(style, use_default_template=False)
    with matplotlib.rc_context(settings | {"svg.hashsalt": salt or figure.name}):
        canvas = Canvas(figsize=(columns * width, rows * height), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_title("\n".join(map(clean, panel.title.splitlines())))
            panel.draw(axes)
        if figure.legend and not salt:
            handles = [Line2D([], [], label=clean(look.label), **look.style) for look in figure.legend]
            canvas.legend(handles=handles, loc="outside lower center", ncols=min(2 * columns, len(handles)))
        canvas.savefig(out, format=form, dpi=200, transparent=bool(salt), metadata=metadata)
    return out.getvalue()


# --- on the page ------------------------------------------------------------------------------------------------------


def inline(figure: Figure, scope: Scope) -> str:
    """The figure in HTML: each panel an SVG in the page's colours, each point with its values and a link to its run."""
    table = texts(figure.table)
    return template(
        "figure.html",
        figure=figure,
        panels=[(panel.title, markup(inline_svg(figure, panel, scope))) for panel in figure.panels],
        table=[list(table), *table.itertuples(index=False)],
    )


def inline_svg(figure: Figure, panel: Panel, scope: Scope) -> str:
    """matplotlib's SVG of a panel. The keyboard and a screen reader take the list of runs instead of the points."""

    def opened(link: re.Match[str]) -> str:
        row = points.loc[int(link[1])]
        values = html.escape(clean("; ".join(f"{name} {value}" for name, value in row.items() if value)))
        href = ""
        if row.record:
            href = f' href="#run={quote(run_name(Path(row.record), scope.results), errors="replace")}"'
        return f'<a class="point" tabindex="-1"{href}><title>{values}</title>'

    points = texts(figure.points).set_index(figure.points.index)
    drawn = draw(figure, [panel], "svg", salt=f"{figure.name} {panel.title} {scope}").decode()
    head, body = drawn[drawn.index("<svg") :].split(">", 1)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # other panels have the same
    body = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;]+", r"font-size: \1px", body)  # the page's font
    body = re.sub(r"font-family: [^;]+; ", "", body)
    body = re.sub("#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0]), body)
    body = re.sub(r'<a xlink:href="#point-(\d+)"[^>]*>', opened, body)
    box = re.search('viewBox="[^"]+"', head)
    title = html.escape(clean(panel.title))
    return f'<svg {box[0] if box else ""} style="width:{72 * panel.size[0]}pt" role="group" aria-label="{title}">{body}'


# --- parts of drawings ------------------------------------------------------------------------------------------------


URL = "#point-{}"  # of the point in a row of the points; ``inline_svg`` puts the link to its run there


def draw_points(axes: Axes, points: pd.DataFrame, x: str, y: str, look: Look, size: float = 28) -> None:
    """The rows as points; hollow for a degenerate run."""
    filled = [look.filled and not degenerate for degenerate in points.get("degenerate", [False] * len(points))]
    axes.scatter(
        points[x],
        points[y],
        s=size,
        marker=look.marker,
        edgecolors=look.colour,
        facecolors=[look.colour if one else "none" for one in filled],
        urls=[URL.format(i) for i in points.index],
        zorder=3,
    )


def draw_cells(axes: Axes, cells: pd.DataFrame, x: str, look: Look) -> None:
    """Rows of ``cells_of`` with one standard deviation, joined by the line of ``look``."""
    axes.errorbar(cells[x], cells.score, cells.sd, color=look.colour, linestyle=look.line)
    draw_points(axes, cells, x, "score", look)


def draw_ranks(axes: Axes, points: pd.DataFrame, x: Iterable[int], y: Iterable[int], most: int, size: int) -> None:
    """The rows as squares with their ``rank``, the stronger the higher, up to ``most``."""
    from matplotlib.patches import Rectangle

    for i, column, row, rank in zip(points.index, x, y, points["rank"], strict=True):
        look = {"color": SERIES[0], "alpha": 0.03 + 0.62 * rank / max(most, 1), "linewidth": 0}
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, url=URL.format(i), **look))
        axes.text(column, row, str(rank), ha="center", va="center", fontsize=size, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def plain_log_axis(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks at powers of ten, where there are few also at 2 and 5 times them, written by ``text``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
