"""Curves of a run, from the lines of its ``log.jsonl``. A damaged line (a run killed while it wrote) is passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adalora_repro.records.run_record import RecordError, RunRecord, content_of
from adalora_repro.records.validation import finite

LOG_NAME = "log.jsonl"
LARGEST_LOG = 512 << 20  # bytes; one line for every step of the paper's longest run takes 250 million
LAST_STEP = 2**53  # beyond this, floats cannot tell steps apart
T = TypeVar("T")


class Point(NamedTuple):
    step: int
    value: float


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of ``items`` at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def losses(folder: Path, most: int) -> list[Point]:
    """Training loss against step, thinned to ``most`` points before anything is parsed: logs can be long."""
    return [
        Point(values["t"], float(values["loss"]))
        for values in parsed(evenly(lines_with(folder, b'"loss"'), most))
        if is_number(values.get("loss"))
    ]


def evaluations(folder: Path, metric: str) -> list[Point]:
    """One metric of the reported split against step, in the unit of the task."""
    lines = [(values["t"], values.get("evaluation")) for values in parsed(lines_with(folder, b'"evaluation"'))]
    return [
        Point(step, float(metrics[metric]))
        for step, metrics in lines
        if isinstance(metrics, dict) and is_number(metrics.get(metric))
    ]


def budgets(folder: Path) -> list[Point]:
    """b(t), the number of triplets kept, against step; empty for a method without a schedule."""
    return [
        Point(values["t"], float(values["b_t"]))
        for values in parsed(lines_with(folder, b'"b_t"'))
        if is_number(values.get("b_t"))
    ]


def orthogonality(folder: Path, side: str, matrix: int) -> list[Point]:
    """||PᵀP - I||² (``side`` P) or ||QQᵀ - I||² (Q) of the matrix with this index in the rank pattern."""
    name = f"orthogonality_{side}"
    points = []
    for values in parsed(lines_with(folder, name.encode())):
        errors = values.get(name)
        if isinstance(errors, list) and matrix < len(errors) and is_number(errors[matrix]):
            points.append(Point(values["t"], float(errors[matrix])))
    return points


def evaluations_at_budget(folder: Path, record: RunRecord) -> int | None:
    """How many evaluations ``best`` was chosen among; None if the log does not say.

    It counts those after step t >= T - t_f for a method with phases (``lowrank.RankAllocator.at_final_budget``; with
    ``protocol=released`` at T - t_f itself only if a mask is due then), otherwise all but that of the untrained model.
    """
    budget = record.budget or {}
    t_f, delta_t = budget.get("t_f"), budget.get("delta_t")
    first = 0
    if type(t_f) is int and type(delta_t) is int and delta_t > 0:
        final = record.key["total_steps"] - t_f
        first = final + (record.key["protocol"] == "released" and final % delta_t != 0)
    steps = [values["t"] for values in parsed(lines_with(folder, b'"evaluation"')) if "evaluation" in values]
    return len({step for step in steps if step - 1 >= first}) or None


def lines_with(folder: Path, word: bytes) -> list[bytes]:
    try:
        content = content_of(folder / LOG_NAME, LARGEST_LOG)
    except (OSError, RecordError):
        return []
    return [line for line in content.splitlines() if word in line]


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
