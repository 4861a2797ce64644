"""What the figures share: a figure as data, its forms (terminal, CSV, SVG, PNG, PDF, part of a page), its colours.

A figure's module says what its points are (a pure function of records) and draws them on matplotlib's ``Figure``;
matplotlib is imported only when something is drawn, and its global state (pyplot) is never used.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

from adalora_repro.errors import InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import Run
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import escape_html, html_values, to_csv
from adalora_repro.reports.spec import Report, Request, Scope
from adalora_repro.reports.status import aligned, real
from adalora_repro.terminal import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Records = Sequence[tuple[Path, RunRecord]]
FORMATS = ("text", "csv", "svg", "png", "pdf")
INK, MUTED, RULE = "#1d1c1a", "#66625a", "#d9d5cb"
#: the paper's names of the matrices
SYMBOLS = {
    "q": "Wq",
    "k": "Wk",
    "v": "Wv",
    "attn_out": "Wo",
    "ffn_in": "Wf1",
    "ffn_out": "Wf2",
    "cross_q": "Wq cross",
    "cross_k": "Wk cross",
    "cross_v": "Wv cross",
    "cross_out": "Wo cross",
}
#: from the palette of Okabe and Ito, told apart with every common kind of colour blindness
SERIES = ("#0072b2", "#c8500a", "#00785a", "#a8437f")
MARKERS = ("o", "s", "^", "D")
#: the page's variables, which differ in dark mode
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adalora-repro",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names of records are text
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn.

    Attributes:
        points: one dictionary a point, all with the same fields; ``record`` is the file that it comes from, "" for the
            paper's. What draws point i has the gid ``p<i>``: the page shows the point there.
        table: the points as lines that a person reads; the first is the heading.
        draw: puts the points on a matplotlib figure of ``size`` inches.
        notes: what a reader must know; ``commands`` fill what is missing.
        refused: a line for each record that could not be used.
    """

    name: str
    title: str
    caption: str
    points: tuple[Mapping[str, Any], ...]
    table: tuple[tuple[str, ...], ...]
    draw: Callable[[Canvas], None]
    size: tuple[float, float]
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def gid(place: int) -> str:
    return f"p{place}"


