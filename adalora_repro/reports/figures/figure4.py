"""Figure 4: how orthogonal P and Q are, ||PᵀP - I||² and ||QQᵀ - I||² (squared Frobenius norms), step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError
from adalora_repro.records.selection import Run
from adalora_repro.reports.curves import evenly, orthogonality
from adalora_repro.reports.figures.drawing import (
    SERIES,
    Figure,
    Records,
    add_runs,
    gid,
    inline,
    label,
    matrices,
    named_runs,
    newest,
    plain_log_axis,
    report_of,
    titled,
)
from adalora_repro.reports.spec import Request, Scope, in_scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TITLE = "Figure 4: how orthogonal P and Q are"
NORMS = {"P": "‖PᵀP − I‖²", "Q": "‖QQᵀ − I‖²"}
ROLES = ("attn_out", "ffn_out")  # the paper's Wo and Wf2
FILL = "adalora-run task=sst2 method=adalora budget=0.3M"
DASHES = ("-", "--", ":", "-.")
MARKED = 40  # points of a line that can be pointed at


def chosen_matrices(run: Run, asked: Sequence[str]) -> list[str]:
    """Names in the rank pattern: those asked for, or W_o and W_f2 of the first layer.

    Raises:
        InputError: the run has no such matrix.
    """
    names = matrices(run)
    if not asked:
        layer = names[0].rpartition(".")[0]
        return [name for name in names if name in {f"{layer}.{role}" for role in ROLES}] or names[:1]
    found = []
    for wish in asked:
        matches = [name for name in names if name == wish or name.partition(".")[2] == wish]
        if not matches:
            raise InputError(f"--matrix: {run.path} has no matrix '{wish}'; valid: {', '.join(names)}")
        found.append(matches[0])
    return found


def points_of(runs: Sequence[Run], asked: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Every logged value; a zero has no place on a log axis and is left out.

    Raises:
        InputError: a run has no such matrix, or its log no such values.
    """
    points: list[dict[str, Any]] = []
    for run in runs:
        names = matrices(run)
        before = len(points)
        for name in chosen_matrices(run, asked):
            for side in NORMS:
                for step, value in orthogonality(run.path.parent, side, names.index(name)):
                    if value > 0:
                        points.append(
                            {
                                "run": label(run),
                                "matrix": name,
                                "norm": side,
                                "step": step,
                                "value": value,
                                "record": str(run.path),
                            }
                        )
        if len(points) == before:
            raise InputError(f"{run.path}: its log.jsonl has no orthogonality of '{run.key['method']}' to draw")
    return tuple(points)


Curves = dict[tuple[str, str, str], list[int]]


def curves_of(points: Sequence[dict[str, Any]]) -> Curves:
    """(record, matrix, P or Q) -> places of its points."""
    curves: Curves = {}
    for place, point in enumerate(points):
        curves.setdefault((point["record"], point["matrix"], point["norm"]), []).append(place)
    return curves


def figure(runs: Sequence[Run], asked: Sequence[str] = ()) -> Figure:
    points = points_of(runs, asked)
    curves = curves_of(points)
    panels = list(dict.fromkeys(matrix for _, matrix, _ in curves))
    said = "; ".join(f"{label(run)}, {run.key['backbone']}" for run in runs)
    return Figure(
        "figure4",
        TITLE,
        f"{said or 'No finished AdaLoRA run yet'}.",
        points,
        (("run", "matrix", "norm", "step", "first", "step", "last", "smallest"), *summary(points, curves)),
        lambda canvas: draw(canvas, points, curves, panels),
        (3.6 * max(1, len(panels)) + 0.3, 3.3),
        (
            "The paper's Figure 4 (SST-2, γ = 0.1) is drawn without numbers. Its text says that both norms fall to "
            "about 0.001 early in training.",
        ),
        () if runs else (FILL,),
    )


def summary(points: Sequence[dict[str, Any]], curves: Curves) -> list[tuple[str, ...]]:
    """A line for each curve; ``--format csv`` has every point."""
    lines: list[tuple[str, ...]] = []
    for places in curves.values():
        first, last = points[places[0]], points[places[-1]]
        ends = (f"{first['step']:,}", f"{first['value']:.3g}", f"{last['step']:,}", f"{last['value']:.3g}")
        least = f"{min(points[i]['value'] for i in places):.3g}"
        lines.append((first["run"], first["matrix"], NORMS[first["norm"]], *ends, least))
    return lines


def draw(canvas: Canvas, points: Sequence[dict[str, Any]], curves: Curves, panels: Sequence[str]) -> None:
    """A panel for each matrix, a colour for P and for Q, a dash for each run."""
    grid = canvas.subplots(1, len(panels), squeeze=False, sharey=True)
    runs = list(dict.fromkeys(record for record, _, _ in curves))
    for axes, panel in zip(grid[0], panels, strict=True):
        for (record, matrix, side), places in curves.items():
            if matrix != panel:
                continue
            colour = SERIES[list(NORMS).index(side)]
            name = f"{NORMS[side]}, {points[places[0]]['run']}" if len(runs) > 1 else NORMS[side]
            axes.plot(
                [points[i]["step"] for i in places],
                [points[i]["value"] for i in places],
                color=colour,
                linewidth=1.2,
                linestyle=DASHES[runs.index(record) % len(DASHES)],
                label=name,
            )
            for i in evenly(places, MARKED):
                axes.plot(points[i]["step"], points[i]["value"], "o", color=colour, markersize=3, gid=gid(i))
        axes.set_yscale("log")
        plain_log_axis(axes.yaxis)
        axes.grid(axis="y")
        axes.set_xlabel("step")
        titled(axes, panel)
    handles, names = grid[0][0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=min(2, len(names)))


def compile_figure(found: Records, request: Request) -> Figure:
    return figure(named_runs(found, request), request.args.matrix or ())


def section(found: Records, scope: Scope) -> str:
    """The newest run that logged the two norms and, of the same task, the newest with another γ."""
    ours = [(path, record) for path, record in found if in_scope(record, scope)]
    first = next(filter(logged, newest(ours)), None)
    if first is None:
        return ""
    others = [run for run in newest(ours, ("adalora", "adalora_gamma0")) if contrasts(first, run)]
    other = next(filter(logged, others), None)
    return inline(figure([first] if other is None else [first, other]), scope.results)


def logged(run: Run) -> bool:
    try:
        return bool(points_of([run], ()))
    except InputError:
        return False


def contrasts(one: Run, other: Run) -> bool:
    gammas = [run.record.settings.get("method.gamma") for run in (one, other)]
    return one.key["task"] == other.key["task"] and gammas[0] != gammas[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument(
        "--matrix",
        action="append",
        metavar="NAME",
        help="encoder.0.attn_out or 0.attn_out; several times for several (default: Wo and Wf2 of the first layer)",
    )


REPORT = report_of("figure4", TITLE, compile_figure, section, add_arguments)
