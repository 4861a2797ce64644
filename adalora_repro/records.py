"""RunRecord <-> metrics.json: what one run measured, with provenance.

Standard library only: the report reads thousands of records and must start fast. A record is written atomically
(temporary file, fsync, rename), so a reader never sees half of one and a full disk never costs the record that was
there before. A reader refuses what it cannot validate and says which file and why.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
STATUSES = ("running", "ok", "failed", "cancelled")
RECORD_NAME = "metrics.json"
WITH_A = ("lora", "lora_regu", "prune_lora")  # modules of methods whose A starts as method.init says

KEY_FIELDS: dict[str, tuple[type, ...]] = {
    "backbone": (str,),
    "task": (str,),
    "method": (str,),
    "budget": (str,),
    "protocol": (str,),
    "data": (str,),
    "lr": (int, float),
    "seed": (int,),
    "total_steps": (int,),
    "max_examples": (int, type(None)),
    "variant": (str,),
    "hash": (str,),
}


class RecordError(ValueError):
    """A file is not a record of this program; the message names the file and the reason."""


@dataclass
class RunRecord:
    """One run (README, "What a record holds"). Units: seconds, bytes, counts.

    Metrics have the unit of their task: GLUE's are fractions of 1, SQuAD's and ROUGE percentages.

    Attributes:
        status: ``running``, ``ok``, ``failed`` or ``cancelled``; ``error`` says why a run failed.
        key: what identifies the run, see ``KEY_FIELDS``. ``hash`` covers every result-relevant setting, ``variant``
            the same settings without learning rate and seed: runs of one variant differ in those two only.
        primary_metric: name of the metric that selects and ranks, a key of ``final["metrics"]``.
        final: ``{"metrics": {name: float}, "step": int}`` at the last step; ``best`` likewise, the best evaluation by
            the primary metric among those at the final budget (None until one exists).
        params: trained parameters: ``method`` (after pruning), ``head``, ``total`` (their sum), ``at_init`` (method
            parameters at the initial budget), ``backbone`` (the frozen model, for shares).
        budget: ``n`` adapted matrices, ``r`` or ``b_0``, ``b_T`` and the phases; None for methods without matrices.
            With ``budget.match=params`` also ``params``, the number matched, and the sizes: ``r`` or ``d``, how many
            places have one more (``wider``), and of adapters the ``widths`` by site.
        rank_pattern: adapted matrix -> triplets kept at the end; None for methods without ranks.
        progress: ``step``, ``total_steps``, ``updated`` (Unix time) and who holds the run (``host``, ``pid``).
        settings: every result-relevant setting as used, flat (``optim.lr`` -> value). ``key.hash`` is made of them;
            where T is known only from the tokenized data, of the step counts before they were scaled by it.
    """

    key: dict[str, Any]
    primary_metric: str
    status: str = "running"
    error: str | None = None
    final: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    params: dict[str, int] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    rank_pattern: dict[str, int] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    time: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, its identity first so that a person sees it first."""
        first = ("schema_version", "status", "error", "key", "primary_metric", "final", "best")
        values = dataclasses.asdict(self)
        return {name: values.pop(name) for name in first} | values

    def measured(self) -> dict[str, Any]:
        """What must be identical when the same run is repeated or resumed: all but clocks, machine and progress."""
        volatile = ("time", "memory", "environment", "progress")
        return {name: value for name, value in self.to_json().items() if name not in volatile}


Refuse = Callable[[str], RecordError]


def check_version(values: Any, version: int, refuse: Refuse) -> None:
    """Raises what ``refuse`` makes of the reason unless ``values`` is a JSON object of this schema version."""
    if not isinstance(values, dict):
        raise refuse("not a JSON object")
    found = values.get("schema_version")
    if type(found) is not int or found != version:
        raise refuse(f"schema_version {found!r}, this program reads {version}")


def check_key(key: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]], refuse: Refuse) -> None:
    """Likewise unless ``key`` has all ``fields``, each of one of its types."""
    for name, types in fields.items():
        if name not in key:
            raise refuse(f"key.{name} is missing")
        if not isinstance(key[name], types) or isinstance(key[name], bool):
            raise refuse(f"key.{name} is {key[name]!r}")


def validate(values: Any, where: str) -> RunRecord:
    """JSON values -> RunRecord.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """

    def refuse(why: str) -> RecordError:
        return RecordError(f"{where}: {why}")

    check_version(values, SCHEMA_VERSION, refuse)
    known = {f.name for f in dataclasses.fields(RunRecord)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise refuse(f"unknown field '{unknown[0]}'")
    if values.get("status") not in STATUSES:
        raise refuse(f"status {values.get('status')!r} is none of {', '.join(STATUSES)}")
    key = values.get("key")
    if not isinstance(key, dict):
        raise refuse("no key")
    check_key(key, KEY_FIELDS, refuse)
    if not finite(key["lr"]):
        raise refuse(f"key.lr is {key['lr']!r}")
    if not isinstance(values.get("error"), str | None):
        raise refuse("error is not text")
    if not isinstance(values.get("primary_metric"), str):
        raise refuse("no primary_metric")
    for name in ("final", "best"):
        if values.get(name) is not None:
            _check_evaluation(values[name], name, refuse)
    for name in ("params", "progress", "time", "memory", "environment", "data", "settings"):
        if not isinstance(values.get(name, {}), dict):
            raise refuse(f"{name} is not an object")
    for name in ("budget", "rank_pattern"):
        if not isinstance(values.get(name), dict | None):
            raise refuse(f"{name} is not an object")
    for name, count in values.get("params", {}).items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0 or not finite(count):
            raise refuse(f"params.{name} is {count!r}")
    if values["status"] == "ok":
        if values.get("final") is None:
            raise refuse("status ok without a final evaluation")
        if values["primary_metric"] not in values["final"]["metrics"]:
            raise refuse(f"final has no metric '{values['primary_metric']}'")
        if values.get("best") is not None and values["primary_metric"] not in values["best"]["metrics"]:
            raise refuse(f"best has no metric '{values['primary_metric']}'")
    return RunRecord(**values)


def _check_evaluation(value: Any, name: str, refuse: Any) -> None:
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict) or "step" not in value:
        raise refuse(f"{name} has no metrics and step")
    for metric, number in value["metrics"].items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not finite(number):
            raise refuse(f"{name}.metrics.{metric} is {number!r}")


