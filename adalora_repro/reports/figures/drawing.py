"""What the figures share: a figure as a frame of points and a list of panels; its forms, colours and markers.

A figure's module says what its points are and how each panel is drawn on matplotlib's ``Axes``. In a file the panels
stand side by side; on the page each is an SVG of its own, so that they flow with the width of the window. matplotlib is
imported only when something is drawn, and its global state (pyplot) is never used.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

from adalora_repro.config.catalog import PROPOSED
from adalora_repro.errors import InputError, clean
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import RULE, Run
from adalora_repro.reports.cells import in_scope
from adalora_repro.reports.compare import read_run
from adalora_repro.reports.frame import unusable
from adalora_repro.reports.html import markup
from adalora_repro.reports.html import render as render_template
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import to_csv
from adalora_repro.reports.spec import DATA_SOURCES, Report, Request, Scope
from adalora_repro.reports.status import real
from adalora_repro.reports.text import aligned, fixed, lr_of_tried, plural, seeds_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Records = Sequence[tuple[Path, RunRecord]]
FORMATS = ("text", "csv", "svg", "png", "pdf")
INK, MUTED, GRID = "#1d1c1a", "#66625a", "#d9d5cb"
#: readable on light paper, told apart with the common kinds of colour blindness together with the markers
SERIES: tuple[str, ...] = ("#0072b2", "#b94a09", "#00785a", "#a8437f", "#7a5c00", "#4f5b66")
SERIES += ("#6a4fc0", "#8c3b2e", "#0b7285", "#4e6a1a", "#b0175a", "#3d3d9e")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}  # of matplotlib, of a text
PAPER_METHODS = ("adalora", "lora", "houlsby", "pfeiffer", "bitfit", "full")
#: the page's variables, which differ in dark mode
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
#: the paper's names of the matrices
SYMBOLS = {"q": "Wq", "k": "Wk", "v": "Wv", "attn_out": "Wo", "ffn_in": "Wf1", "ffn_out": "Wf2"}
SYMBOLS |= {"cross_q": "Wq cross", "cross_k": "Wk cross", "cross_v": "Wv cross", "cross_out": "Wo cross"}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


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
        table: the points as a person reads them.
        notes: what a reader must know; ``commands`` fill what is missing.
        refused: a line for each record that could not be used.
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
    refused: tuple[str, ...] = ()


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
        figure = compile_figure(records, args) if compile_figure else section(records, scope_of(records, args))
        assert figure is not None
        ours = [(path, record) for path, record in records if record.status == "ok"]
        reasons = [f"{path}: {reason}" for path, record in ours if (reason := unusable(record, "final"))]
        return render(figure, form), [*refused, *reasons, *figure.refused]

    def html(records: Records, scope: Scope) -> str:
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
    rows = [list(figure.table), *figure.table.itertuples(index=False)]
    lines = [f"{figure.title}. {figure.caption}"]
    lines += ["", *aligned([[clean(str(text)) for text in row] for row in rows])] if len(rows) > 1 else []
    lines += ["", *(f"- {note}" for note in figure.notes)] if figure.notes else []
    lines += ["", "Filled by:", *(f"  {line}" for line in figure.commands)] if figure.commands else []
    return "\n".join(clean(line) for line in lines) + "\n"


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


# --- part of a page ---------------------------------------------------------------------------------------------------


def inline(figure: Figure, results: Path) -> str:
    """The figure in HTML: each panel an SVG in the page's colours, each point with its values and a link to its run."""
    return render_template(
        "figure.html",
        figure=figure,
        panels=[(panel.title, markup(inline_svg(figure, panel, results))) for panel in figure.panels],
        table=[list(figure.table), *figure.table.itertuples(index=False)],
    )


