"""CostRecord <-> cost.json: what steps of one method cost beside another's, with provenance.

Below ``results/cost``, apart from the records of training, which it never enters. Standard library only, like
``records.py``: the report must start fast.
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
    Refuse,
    each,
    fields,
    items,
    optional,
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

# What a record must look like, as in ``records.FIELDS``.

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
FIELDS = fields(
    {
        "key": fields(KEY_FIELDS),
        "methods": each(METHOD),
        "pairs": items(PAIR),
        "ratio": optional(fields(dict.fromkeys(RATIOS, INTERVAL), {"phases": each(PHASE)})),
        "epoch": fields({"steps": SIZE, "examples": SIZE}),
        "memory_of": TEXT,
        "environment": ENVIRONMENT,
        "data": OBJECT,
        "created": POSITIVE,
    },
    {"schema_version": SIZE},
    closed=True,
)


@dataclass
class CostRecord:
    """One measurement. Units: seconds, bytes, counts.

    Attributes:
        key: see ``KEY_FIELDS``. ``typed`` are the settings of the command line that no other field tells.
        methods: the method measured and the one beside it -> ``budget``, ``params`` (trained), ``TIMES``,
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

    key: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]
    ratio: dict[str, Any] | None
    epoch: dict[str, int]
    memory_of: str
    environment: dict[str, Any]
    data: dict[str, Any]
    created: float
    schema_version: int = SCHEMA_VERSION


def folder(results: Path, key: dict[str, Any]) -> Path:
    """results/cost/<backbone>/<task>/<budget>/<method>[-<against>]-<precision>-<padding>-<weights>, to be numbered.

    Raises:
        RecordError: a part of the key would leave ``results``.
    """
    compared = [key["method"], *([key["against"]] if key["against"] is not None else [])]
    leaf = "-".join([*compared, key["precision"], key["padding"], key["weights"]])
    return run_record.folder_below(results, "cost", [key["backbone"], key["task"], key["budget"], leaf])


def write(record: CostRecord, results: Path) -> Path:
    """Files the record in a numbered folder of its own, beside the measurements before it; returns its path.

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

    def refuse(why: str) -> RecordError:
        return RecordError(f"{where}: {why}")

    run_record.check_version(values, SCHEMA_VERSION, refuse)
    FIELDS(values, "", refuse)
    against = values["key"]["against"]
    names = [values["key"]["method"], *([against] if against is not None else [])]
    if list(values["methods"]) != names:
        raise refuse(f"methods are {list(values['methods'])}, the key has {names}")
    if not values["pairs"]:
        raise refuse("no pairs")
    for number, pair in enumerate(values["pairs"]):
        if set(pair["seconds"]) != set(names) or sorted(pair["order"]) != sorted(names):
            raise refuse(f"pairs[{number}] has no order and seconds of {', '.join(names)}")
    _check_ratio(values["ratio"], against, refuse)
    return CostRecord(**values)


def _check_ratio(ratio: dict[str, Any] | None, against: str | None, refuse: Refuse) -> None:
    if (ratio is None) != (against is None):
        raise refuse("a ratio, but no method to compare with" if against is None else f"no ratio to {against}")
    for name in RATIOS if ratio is not None else ():
        ends = ratio[name]["low"], ratio[name]["high"]  # type: ignore[index]
        if None in ends and ends != (None, None):
            raise refuse(f"ratio.{name} has only one end of its interval")


def read_all(results: Path) -> tuple[list[tuple[Path, CostRecord]], list[str]]:
    """All readable records below ``results/cost``, and a line with the reason for each file or folder refused.

    A record counts only in a folder that its key names: a copy elsewhere would be one measurement more.
    """
    measurements: list[tuple[Path, CostRecord]] = []
    refused: list[str] = []
    for path in run_record.walk(results / "cost", lambda name: name == RECORD_NAME, LEVELS, refused.append):
        try:
            record = run_record.read_json(path, validate)
            expected = folder(results, record.key)
            if path.parent.parent != expected.parent or path.parent.name.rpartition("-")[0] != expected.name:
                raise RecordError(f"{path}: its key belongs in {expected}-N, a copied measurement is not counted")
        except FileNotFoundError:
            continue  # it was moved meanwhile
        except RecordError as error:
            refused.append(str(error))
        else:
            measurements.append((path, record))
    return measurements, refused
