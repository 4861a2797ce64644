"""CostRecord <-> cost.json: what steps of one method cost beside another's, with provenance.

They lie below ``results/cost``, apart from the records of training. Standard library only, like ``run_record.py``:
reports must start fast.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_repro.records import run_record
from adalora_repro.records.run_record import ENVIRONMENT, RecordError
from adalora_repro.records.validation import (
    COUNT,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    Check,
    checked,
    each,
    fields,
    items,
    optional,
    schema,
)

SCHEMA_VERSION = 1
RECORD_NAME = "cost.json"
LEVELS = 4  # of folders below ``cost``, see ``folder``

#: what identifies a measurement
KEY_FIELDS: dict[str, Check] = {
    "backbone": TEXT,
    "task": TEXT,
    "budget": TEXT,
    "method": TEXT,
    "against": optional(TEXT),
    "protocol": TEXT,
    "data": TEXT,
    "precision": TEXT,
    "padding": TEXT,
    "weights": TEXT,
    "batch_size": SIZE,
    "typed": TEXT,
    "tokenizer": TEXT,
    "device": TEXT,
    "threads": SIZE,
}
TIMES = ("median_s", "mean_s", "epoch_s", "tokens_per_s")  # of each method
RATIOS = ("median", "epoch")

# What the parts of a record must look like, as in ``run_record``.

METHOD = fields(
    {"budget": TEXT, **dict.fromkeys(TIMES, POSITIVE), "peak_memory": optional(POSITIVE)},
    {"params": each(COUNT), "settings": OBJECT},
)
PAIR = fields(
    {"order": items(TEXT), "seconds": each(POSITIVE)},
    {"phase": optional(TEXT), **dict.fromkeys(("t", "examples", "tokens", "padded_tokens"), COUNT)},
)
INTERVAL = fields({"value": POSITIVE, "low": optional(POSITIVE), "high": optional(POSITIVE)})
PHASE = fields({"median": POSITIVE, "pairs": COUNT})


@dataclass
class CostRecord:
    """One measurement. Units: seconds, bytes, counts.

    Attributes:
        key: see ``KEY_FIELDS``. ``typed`` are the settings of the command line that no other field holds.
        methods: the method measured and the one it is compared with -> ``budget``, ``params`` (trained), ``TIMES``,
            ``peak_memory`` (None: not measured), ``settings`` (every result-relevant one). ``epoch_s`` is ``mean_s``
            times ``epoch["steps"]``.
        pairs: one for each batch, in the order measured: ``t`` and ``phase`` of the method, ``examples``, ``tokens``
            without and ``padded_tokens`` with padding, ``order`` of the methods, ``seconds`` of each.
        ratio: the method's time over that of ``key["against"]``: of ``median`` (over pairs) and ``epoch`` (sum over
            sum) the ``value`` and its interval ``low``, ``high`` (None for a single pair); ``phases`` has the median
            and the number of pairs of each phase of the method's schedule. None for a method measured alone.
        epoch: ``steps`` and ``examples`` of the task's official training split.
        memory_of: what ``peak_memory`` is of.
        created: Unix time.
    """

    key: dict[str, Any] = checked(fields(KEY_FIELDS))
    methods: dict[str, dict[str, Any]] = checked(each(METHOD))
    pairs: list[dict[str, Any]] = checked(items(PAIR))
    ratio: dict[str, Any] | None = checked(optional(fields(dict.fromkeys(RATIOS, INTERVAL), {"phases": each(PHASE)})))
    epoch: dict[str, int] = checked(fields({"steps": SIZE, "examples": SIZE}))
    memory_of: str = checked(TEXT)
    environment: dict[str, Any] = checked(ENVIRONMENT)
    data: dict[str, Any] = checked(OBJECT)
    created: float = checked(POSITIVE)
    schema_version: int = checked(SIZE, default=SCHEMA_VERSION)


CHECK = schema(CostRecord)


def folder(results: Path, key: dict[str, Any]) -> Path:
    """results/cost/<backbone>/<task>/<budget>/<method>[-<against>]-<precision>-<padding>-<weights>, without its number.

    Raises:
        RecordError: a part of the key would leave ``results``.
    """
    compared = [key["method"], *([key["against"]] if key["against"] is not None else [])]
    leaf = "-".join([*compared, key["precision"], key["padding"], key["weights"]])
    return run_record.folder_below(results, "cost", [key["backbone"], key["task"], key["budget"], leaf])


def write(record: CostRecord, results: Path) -> Path:
    """Writes the record into a numbered folder of its own, beside earlier measurements; returns its path.

    Raises:
        RecordError: the record would not be readable.
        OSError: the folder cannot be written.
    """
    values = {"schema_version": record.schema_version} | dataclasses.asdict(record)
    content = run_record.validated(values, Path(RECORD_NAME), validate)
    first = folder(results, record.key)
    first.parent.mkdir(parents=True, exist_ok=True)
    taken = [re.fullmatch(rf"{re.escape(first.name)}-(\d+)", path.name) for path in first.parent.iterdir()]
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    while True:
        numbered = first.with_name(f"{first.name}-{number}")
        try:
            numbered.mkdir()
            break
        except FileExistsError:  # another process was faster
            number += 1
    try:
        run_record.write_atomic(numbered / RECORD_NAME, content)
    except BaseException:
        numbered.rmdir()
        raise
    return numbered / RECORD_NAME


def validate(values: Any, where: str) -> CostRecord:
    """JSON values -> CostRecord.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """
    record = run_record.constructed(CostRecord, CHECK, SCHEMA_VERSION, values, where)
    if problem := _contradiction(record):
        raise RecordError(f"{where}: {problem}")
    return record


def _contradiction(record: CostRecord) -> str | None:
    """Where the parts of a record contradict each other; None if they agree."""
    against, ratio = record.key["against"], record.ratio
    names = [record.key["method"], *([against] if against is not None else [])]
    if list(record.methods) != names:
        return f"methods are {list(record.methods)}, the key has {names}"
    if not record.pairs:
        return "no pairs"
    for number, pair in enumerate(record.pairs):
        if set(pair["seconds"]) != set(names) or sorted(pair["order"]) != sorted(names):
            return f"pairs[{number}] has no order and seconds of {', '.join(names)}"
    if (ratio is None) != (against is None):
        return "a ratio, but no method to compare with" if against is None else f"no ratio to {against}"
    for name in RATIOS if ratio is not None else ():
        if (ratio[name]["low"] is None) != (ratio[name]["high"] is None):  # type: ignore[index]
            return f"ratio.{name} has only one end of its interval"
    return None


def read_all(results: Path) -> tuple[list[tuple[Path, CostRecord]], list[str]]:
    """All readable records below ``results/cost``, and a line with the reason for each file or folder refused.

    A record counts only in a folder that its key names: a copy elsewhere would be one measurement more.
    """
    refused: list[str] = []
    paths = run_record.walk(results / "cost", lambda name: name == RECORD_NAME, LEVELS, refused.append)
    return run_record.read_each(paths, validate, lambda record: (folder(results, record.key), r"-\d+"), refused)