def inline_svg(figure: Figure, panel: Panel, results: Path) -> str:
    """Names inside begin with a digest of the drawing, so that those of two panels never meet."""
    drawn = draw(figure, [panel], "svg", alone=True)
    prefix = f"{figure.name}-{zlib.crc32(drawn):08x}{hashlib.sha256(panel.title.encode()).hexdigest()[:4]}-"
    root = ElementTree.fromstring(drawn)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.attrib.pop(name)
            element.set(*themed(name, value, prefix))
    link_points(root, prefix, figure.points, results)
    width = root.attrib.pop("width")
    del root.attrib["height"], root.attrib["version"]
    root.set("style", f"width:{width}")
    root.set("role", "group")
    root.set("aria-label", clean(panel.title))
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def themed(name: str, value: str, prefix: str) -> tuple[str, str]:
    """An attribute in the page's colours and fonts; names of elements with their prefix."""
    if name == "id":
        return name, prefix + value
    if name == f"{{{XLINK}}}href":
        return "href", value.replace("#", f"#{prefix}", 1)
    value = re.sub(r"url\(#", f"url(#{prefix}", value)
    value = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;]+", r"font-size: \1px", value)
    return name, re.sub("#[0-9a-f]{6}", lambda hit: VARIABLES.get(hit[0], hit[0]), value)


def link_points(root: ElementTree.Element, prefix: str, points: pd.DataFrame, results: Path) -> None:
    """Each drawn point gets its values as a title and, where it has a record, a link to the run.

    The keyboard and a screen reader take the list of runs instead.
    """
    rows = {prefix + gid(i): row for i, row in enumerate(points.to_dict("records"))}
    for parent in list(root.iter()):
        for index, element in enumerate(list(parent)):
            row = rows.get(element.get("id", ""))
            if row is None:
                continue
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = clean("; ".join(f"{name} {value_text(value)}" for name, value in row.items() if given(value)))
            element.insert(0, title)
            element.set("class", "point")
            if row["record"]:
                href = run_link(Path(row["record"]), results)
                link = ElementTree.Element(f"{{{SVG}}}a", {"href": href, "tabindex": "-1"})
                link.append(element)
                parent[index] = link


def given(value: Any) -> bool:
    return value is not None and value != "" and value == value  # NaN is not itself


def value_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def run_link(path: Path, results: Path) -> str:
    """The page's address of a run: its record's folder below ``runs``."""
    return f"#run={quote(run_name(path, results), errors='replace')}"


def run_name(path: Path, results: Path) -> str:
    return path.parent.relative_to(results / "runs").as_posix()


# --- runs and cells ---------------------------------------------------------------------------------------------------


def scopes_of(records: Records, results: Path, **wanted: str | None) -> list[Scope]:
    """Backbones, data sources and protocols with a finished run, the one with most first; ``wanted`` narrows them."""
    counts = Counter(
        tuple(record.key[name] for name in ("backbone", "data", "protocol"))
        for _, record in records
        if record.status == "ok" and all(value in (None, record.key[name]) for name, value in wanted.items())
    )
    fullest = sorted(counts, key=lambda names: (-counts[names], names))
    return [Scope(backbone, data, protocol, results=results) for backbone, data, protocol in fullest]


def scope_of(records: Records, args: argparse.Namespace, backbone: str = "deberta-v3-base") -> Scope:
    """The fullest scope that the options let in; without one the paper's ``backbone``, data and protocol."""
    wanted = {"backbone": args.backbone, "data": args.data, "protocol": args.protocol}
    empty = Scope(args.backbone or backbone, args.data or DATA_SOURCES[0], args.protocol, results=args.folder)
    return next(iter(scopes_of(records, args.folder, **wanted)), empty)


