"""Curves of a run, from the lines of its ``log.jsonl``. A damaged line (a run killed while it wrote) is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adalora_repro.records.run_record import RecordError, content_of
from adalora_repro.records.validation import finite

LOG_NAME = "log.jsonl"
LARGEST_LOG = 512 << 20  # bytes; one line for every step of the paper's longest run takes 250 million
LAST_STEP = 2**53  # beyond this, floats cannot tell steps apart
T = TypeVar("T")


class Point(NamedTuple):
    step: int
    value: float


def curve(
    folder: Path, name: str, most: int | None = None, of: Callable[[Any], Any] = lambda value: value
) -> list[Point]:
    """What the log says of ``name`` against step.

    Args:
        name: ``loss``, ``b_t`` (triplets kept), ``evaluation``, ``orthogonality_P`` (‖PᵀP - I‖² of every matrix in the
            order of the rank pattern) or ``orthogonality_Q`` (‖QQᵀ - I‖²).
        most: the lines are thinned to so many before anything is parsed: logs can be long.
        of: the logged value -> the number to draw; what is no number (``is_number``) has no point.
    """
    lines = lines_with(folder, name)
    lines = lines if most is None else evenly(lines, most)
    points = [(values["t"], of(values[name])) for values in parsed(lines) if name in values]
    return [Point(step, float(value)) for step, value in points if is_number(value)]


def evaluations(folder: Path, metric: str) -> list[Point]:
    """One metric of the reported split, in the unit of the task."""
    return curve(folder, "evaluation", of=lambda metrics: metrics.get(metric) if isinstance(metrics, dict) else None)


def orthogonality(folder: Path, side: str, matrix: int) -> list[Point]:
    """``side`` P or Q of the matrix with this index in the rank pattern."""

    def of_matrix(errors: Any) -> Any:
        return errors[matrix] if isinstance(errors, list) and matrix < len(errors) else None

    return curve(folder, f"orthogonality_{side}", of=of_matrix)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``items`` at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def lines_with(folder: Path, name: str) -> list[bytes]:
    try:
        content = content_of(folder / LOG_NAME, LARGEST_LOG)
    except (OSError, RecordError):
        return []
    return [line for line in content.splitlines() if f'"{name}"'.encode() in line]


def parsed(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among ``lines`` that have a step."""
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("t")) is int and 0 <= values["t"] < LAST_STEP:
            yield values


def is_number(value: Any) -> bool:
    """A number that can be drawn: differences and squares of such numbers are finite."""
    return finite(value) and abs(value) < 1e100
