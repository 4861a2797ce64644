"""CostRecord <-> cost.json: what steps of one method cost beside another's, with provenance.

Below ``results/cost``, apart from the records of training, which it never enters. Standard library only, like
``records.py``: the report must start fast.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_repro import records
from adalora_repro.records import RecordError

SCHEMA_VERSION = 1
RECORD_NAME = "cost.json"

#: what identifies a measurement
KEY_FIELDS: dict[str, tuple[type, ...]] = {
    "backbone": (str,),
    "task": (str,),
    "budget": (str,),
    "method": (str,),
    "against": (str, type(None)),
    "protocol": (str,),
    "data": (str,),
    "precision": (str,),
    "padding": (str,),
    "weights": (str,),
    "batch_size": (int,),
    "typed": (str,),
    "tokenizer": (str,),
    "device": (str,),
    "threads": (int,),
}
TIMES = ("median_s", "mean_s", "epoch_s", "tokens_per_s")  # of each method
RATIOS = ("median", "epoch")


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
    return records.folder_below(results, "cost", [key["backbone"], key["task"], key["budget"], leaf])


def write(record: CostRecord, results: Path) -> Path:
    """Files the record in a numbered folder of its own, beside the measurements before it; returns its path.

    Raises:
        RecordError: the record would not be readable.
        OSError: the folder cannot be written.
    """
    values = dataclasses.asdict(record)
    validate(values, RECORD_NAME)
    content = json.dumps({"schema_version": values.pop("schema_version")} | values, indent=1, allow_nan=False)
    first = folder(results, record.key)
    first.parent.mkdir(parents=True, exist_ok=True)
    taken = [re.fullmatch(rf"{re.escape(first.name)}-(\d+)", path.name) for path in first.parent.iterdir()]
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    while True:
        place = first.with_name(f"{first.name}-{number}")
        try:
            place.mkdir()
            break
        except FileExistsError:  # another process was faster
            number += 1
    try:
        records.write_atomic(place / RECORD_NAME, content.encode() + b"\n")
    except BaseException:
        place.rmdir()
        raise
    return place / RECORD_NAME


def validate(values: Any, where: str) -> CostRecord:
    """JSON values -> CostRecord.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """

    def refuse(why: str) -> RecordError:
        return RecordError(f"{where}: {why}")

    records.check_version(values, SCHEMA_VERSION, refuse)
    known = [field.name for field in dataclasses.fields(CostRecord)]
    for name in [*known, *values]:
        if name not in values or name not in known:
            raise refuse(f"unknown field '{name}'" if name in values else f"{name} is missing")
    for name in ("key", "methods", "epoch", "environment", "data"):
        if not isinstance(values[name], dict):
            raise refuse(f"{name} is not an object")
    if not isinstance(values["memory_of"], str):
        raise refuse("memory_of is not text")
    _check_number(values["created"], "created", refuse)
    records.check_key(values["key"], KEY_FIELDS, refuse)
    for name in ("steps", "examples"):
        _check_number(values["epoch"].get(name), f"epoch.{name}", refuse)
    against = values["key"]["against"]
    names = [values["key"]["method"], *([against] if against is not None else [])]
    if list(values["methods"]) != names:
        raise refuse(f"methods are {list(values['methods'])}, the key has {names}")
    for name, method in values["methods"].items():
        if not isinstance(method, dict) or not isinstance(method.get("budget"), str):
            raise refuse(f"methods.{name} has no budget")
        for figure in TIMES:
            _check_number(method.get(figure), f"methods.{name}.{figure}", refuse)
        if method.get("peak_memory") is not None:
            _check_number(method["peak_memory"], f"methods.{name}.peak_memory", refuse)
    _check_pairs(values["pairs"], names, refuse)
    _check_ratio(values["ratio"], against, refuse)
    return CostRecord(**values)


def _check_pairs(pairs: Any, names: list[str], refuse: records.Refuse) -> None:
    if not isinstance(pairs, list) or not pairs:
        raise refuse("no pairs")
    for number, pair in enumerate(pairs):
        seconds = pair.get("seconds") if isinstance(pair, dict) else None
        if (
            not isinstance(seconds, dict)
            or set(seconds) != set(names)
            or sorted(pair.get("order", [])) != sorted(names)
        ):
            raise refuse(f"pairs[{number}] has no order and seconds of {', '.join(names)}")
        for name, value in seconds.items():
            _check_number(value, f"pairs[{number}].seconds.{name}", refuse)


def _check_ratio(ratio: Any, against: str | None, refuse: records.Refuse) -> None:
    if against is None:
        if ratio is not None:
            raise refuse("a ratio to nothing")
        return
    for name in RATIOS:
        found = ratio.get(name) if isinstance(ratio, dict) else None
        if not isinstance(found, dict):
            raise refuse(f"no ratio.{name}")
        _check_number(found.get("value"), f"ratio.{name}.value", refuse)
        for end in ("low", "high"):
            if found.get(end) is not None:
                _check_number(found[end], f"ratio.{name}.{end}", refuse)


def _check_number(value: Any, name: str, refuse: records.Refuse) -> None:
    """Every figure of a record is a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not records.finite(value) or value <= 0:
        raise refuse(f"{name} is {value!r}")


def read_all(results: Path) -> tuple[list[tuple[Path, CostRecord]], list[str]]:
    """All readable records below ``results/cost`` and, for each file refused, one line that names it and says why.

    A record counts only in a folder that its key names: a copy elsewhere would be one measurement more.
    """
    found, refused = [], []
    for path in sorted((results / "cost").rglob(RECORD_NAME)):
        try:
            record = validate(json.loads(path.read_bytes()), str(path))
            expected = folder(results, record.key)
            if path.parent.parent != expected.parent or path.parent.name.rpartition("-")[0] != expected.name:
                raise RecordError(f"{path}: its key belongs in {expected}-N, a copied measurement is not counted")
        except RecordError as error:
            refused.append(str(error))
        except (OSError, ValueError, RecursionError) as error:
            refused.append(f"{path}: {error}")
        else:
            found.append((path, record))
    return found, refused
