"""Figure 3: the rank that AdaLoRA left to every matrix, by layer and kind of matrix."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError
from adalora_repro.models.backbones import MATRIX_ROLES
from adalora_repro.records.selection import Run
from adalora_repro.reports.figures.drawing import (
    INK,
    SERIES,
    SYMBOLS,
    Figure,
    Records,
    add_runs,
    gid,
    inline,
    label,
    matrices,
    named_runs,
    newest,
    report_of,
    titled,
)
from adalora_repro.reports.spec import Request, Scope, in_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TITLE = "Figure 3: final rank of every weight matrix"
SITE = re.compile(r"(\w+)\.(\d{1,3})\.(\w+)", re.ASCII)
FILL = "adalora-run task=mnli method=adalora budget=0.3M"
SHOWN = 4  # heat maps of a page; every run's ranks are in its details there


def site(name: str) -> tuple[str, int, str]:
    """``decoder.3.cross_q`` -> stack, layer, role.

    Raises:
        InputError: the name is none of a matrix.
    """
    match = SITE.fullmatch(name)
    if match is None or match[3] not in SYMBOLS:
        raise InputError(f"'{name}' names no matrix; STACK.LAYER.ROLE with a role of {', '.join(SYMBOLS)}")
    return match[1], int(match[2]), match[3]


def points_of(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    points = []
    for run in runs:
        for name in matrices(run):
            stack, layer, role = site(name)
            rank = run.record.rank_pattern[name]  # type: ignore[index]
            points.append(
                {
                    "run": label(run),
                    "matrix": name,
                    "stack": stack,
                    "layer": layer,
                    "role": role,
                    "rank": rank,
                    "record": str(run.path),
                }
            )
    return tuple(points)


def panels_of(points: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[int]]:
    """(record, stack) -> places of its points."""
    panels: dict[tuple[str, str], list[int]] = {}
    for place, point in enumerate(points):
        panels.setdefault((point["record"], point["stack"]), []).append(place)
    return panels


def figure(runs: Sequence[Run]) -> Figure:
    points = points_of(runs)
    most = max((point["rank"] for point in points), default=0)
    panels = panels_of(points)
    deep = max((point["layer"] for point in points), default=0) + 1
    tall = max((len({points[i]["role"] for i in places}) for places in panels.values()), default=1)
    columns = min(2, len(panels)) or 1
    rows = -(-len(panels) // columns)
    said = "; ".join(budget_text(run) for run in runs)
    return Figure(
        "figure3",
        TITLE,
        f"{said}. The stronger the colour, the more, up to {most}." if runs else "No finished AdaLoRA run yet.",
        points,
        text_grid(points),
        lambda canvas: draw(canvas, points, panels, columns, most),
        (columns * panel_width(deep), rows * (0.26 * tall + 0.85)),
        (
            "The paper prints none of the ranks of its Figure 3 (MNLI). Its text says that feed-forward matrices and "
            "top layers keep more.",
        ),
        () if runs else (FILL,),
    )


def panel_width(layers: int) -> float:
    return 0.30 * layers + 1.1


def budget_text(run: Run) -> str:
    budget = run.record.budget or {}
    known = [f"{name} {budget[name]}" for name in ("n", "b_0", "b_T") if budget.get(name) is not None]
    counts = f" ({', '.join(known)})" if known else ""
    return f"{label(run)}, {run.key['backbone']}{counts}"


def text_grid(points: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Lines of one run and kind of matrix, columns of layers."""
    layers = range(max((point["layer"] for point in points), default=-1) + 1)
    lines: dict[tuple[str, str, str, str], dict[int, int]] = {}
    for point in points:
        place = (point["record"], point["run"], point["stack"], point["role"])
        lines.setdefault(place, {})[point["layer"]] = point["rank"]
    heading = ("run", "stack", "matrix", *(str(layer) for layer in layers))
    return (
        heading,
        *(
            (run, stack, SYMBOLS[role], *(str(ranks.get(layer, "")) for layer in layers))
            for (_, run, stack, role), ranks in lines.items()
        ),
    )


def draw(
    canvas: Canvas, points: Sequence[dict[str, Any]], panels: dict[tuple[str, str], list[int]], columns: int, most: int
) -> None:
    """Cells of one colour whose opacity is the rank, so that a page may be light or dark; each has its number."""
    from matplotlib.patches import Rectangle

    grid = canvas.subplots(-(-len(panels) // columns), columns, squeeze=False)
    stacks = {stack for _, stack in panels}
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((_, stack), places) in zip(grid.flat, panels.items(), strict=False):
        roles = [role for role in MATRIX_ROLES if any(points[i]["role"] == role for i in places)]
        layers = max(points[i]["layer"] for i in places) + 1
        for i in places:
            x, y, rank = points[i]["layer"], roles.index(points[i]["role"]), points[i]["rank"]
            shade = 0.03 + 0.62 * rank / most if most else 0.0
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=SERIES[0], alpha=shade, linewidth=0, gid=gid(i)))
            axes.text(x, y, str(rank), ha="center", va="center", fontsize=7, color=INK, gid=f"{gid(i)}-text")
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(-0.5, len(roles) - 0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(layers))
        axes.set_yticks(range(len(roles)), [SYMBOLS[role] for role in roles])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer")
        title = points[places[0]]["run"] + (f", {stack}" if len(stacks) > 1 else "")
        titled(axes, textwrap.fill(title, round(8.5 * panel_width(layers))))


def compile_figure(found: Records, request: Request) -> Figure:
    return figure(named_runs(found, request))


def section(found: Records, scope: Scope) -> str:
    """The newest run of each task."""
    by_task: dict[str, Run] = {}
    for run in newest([(path, record) for path, record in found if in_scope(record, scope)]):
        if drawable(run):
            by_task.setdefault(run.key["task"], run)
    runs = list(by_task.values())[:SHOWN]
    return inline(figure(runs), scope.results) if runs else ""


def drawable(run: Run) -> bool:
    """One foreign record must not keep the others from the page."""
    try:
        return bool(points_of([run]))
    except InputError:
        return False


REPORT = report_of("figure3", TITLE, compile_figure, section, add_runs)