def report_of(
    name: str,
    title: str,
    compile_figure: Callable[[Records, Request], Figure],
    section: Callable[[Records, Scope], str],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Report:
    """The subcommand of a figure: ``compile_figure`` and its own options; all else is the same for every figure."""

    def add(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        add_format(parser, FORMATS)

    def make(request: Request) -> tuple[str | bytes, list[str]]:
        form = form_of(request.args.format, request.args.out, FORMATS)
        found, refused = request.found
        figure = compile_figure(found, request)
        return render(figure, form), [*refused, *figure.refused]

    return Report(name, title, add, make, section=section)


def render(figure: Figure, form: str) -> str | bytes:
    """The figure in one of ``FORMATS``.

    Raises:
        InputError: there is not one point to draw; the message has a command that makes some.
    """
    if form == "text":
        return to_text(figure)
    if form == "csv" and figure.points:
        return to_csv(list(figure.points[0]), [dict(point) for point in figure.points])
    if not figure.points:
        how = f"; one command that fills it: {figure.commands[0]}" if figure.commands else ""
        raise InputError(f"{figure.name}: nothing to draw, no record has a point of it{how}")
    drawn = draw(figure, form)
    return drawn.decode() if form == "svg" else drawn


def to_text(figure: Figure) -> str:
    rows = [[clean(text) for text in row] for row in figure.table]
    lines = [f"{figure.title}. {figure.caption}", *(["", *aligned(rows)] if len(rows) > 1 else [])]
    lines += ["", *(f"- {note}" for note in figure.notes)] if figure.notes else []
    lines += ["", "Filled by:", *(f"  {line}" for line in figure.commands)] if figure.commands else []
    return "\n".join(clean(line) for line in lines) + "\n"


def draw(figure: Figure, form: str, transparent: bool = False) -> bytes:
    """The same points give the same bytes: no date in the file, no random name."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas)
        canvas.savefig(out, format=form, dpi=200, transparent=transparent, metadata=metadata)
    return out.getvalue()


# --- part of a page ---------------------------------------------------------------------------------------------------


def inline(figure: Figure, results: Path) -> str:
    """The figure in HTML: an SVG in the page's colours, each point with its values and a link to its run, and a table.

    Names inside the SVG begin with a digest of its points, so that those of two figures never meet.
    """
    prefix = f"{figure.name}-{hashlib.sha256(repr(figure.points).encode()).hexdigest()[:8]}-"
    root = ElementTree.fromstring(draw(figure, "svg", transparent=True))
    themed(root, prefix)
    tips(root, prefix, figure.points, results)
    root.set("role", "group")
    root.set("aria-label", clean(f"{figure.title}. {figure.caption}"))
    root.attrib.pop("height")
    width = root.attrib.pop("width")
    root.set("style", f"width:{width};min-width:min(30rem,{width})")
    for name in list(root.attrib):
        if name.startswith("{") or name == "version":
            del root.attrib[name]
    ElementTree.register_namespace("", SVG)
    svg = ElementTree.tostring(root, encoding="unicode")
    notes = "".join(f"<li>{escape_html(note)}</li>" for note in figure.notes)
    return (
        f'<figure class="plot"><div class="wide" tabindex="0" role="group" aria-label="{escape_html(figure.name)}">'
        f"{svg}</div><figcaption>{escape_html(figure.caption)}</figcaption>"
        f"<details><summary>Values{' and notes' * bool(notes)}</summary>{html_values(figure.table)}"
        f"{f'<ul>{notes}</ul>' if notes else ''}</details></figure>"
    )


def themed(root: ElementTree.Element, prefix: str) -> None:
    """Colours become the page's, fonts the page's, names unique; what a page has no use for goes."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, prefix + value)
            elif name == f"{{{XLINK}}}href":
                del element.attrib[name]
                element.set("href", value.replace("#", f"#{prefix}", 1))
            else:
                value = re.sub(r"url\(#", f"url(#{prefix}", value)
                value = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;]+", r"font-size: \1px", value)
                element.set(name, re.sub("#[0-9a-f]{6}", lambda hit: VARIABLES.get(hit[0], hit[0]), value))


def tips(root: ElementTree.Element, prefix: str, points: Sequence[Mapping[str, Any]], results: Path) -> None:
    """Each drawn point gets its values as a title and, where it has a record, a link to the run."""
    drawn = {prefix + gid(i): point for i, point in enumerate(points)}
    for parent in list(root.iter()):
        for place, element in enumerate(list(parent)):
            point = drawn.get(element.get("id", ""))
            if point is None:
                continue
            title = ElementTree.Element(f"{{{SVG}}}title")
            told = {name: clean(value_text(value)) for name, value in point.items() if value not in (None, "")}
            title.text = "; ".join(f"{name} {text}" for name, text in told.items())
            element.insert(0, title)
            element.set("class", "point")
            if point["record"]:
                href = run_link(Path(point["record"]), results)
                link = ElementTree.Element(f"{{{SVG}}}a", {"href": href, "tabindex": "-1"})
                link.append(element)
                parent[place] = link


def value_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def run_link(path: Path, results: Path) -> str:
    """The page's address of a run: its record's folder below ``runs``."""
    return f"#run={quote(run_name(path, results), errors='replace')}"


def run_name(path: Path, results: Path) -> str:
    return path.parent.relative_to(results / "runs").as_posix()


# --- parts of drawings ------------------------------------------------------------------------------------------------


def plain_log_axis(axis: Any) -> None:
    """Powers of ten as 1e-3: matplotlib's own would need its mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")))
    axis.set_minor_formatter(NullFormatter())


def titled(axes: Axes, title: str) -> None:
    axes.set_title("\n".join(map(clean, title.splitlines())), loc="left", fontweight="bold")


# --- runs that are named ----------------------------------------------------------------------------------------------


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs or their metrics.json; default: the newest AdaLoRA run"
    )


def named_runs(found: Records, request: Request) -> list[Run]:
    """The runs of the command line, or the newest finished AdaLoRA run that ``--backbone`` etc. let in.

    Raises:
        InputError: what is named is no finished run.
    """
    if request.args.runs:
        return [read_run(name) for name in request.args.runs]
    args = request.args
    wanted = {"protocol": args.protocol, "backbone": args.backbone, "data": args.data}
    return newest(
        [
            (path, record)
            for path, record in found
            if all(value is None or record.key[name] == value for name, value in wanted.items())
        ]
    )[:1]


def read_run(name: str) -> Run:
    """A finished run from its folder or its record.

    Raises:
        InputError: there is none.
    """
    path = Path(name) / run_record.RECORD_NAME if Path(name).is_dir() else Path(name)
    try:
        record = run_record.read(path)
    except FileNotFoundError:
        raise InputError(f"no run '{name}': a RUN is the folder of a run, or the metrics.json in it") from None
    except run_record.RecordError as error:
        raise InputError(str(error)) from None
    if record.status != "ok":
        raise InputError(f"{path}: the run is not finished (status {record.status})")
    return Run(path, record)


def newest(found: Records, methods: Sequence[str] = ("adalora",)) -> list[Run]:
    """Finished runs of ``methods``, the one that ended last first."""
    runs = [Run(path, record) for path, record in found if record.status == "ok" and record.key["method"] in methods]
    return sorted(runs, key=lambda run: (-ended(run.record), str(run.path)))


def ended(record: RunRecord) -> float:
    return real(record.progress.get("updated")) or 0.0


def matrices(run: Run) -> list[str]:
    """Adapted matrices in the order of the rank pattern.

    Raises:
        InputError: the run has none.
    """
    if not run.record.rank_pattern:
        raise InputError(f"{run.path}: no rank_pattern: method '{run.key['method']}' has no ranks")
    return list(run.record.rank_pattern)


def label(run: Run) -> str:
    """As short as tells a run from its neighbours in a figure."""
    key = run.key
    gamma = run.record.settings.get("method.gamma")
    gamma_text = f" γ={gamma:g}" if isinstance(gamma, int | float) else ""
    degenerate = " (degenerate)" * run.record.degenerate
    return clean(f"{key['task']} {key['method']} {key['budget']}{gamma_text} seed {key['seed']}{degenerate}")
