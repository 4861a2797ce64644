"""CostRecord <-> cost.json: what steps of one method cost beside another's, with provenance.

They lie below ``results/cost``, apart from the records of training. Standard library only, like ``run_record.py``:
reports must start fast.
"""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import suppress
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
NAMES = ("backbone", "task", "budget", "method", "protocol", "data", "precision", "padding", "weights")
KEY = fields(
    dict.fromkeys((*NAMES, "typed", "tokenizer", "device"), TEXT)
    | {"against": optional(TEXT), "batch_size": SIZE, "threads": SIZE}
)
TIMES = ("median_s", "mean_s", "epoch_s", "tokens_per_s")  # of each method
RATIOS = ("median", "epoch")
COUNTS = ("t", "examples", "tokens", "padded_tokens")  # of each pair
METHOD = fields(
    {"budget": TEXT, **dict.fromkeys(TIMES, POSITIVE), "peak_memory": optional(POSITIVE)},
    {"params": each(COUNT), "settings": OBJECT},
)
PAIR = fields({"order": items(TEXT), "seconds": each(POSITIVE)}, dict.fromkeys(COUNTS, COUNT))
INTERVAL = fields({"value": POSITIVE, "low": optional(POSITIVE), "high": optional(POSITIVE)})


@dataclass
class CostRecord:
    """One measurement. Units: seconds, bytes, counts.

    Attributes:
        key: ``NAMES``, and ``typed``: the settings of the command line that no other field holds.
        methods: the method measured and the one it is compared with -> ``budget``, ``params`` (trained), ``TIMES``,
            ``peak_memory`` (None: not measured), ``settings`` (every result-relevant one). ``epoch_s`` is ``mean_s``
            times ``epoch["steps"]``.
        pairs: one for each batch, in the order measured: ``t`` of the method, ``examples``, ``tokens`` without and
            ``padded_tokens`` with padding, ``order`` of the methods, ``seconds`` of each. In earlier records ``t``
            rises, so that steps which allocate may be too few or too many; some have the ``phase`` of the schedule.
        ratio: the method's time over that of ``key["against"]``: of ``median`` (over pairs) and ``epoch`` (sum over
            sum) the ``value`` and its interval ``low``, ``high`` (None for a single pair). None for a method measured
            alone.
        epoch: ``steps`` and ``examples`` of the task's official training split.
        memory_of: what ``peak_memory`` is of.
        created: Unix time.
    """

    key: dict[str, Any] = checked(KEY)
    methods: dict[str, dict[str, Any]] = checked(each(METHOD))
    pairs: list[dict[str, Any]] = checked(items(PAIR))
    ratio: dict[str, Any] | None = checked(optional(fields(dict.fromkeys(RATIOS, INTERVAL))))
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
    for number in itertools.count(1):
        numbered = first.with_name(f"{first.name}-{number}")
        with suppress(FileExistsError):
            numbered.mkdir(parents=True)
            break
    run_record.write_atomic(numbered / RECORD_NAME, content)
    return numbered / RECORD_NAME


def validate(values: Any, where: str) -> CostRecord:
    """JSON values -> CostRecord.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """
    record = run_record.constructed(CostRecord, CHECK, SCHEMA_VERSION, values, where)
    names = [record.key["method"], *filter(None, [record.key["against"]])]
    if list(record.methods) != names or (record.ratio is None) != (len(names) == 1):
        raise RecordError(f"{where}: methods {list(record.methods)} and their ratio are not those of the key, {names}")
    return record


def read_all(results: Path) -> tuple[list[tuple[Path, CostRecord]], list[str]]:
    """All readable records below ``results/cost``, and a line with the reason for each file or folder refused.

    A record counts only in a folder that its key names: a copy elsewhere would be one measurement more.
    """
    refused: list[str] = []
    paths = run_record.walk(results / "cost", lambda name: name == RECORD_NAME, LEVELS, refused.append)
    return run_record.read_each(paths, validate, lambda record: (folder(results, record.key), r"-\d+"), refused)
