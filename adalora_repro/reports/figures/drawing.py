"""What the figures share: a figure as a frame of points and a list of panels; its forms, colours and markers.

A figure's module says what its points are and how each panel is drawn on matplotlib's ``Axes``. In a file the panels
stand side by side; on the page each is an SVG of its own, so that they flow with the width of the window. matplotlib is
imported only when something is drawn, and its global state (pyplot) is never used.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, clean
from adalora_repro.reports.figures.data import Records, scope_of
from adalora_repro.reports.frame import unusable
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import Sheet, render_sheet, texts_sheet, to_csv
from adalora_repro.reports.spec import Report, Request, Scope

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FORMATS = ("text", "csv", "svg", "png", "pdf")
INK, MUTED, GRID = "#1d1c1a", "#66625a", "#d9d5cb"
#: readable on light paper, told apart with the common kinds of colour blindness together with the markers
SERIES: tuple[str, ...] = ("#0072b2", "#b94a09", "#00785a", "#a8437f", "#7a5c00", "#4f5b66")
SERIES += ("#6a4fc0", "#8c3b2e", "#0b7285", "#4e6a1a", "#b0175a", "#3d3d9e")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}  # of matplotlib, of a text
PAPER_METHODS = ("adalora", "lora", "houlsby", "pfeiffer", "bitfit", "full")
#: the paper's names of the matrices
SYMBOLS = {"q": "Wq", "k": "Wk", "v": "Wv", "attn_out": "Wo", "ffn_in": "Wf1", "ffn_out": "Wf2"}
SYMBOLS |= {"cross_q": "Wq cross", "cross_k": "Wk cross", "cross_v": "Wv cross", "cross_out": "Wo cross"}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one series, and its words in the legend."""

    label: str
    colour: str = SERIES[0]
    marker: str = ""
    line: str = "-"
    filled: bool = True

    @property
    def style(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.line}

    @property
    def point(self) -> dict[str, Any]:
        """Of one point, which has no line."""
        face = self.colour if self.filled else "none"
        return {"color": self.colour, "linestyle": "", "marker": self.marker or "o", "markerfacecolor": face}

    @property
    def glyph(self) -> str:
        line = {"-": "—", "--": "╌", ":": "┈", "-.": "┄", "": ""}[self.line]
        return line + MARKERS.get(self.marker, "")

    @property
    def series(self) -> int:
        return SERIES.index(self.colour)


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``size`` in inches. ``draw`` gives what shows point ``i`` of the figure the gid ``p<i>``."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.4, 2.9)


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn.

    Attributes:
        points: one row a point, in the order of their gids; ``record`` is the file it comes from, "" for the paper's.
        table: the points as a person reads them; its first ``names`` columns name a line.
        notes: what a reader must know; ``commands`` fill what is missing.
    """

    name: str
    title: str
    caption: str
    points: pd.DataFrame
    table: pd.DataFrame
    panels: tuple[Panel, ...]
    legend: tuple[Look, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    names: int = 1


def gid(row: Any) -> str:
    return f"p{row}"


def looks(methods: Iterable[str], labels: dict[str, str]) -> dict[str, Look]:
    """A colour and a marker for each method: the paper's always the same, the others by name."""
    others = sorted(set(methods) - set(PAPER_METHODS))
    markers = list(MARKERS)
    return {
        method: Look(labels.get(method, method), SERIES[i % len(SERIES)], markers[i % len(markers)])
        for i, method in enumerate([*PAPER_METHODS, *others])
    }


def report_of(
    name: str,
    title: str,
    section: Callable[[Records, Scope], Figure | None],
    compile_figure: Callable[[Records, argparse.Namespace], Figure] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Report:
    """The subcommand of a figure; ``section`` is what the page shows of it for one scope, None for nothing.

    ``compile_figure`` takes the options instead; without it the subcommand shows the section of the scope asked for.
    """

    def add(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        add_format(parser, FORMATS)

    def make(request: Request) -> tuple[str | bytes, list[str]]:
        form = form_of(request.args.format, request.args.out, FORMATS)
        records, refused = request.read
        args = argparse.Namespace(**vars(request.args), folder=request.results)

        def drawn(records: Records) -> str | bytes:
            figure = compile_figure(records, args) if compile_figure else section(records, scope_of(records, args))
            assert figure is not None
            return render(figure, form)

        finished = [(path, record) for path, record in records if record.status == "ok"]
        reasons = [f"{path}: {reason}" for path, record in finished if (reason := unusable(record, "final"))]
        return drawn(records), [*refused, *reasons]

    def html(records: Records, scope: Scope) -> str:
        from adalora_repro.reports.figures.svg import inline

        figure = section(records, scope)
        return "" if figure is None or figure.points.empty else inline(figure, scope.results)

    return Report(name, title, add, make, section=html)


def render(figure: Figure, form: str) -> str | bytes:
    """The figure in one of ``FORMATS``.

    Raises:
        InputError: there is not one point to draw; the message has a command that makes some.
    """
    if form == "text":
        return to_text(figure)
    if figure.points.empty:
        how = f"; one command that fills it: {figure.commands[0]}" if figure.commands else ""
        raise InputError(f"{figure.name}: nothing to draw, no record has a point of it{how}")
    if form == "csv":
        points = figure.points.astype(object).where(figure.points.notna(), None)
        return to_csv(points)
    drawn = draw(figure, figure.panels, form)
    return drawn.decode() if form == "svg" else drawn


def to_text(figure: Figure) -> str:
    sheet = Sheet(
        figure.name,
        figure.title,
        caption=f"{figure.title}. {figure.caption}",
        frame=figure.table,
        group=[""] * len(figure.table),
        notes=figure.notes,
        commands=figure.commands,
        names=figure.names,
    )
    return render_sheet(texts_sheet(sheet, "text"), "text", notes=True)


def draw(figure: Figure, panels: Sequence[Panel], form: str, alone: bool = False) -> bytes:
    """Panels side by side, three in a row; ``alone`` without background and legend.

    The same points give the same bytes: no date in the file, no random name.
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
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(columns * width, rows * height), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_title("\n".join(map(clean, panel.title.splitlines())))
            panel.draw(axes)
        if figure.legend and not alone:
            lines = [Line2D([], [], label=clean(look.label), **(look.point | look.style)) for look in figure.legend]
            canvas.legend(handles=lines, loc="outside lower center", ncols=min(2 * columns, len(lines)))
        canvas.savefig(out, format=form, dpi=200, transparent=alone, metadata=metadata)
    return out.getvalue()


# --- parts of drawings ------------------------------------------------------------------------------------------------


def plain_log_axis(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks at powers of ten, where there are few also at 2 and 5 times them, written by ``text``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def thousands(count: float) -> str:
    """20K, 0.1M, 5M"""
    return f"{count / 1e6:g}M" if count >= 1e5 else f"{count / 1e3:g}K"


def draw_cell(axes: Axes, x: float, i: Any, cell: Any, look: Look) -> None:
    """The point of row ``i`` of ``cells_of`` with one standard deviation; hollow for a degenerate run."""
    axes.errorbar(x, cell.score, cell.sd, color=look.colour)
    axes.plot(x, cell.score, gid=gid(i), **replace(look, filled=look.filled and not cell.degenerate).point)


def groups(frame: pd.DataFrame, by: str | list[str]) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Parts of the frame with equal ``by``, in the order in which they come."""
    return frame.groupby(by, sort=False, observed=True)
