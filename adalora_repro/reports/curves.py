"""Curves of a run, from the lines of its ``log.jsonl``. A damaged line (a run killed while it wrote) is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from adalora_repro.records.run_record import RecordError, content_of
from adalora_repro.records.validation import COUNT, finite

LOG_NAME = "log.jsonl"
LARGEST_LOG = 512 << 20  # bytes; one line for every step of the paper's longest run takes 250 million
LARGEST = 1e100  # differences and squares of values up to this are finite
T = TypeVar("T")


def curve(
    folder: Path, name: str, of: Callable[[Any], Any] = lambda value: value, most: int | None = None
) -> list[tuple[int, float]]:
    """What the log says of ``name`` against step.

    Args:
        name: ``loss``, ``b_t`` (triplets kept), ``evaluation`` (the metrics of the reported split, in the unit of the
            task), ``orthogonality_P`` (‖PᵀP - I‖² of every matrix in the order of the rank pattern) or
            ``orthogonality_Q`` (‖QQᵀ - I‖²).
        of: the logged value -> the number to draw; what is no number, or has none, has no point.
        most: the lines are thinned to so many before anything is parsed: logs can be long.
    """
    try:
        content = content_of(folder / LOG_NAME, LARGEST_LOG)
    except (OSError, RecordError):
        return []
    lines = [line for line in content.splitlines() if f'"{name}"'.encode() in line]
    points = []
    for line in lines if most is None else evenly(lines, most):
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            values = json.loads(line)
            step, value = values["t"], of(values[name])
            COUNT(step, "t")
            if finite(value) and abs(value) < LARGEST:
                points.append((step, float(value)))
    return points


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``items`` at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
