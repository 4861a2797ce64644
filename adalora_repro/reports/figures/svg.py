"""A figure as a part of a page: an SVG for each panel, in the page's colours, whose points lead to their runs."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

from adalora_repro.errors import clean
from adalora_repro.reports.figures.drawing import GRID, INK, MUTED, SERIES, Figure, Panel, draw, gid
from adalora_repro.reports.html import markup, render

if TYPE_CHECKING:
    import pandas as pd

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: the page's variables, which differ in dark mode
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}


def inline(figure: Figure, results: Path) -> str:
    """The figure in HTML: each panel an SVG in the page's colours, each point with its values and a link to its run."""
    return render(
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