def shown_runs(records: Records, scope: Scope) -> pd.DataFrame:
    """The frame of the runs that the tables show in this scope, at the last step."""
    from adalora_repro.reports.frame import frame_of

    frame = frame_of([(path, record) for path, record in records if in_scope(record, scope)])
    return frame[frame.shown & (frame.checkpoint == "final")]


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of ``shown_runs``: mean and sample standard deviation over seeds of the primary metric."""
    return (
        runs.sort_values("seed")
        .groupby(["task", "method", "budget"], sort=False)
        .agg(
            label=("label", "first"),
            metric=("metric", "first"),
            score=("score", "mean"),
            sd=("score", "std"),
            seeds=("seed", lambda seeds: seeds_text(seeds.tolist())),
            lr=("lr", "first"),
            lrs_tried=("lrs_tried", "first"),
            degenerate=("degenerate", "any"),
            params=("params.method", "mean"),
            share=("params.share", "mean"),
            record=("record", "first"),
        )
        .reset_index()
    )


def cell_notes(runs: pd.DataFrame) -> list[str]:
    """The rule of a cell, and how many cells chose a learning rate by the scores that they report."""
    cells = runs.drop_duplicates(["task", "method", "budget"])
    optimistic = int(((cells.lrs_tried > 1) & (cells.chosen_on == "reported")).sum())
    text = f"Optimistic: in {optimistic} of {plural(len(cells), 'cell')} the learning rate was chosen by the reported "
    return [RULE, *([f"{text}scores, because not every run has a held-out split."] if optimistic else [])]


def groups(frame: pd.DataFrame, by: str | list[str]) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Parts of the frame with equal ``by``, in the order in which they come."""
    return frame.groupby(by, sort=False, observed=True)


def texts_of(cell: Any, **before: str) -> dict[str, str]:
    """A row of ``cells_of`` as a person reads it, after the columns ``before``."""
    score = {"score": fixed(cell.score) + flag(cell.degenerate), "± sd": fixed(cell.sd), "seeds": cell.seeds}
    return before | score | {"lr": lr_of_tried(cell.lr, int(cell.lrs_tried))}


def draw_cell(axes: Axes, x: float, i: Any, cell: Any, look: Look) -> None:
    """The point of row ``i`` of ``cells_of`` with one standard deviation; hollow for a degenerate run."""
    axes.errorbar(x, cell.score, cell.sd, color=look.colour)
    axes.plot(x, cell.score, gid=gid(i), **replace(look, filled=look.filled and not cell.degenerate).point)


def flag(degenerate: bool) -> str:
    """Beside a score of a run whose predictions are all the same."""
    return " (degenerate)" if degenerate else ""


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs or their metrics.json; default: the newest AdaLoRA run"
    )


def named_runs(records: Records, args: argparse.Namespace) -> list[Run]:
    """The runs of the command line, or the newest finished AdaLoRA run that ``--backbone`` etc. let in.

    Raises:
        InputError: what is named is no finished run.
    """
    if args.runs:
        return [read_run(name, "final") for name in args.runs]
    wanted = {"protocol": args.protocol, "backbone": args.backbone, "data": args.data}
    ours = [
        (path, record)
        for path, record in records
        if all(value in (None, record.key[name]) for name, value in wanted.items())
    ]
    return [run for run in newest(ours) if run.key["method"] == PROPOSED][:1]


def newest(records: Records) -> list[Run]:
    """Finished runs with ranks, the one that ended last first."""
    runs = [Run(path, record) for path, record in records if record.status == "ok" and record.rank_pattern]
    return sorted(runs, key=lambda run: (-(real(run.record.progress.get("updated")) or 0.0), str(run.path)))


def newest_shown(records: Records, scope: Scope) -> list[Run]:
    """Runs with ranks that the tables show in this scope, the one that ended last first."""
    return newest([(run.path, run.record) for run in shown_runs(records, scope).run])


def label(run: Run) -> str:
    """As short as tells a run from its neighbours in a figure."""
    key = run.key
    gamma = run.record.settings.get("method.gamma")
    gamma_text = f" γ={gamma:g}" if isinstance(gamma, int | float) else ""
    return clean(
        f"{key['task']} {key['method']} {key['budget']}{gamma_text} seed {key['seed']}{flag(run.record.degenerate)}"
    )


def matrices(run: Run) -> list[str]:
    """Adapted matrices in the order of the rank pattern.

    Raises:
        InputError: the run has none.
    """
    if not run.record.rank_pattern:
        raise InputError(f"{run.path}: no rank_pattern: method '{run.key['method']}' has no ranks")
    return list(run.record.rank_pattern)


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
