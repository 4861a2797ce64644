"""What each example got in a finished run, from the files beside its record (README: what a record holds).

Standard library only: a file is read when a test asks for it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_repro.records import validation
from adalora_repro.records.run_record import RecordError, RunRecord, content_of
from adalora_repro.records.selection import Run
from adalora_repro.reports.significance import BY_CLASS, MEASURES, NoTest

LARGEST = 1e50  # what is beyond, or is no number, is damage
CLASSES = 1000  # most classes of a classification; counting by class takes memory for each
ROWS, UNPACKED = 1_000_000, 128 << 20  # most rows and bytes of a file; the n-best lists of SQuAD 2.0 have 40 million
#: by family: the file, and the figures in it with the measure that makes the metric of them and points of one unit
FILES = {
    "squad": ("nbest.jsonl.gz", {"exact": ("accuracy", 100.0), "f1": ("mean", 100.0)}),
    "summarization": (
        "predictions.jsonl.gz",
        dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), ("mean", 1.0)),
    ),
}


@dataclass(frozen=True)
class Examples:
    """One metric's examples in one evaluation.

    Attributes:
        measure: what of ``significance.MEASURES`` makes the metric of them.
        names: what tells that two runs saw the same examples in the same order: ids, or in GLUE the labels.
        labels: what the measure compares ``values`` with; ones where the values are scores.
        values: predictions, or scores in the unit of the metric.
        scale: points of one unit of ``values``.
        score: the record's figure, in points.
    """

    measure: str
    names: tuple[Any, ...]
    labels: tuple[float, ...]
    values: tuple[float, ...]
    scale: float
    score: float


def read_examples(run: Run, select: str, metric: str) -> Examples:
    """The examples of ``metric`` at the checkpoint ``select`` of a run.

    Raises:
        NoTest: the metric has no figure for each example, or there is no file of them that can be read.
    """
    folder, score = run.path.parent / select, run.scores[metric]
    family = run.record.settings.get("task.family")
    if family == "glue":
        return _glue(folder, run.record, metric, score)
    if family not in FILES:
        raise NoTest("the record does not name the family of its task")
    name, measures = FILES[family]
    if metric not in measures:
        raise NoTest("no mean over the examples")
    measure, scale = measures[metric]
    rows = _rows(folder / name, (metric,))
    names = tuple(row.get("id") for row in rows)
    if None in names:
        raise NoTest(f"{folder / name} has a row without an id")
    values = tuple(float(row[metric]) for row in rows)
    return Examples(measure, names, (1.0,) * len(rows), values, scale, score)


def _glue(folder: Path, record: RunRecord, metric: str, score: float) -> Examples:
    """``<metric><suffix>``, the suffix being the split's (MNLI: _m, _mm)."""
    start = "task.validation."
    splits = {name.removeprefix(start): split for name, split in record.settings.items() if name.startswith(start)}
    for suffix, split in splits.items():
        measure = metric.removesuffix(suffix)
        if metric.endswith(suffix) and measure in MEASURES:
            path = folder / f"predictions.{split}.jsonl.gz"
            rows = _rows(path, ("label", "prediction"))
            labels, values = (tuple(float(row[name]) for row in rows) for name in ("label", "prediction"))
            if measure in BY_CLASS and len({*labels, *values}) > CLASSES:
                raise NoTest(f"{path} has more than {CLASSES:,} classes")
            return Examples(measure, labels, labels, values, 100.0, score)
    raise NoTest("no figure that can be made from predictions")


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        with gzip.open(io.BytesIO(content_of(path))) as file:
            content = file.read(UNPACKED + 1)
        if len(content) > UNPACKED:
            raise NoTest(f"{path} unpacks to more than {UNPACKED:,} bytes")
        lines = content.splitlines()
        if len(lines) > ROWS:
            raise NoTest(f"{path} has more than {ROWS:,} rows")
        rows = [validation.parse(line) for line in lines]
    except FileNotFoundError:
        raise NoTest(f"no {path.name} beside a record") from None
    except RecordError as error:
        raise NoTest(str(error)) from None
    except NoTest:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise NoTest(f"{path} cannot be read ({type(error).__name__})") from None
    if not rows:
        raise NoTest(f"{path} is empty")
    for row in rows:
        for name in fields:
            number = row.get(name) if isinstance(row, dict) else None
            if not isinstance(number, int | float) or not -LARGEST <= number <= LARGEST:
                raise NoTest(f"{path} has a row whose {name} is no number")
    return rows