def finite(number: int | float) -> bool:
    """Whether it is a number to compute with: not nan, not infinite, no integer beyond any float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def read(path: Path) -> RunRecord:
    """Reads and validates one record.

    Raises:
        RecordError: damaged, foreign or from another schema version; the message names the file and why.
        FileNotFoundError: there is none.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {error}") from None
    return validate(values, str(path))


def stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, with those that are left out where they say what was done before there was a choice."""
    earlier: dict[str, Any] = {"train.group_by_length": settings.get("train.padding") == "longest"}
    if settings.get("method.module") in WITH_A:
        earlier["method.init"] = "normal"
    return earlier | dict(settings)


def ranks(place: Path) -> tuple[dict[str, int], str]:
    """The final ranks of a finished run, matrix -> rank, and the budget they are of.

    Args:
        place: its folder or its record.

    Raises:
        RecordError: no record there, of a run that is not finished, or without ranks; the message names the file.
    """
    path = place / RECORD_NAME if place.is_dir() else place
    try:
        record = read(path)
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no record") from None
    if record.status != "ok":
        raise RecordError(f"{path}: the run is not finished ({record.status})")
    pattern = record.rank_pattern or {}
    if any(type(rank) is not int or rank < 0 for rank in pattern.values()) or not any(pattern.values()):
        raise RecordError(f"{path}: method '{record.key['method']}' has no ranks there")
    return pattern, record.key["budget"]


def write(record: RunRecord, folder: Path) -> Path:
    """Writes ``folder/metrics.json`` atomically and returns its path.

    Raises:
        RecordError: the record would not be readable (checked before anything is written).
        OSError: the disk is full or the folder not writable; the record that was there survives.
    """
    path = folder / RECORD_NAME
    values = record.to_json()
    validate(values, str(path))
    write_atomic(path, json.dumps(values, indent=1, allow_nan=False).encode() + b"\n")
    return path


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replaces ``path`` by ``content``: after a crash or a full disk either the old or the new file is there, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes what belongs beside a record, each file atomically: a JSON value, or rows of a ``*.jsonl.gz``.

    The same content gives the same bytes (no time stamp in the archive).
    """
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith(".jsonl.gz"):
            lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in content)
            write_atomic(folder / name, gzip.compress(lines.encode(), mtime=0))
        else:
            write_atomic(folder / name, json.dumps(content, allow_nan=False).encode() + b"\n")


def find(results: Path) -> Iterator[Path]:
    """Paths of all records below ``results/runs``, in a fixed order. Records set aside by ``force`` are not found."""
    runs = results / "runs"
    for folder, folders, files in os.walk(runs):
        folders.sort()
        if RECORD_NAME in files:
            yield Path(folder) / RECORD_NAME


def read_all(results: Path) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """All readable records below ``results/runs`` and, for each file refused, one line that names it and says why.

    A record counts only in the folder that its key names: a copy elsewhere would be averaged in twice.
    """
    records, refused = [], []
    for path in find(results):
        try:
            record = read(path)
            _check_place(path, results, record)
        except FileNotFoundError:
            continue  # replaced or moved while we walked
        except RecordError as error:
            refused.append(str(error))
        else:
            records.append((path, record))
    return records, refused


def _check_place(path: Path, results: Path, record: RunRecord) -> None:
    try:
        expected = run_folder(results, record.key)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if path.parent != expected:
        raise RecordError(f"{path}: its key belongs in {expected}, a copied or renamed run is not counted")


def run_folder(results: Path, key: dict[str, Any]) -> Path:
    """results/runs/<backbone>/<task>/<method>/<budget>/<protocol>-<data>-lr<lr>-seed<seed>-<hash>.

    Raises:
        RecordError: a part of the key would leave ``results`` (a separator, ``..``, empty).
    """
    leaf = f"{key['protocol']}-{key['data']}-lr{key['lr']:g}-seed{key['seed']}-{key['hash']}"
    return folder_below(results, "runs", [*(str(key[name]) for name in ("backbone", "task", "method", "budget")), leaf])


def folder_below(results: Path, top: str, parts: Sequence[str]) -> Path:
    """results/<top>/<part>/….

    Raises:
        RecordError: a part would leave ``results`` (a separator, ``..``, empty).
    """
    for part in parts:
        if not part or part.startswith(".") or any(c in part for c in "/\\\0"):
            raise RecordError(f"'{part}' cannot be a folder name")
    return results.joinpath(top, *parts)
