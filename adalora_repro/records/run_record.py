"""RunRecord <-> metrics.json: what one run measured, with provenance.

Standard library only: reports read thousands of records and must start fast. A record is written atomically (temporary
file, fsync, rename), so a reader never sees half of one, and a full disk never costs the record that was there before.
A reader refuses a file that it cannot validate, and names the file and the reason.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adalora_repro.records import validation
from adalora_repro.records.validation import (
    AMOUNT,
    COUNT,
    FILE_NAME,
    FLAG,
    NUMBER,
    POSITIVE,
    SIZE,
    TEXT,
    Check,
    checked,
    each,
    fields,
    items,
    not_a_file,
    one_of,
    optional,
    schema,
)

T = TypeVar("T")
SCHEMA_VERSION = 1
STATUSES = ("running", "ok", "failed", "cancelled")
RECORD_NAME = "metrics.json"
WITH_A = ("lora", "lora_regu", "prune_lora")  # modules of the methods that have method.init
GPU_MEMORY = "cuda allocator"  # what the peak memory of a run on a GPU is of
RUN_LEVELS = 5  # of folders below ``runs``, see ``run_folder``
LARGEST = 64 << 20  # bytes of a record; usual are a few thousand

# What the parts of a record must look like. Every field that a report reads has a check, so that no report has to check
# again; a field without one may hold any JSON value.

KEY_FIELDS: dict[str, Check] = {
    **dict.fromkeys(("backbone", "task", "method", "budget", "protocol", "data", "variant", "hash"), TEXT),
    **{"lr": POSITIVE, "seed": COUNT, "total_steps": COUNT, "max_examples": optional(SIZE)},
}
EVALUATION = fields({"metrics": each(NUMBER), "step": COUNT}, {"holdout": each(NUMBER)})
BUDGET = dict.fromkeys(
    ("n", "r", "d", "b_0", "b_T", "t_i", "t_f", "delta_t", "mask_events", "params", "wider"), optional(COUNT)
) | {"gamma": NUMBER}
PROGRESS = {"step": COUNT, "total_steps": COUNT, "updated": AMOUNT, "host": TEXT, "pid": COUNT}
ENVIRONMENT = fields(
    {},
    {
        "device": TEXT,
        "threads": COUNT,
        "processes": COUNT,
        "versions": each(TEXT),
        "git": fields({}, {"commit": optional(TEXT), "dirty": optional(FLAG)}),
    },
)
DATA = fields(
    {},
    {
        "source": TEXT,
        **dict.fromkeys(("rows", "windows", "skipped"), each(COUNT)),
        **dict.fromkeys(("sha256", "rows_sha256"), each(TEXT)),  # of a local file's bytes, of its rows
    },
)
SETTINGS = fields(
    {},
    {
        "seed": COUNT,
        "optim.lr": POSITIVE,
        "task.family": TEXT,
        "task.validation.*": FILE_NAME,
        "method.gamma": optional(NUMBER),
        "method.targets": optional(items(TEXT)),
        "method.layers": optional(items(COUNT)),
    },
)


class RecordError(ValueError):
    """A file is not a record of this program; the message names the file and the reason."""


@dataclass
class RunRecord:
    """One run (docs/records.md). Units: seconds, bytes, counts.

    Metrics have the unit of their task: GLUE's are fractions of 1, SQuAD's and ROUGE percentages.

    Attributes:
        status: ``running``, ``ok``, ``failed`` or ``cancelled``; ``error`` says why a run failed.
        key: what identifies the run, see ``KEY_FIELDS``. ``hash`` covers every result-relevant setting, ``variant``
            the same settings without learning rate and seed: runs of one variant differ in those two only.
        primary_metric: name of the metric that selects and ranks, a key of ``final["metrics"]``.
        final: ``{"metrics": {name: float}, "step": int}`` at the last step, with ``data.holdout`` also ``"holdout"``:
            the metrics of the held-out split under the same names (MNLI: accuracy_m only); ``best`` has the same form:
            the best evaluation by ``selection`` among those at the final budget (None until one exists).
        degenerate: in the final evaluation all predictions on a split of two or more examples are the same: one class,
            one score (up to rounding), no answer to any question, one summary. The metrics then do not show learning.
        params: trained parameters: ``method`` (after pruning), ``head``, ``total`` (their sum), ``at_init`` (method
            parameters at the initial budget), ``backbone`` (the frozen model, for shares).
        budget: ``n`` adapted matrices, ``r`` or ``b_0``, ``b_T`` and the phases; None for methods without matrices.
            With ``budget.match=params`` also ``params``, the number matched, and the sizes: ``r`` or ``d``, how many
            modules have one more (``wider``), and for adapters the ``widths`` by site.
        rank_pattern: adapted matrix -> triplets kept at the end; None for methods without ranks.
        progress: ``step``, ``total_steps``, ``updated`` (Unix time) and who holds the run (``host``, ``pid``).
        settings: every result-relevant setting as used, flat (``optim.lr`` -> value). ``key.hash`` is made of them;
            where T is known only from the tokenized data, of the step counts before they were scaled by it.
    """

    key: dict[str, Any] = checked(fields(KEY_FIELDS))
    primary_metric: str = checked(TEXT)
    status: str = checked(one_of(*STATUSES), default="running", required=True)
    error: str | None = checked(optional(TEXT), default=None)
    final: dict[str, Any] | None = checked(optional(EVALUATION), default=None)
    best: dict[str, Any] | None = checked(optional(EVALUATION), default=None)
    degenerate: bool = checked(FLAG, default=False)
    params: dict[str, int] = checked(each(COUNT), default_factory=dict)
    budget: dict[str, Any] | None = checked(optional(fields({}, BUDGET)), default=None)
    rank_pattern: dict[str, int] | None = checked(optional(each(COUNT)), default=None)
    progress: dict[str, Any] = checked(fields({}, PROGRESS), default_factory=dict)
    time: dict[str, float] = checked(each(AMOUNT), default_factory=dict)
    memory: dict[str, Any] = checked(fields({}, {"peak": AMOUNT, "of": TEXT}), default_factory=dict)
    environment: dict[str, Any] = checked(ENVIRONMENT, default_factory=dict)
    data: dict[str, Any] = checked(DATA, default_factory=dict)
    settings: dict[str, Any] = checked(SETTINGS, default_factory=dict)
    schema_version: int = checked(SIZE, default=SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, its identity first so that a person sees it first."""
        first = ("schema_version", "status", "error", "key", "primary_metric", "final", "best", "degenerate")
        values = dataclasses.asdict(self)
        return {name: values.pop(name) for name in first} | values

    def measured(self) -> dict[str, Any]:
        """What a repeated or resumed run must reproduce: all fields except for times, memory, machine and progress."""
        volatile = ("time", "memory", "environment", "progress")
        return {name: value for name, value in self.to_json().items() if name not in volatile}


CHECK = schema(RunRecord)


def constructed(record: type[T], check: Check, version: int, values: Any, where: str) -> T:
    """A dataclass from JSON values of this schema version that pass ``check``.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """
    try:
        validation.OBJECT(values, "the file")
        if type(values.get("schema_version")) is not int or values["schema_version"] != version:
            actual = validation.shown(values.get("schema_version"))
            raise ValueError(f"schema_version {actual}, this program reads {version}")
        check(values, "")
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None
    return record(**values)


def validate(values: Any, where: str) -> RunRecord:
    """JSON values -> RunRecord.

    Raises:
        RecordError: naming ``where`` and the first thing that is wrong.
    """
    record = constructed(RunRecord, CHECK, SCHEMA_VERSION, values, where)
    if record.status != "ok":
        return record
    if record.final is None:
        raise RecordError(f"{where}: status ok without a final evaluation")
    for name, entry in (("final", record.final), ("best", record.best)):
        if entry is None:
            continue
        for part, owner in (("metrics", name), ("holdout", f"{name}.holdout")):
            if record.primary_metric not in entry.get(part, entry["metrics"]):
                raise RecordError(f"{where}: {owner} has no metric '{record.primary_metric}'")
        if ("holdout" in entry) != ("holdout" in record.final):
            raise RecordError(f"{where}: one of final and best has a held-out split, the other has none")
    return record


def figures_to_choose_by(entry: Mapping[str, Any]) -> dict[str, float]:
    """Of an evaluation (``final`` or ``best``): the held-out split's where it has one, otherwise the reported ones."""
    figures: dict[str, float] = entry.get("holdout", entry["metrics"])
    return figures


def content_of(path: Path, most: int = LARGEST) -> bytes:
    """The content of a file. Only regular files are opened: a pipe would block for ever, a device may have no end.

    Raises:
        RecordError: it is not a regular file, is larger than ``most`` bytes, or cannot be read; the message names the
            file and the reason.
        FileNotFoundError: there is no such file.
    """
    try:
        status = path.stat()
        if kind := not_a_file(status.st_mode):
            raise RecordError(f"{path}: {kind}, not a file")
        if status.st_size > most:
            raise RecordError(f"{path}: {status.st_size:,} bytes, more than the {most:,} allowed")
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise RecordError(f"{path}: a broken link") from None
        raise
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None


def read(path: Path) -> RunRecord:
    """Reads and validates one record.

    Raises:
        RecordError: damaged, foreign or from another schema version; the message names the file and why.
        FileNotFoundError: there is none.
    """
    return read_json(path, validate)


def read_json(path: Path, validate: Callable[[Any, str], T]) -> T:
    """Reads a JSON file; returns ``validate(value, name of the file)``. Raises as ``read``."""
    content = content_of(path)
    try:
        return validate(validation.parse(content), str(path))
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None


def stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings; those that did not exist when it was made have the value of the earlier behaviour."""
    earlier: dict[str, Any] = {"train.group_by_length": settings.get("train.padding") == "longest"}
    if settings.get("method.module") in WITH_A:
        earlier["method.init"] = "normal"
    return earlier | dict(settings)


def finished(where: Path) -> tuple[Path, RunRecord]:
    """The record of a finished run and its path, given the run's folder or the record itself.

    Raises:
        RecordError: there is no record, it is damaged, or the run is not finished; the message names the file.
    """
    path = where / RECORD_NAME if where.is_dir() else where
    try:
        record = read(path)
    except FileNotFoundError:
        raise RecordError(f"no record '{path}': name a run's folder or its {RECORD_NAME}") from None
    if record.status != "ok":
        raise RecordError(f"{path}: the run is not finished ({record.status})")
    return path, record


def ranks(where: Path) -> tuple[dict[str, int], str | None]:
    """Matrix -> rank: the final ranks of a finished run, with its budget; or those of a file, of no budget.

    Args:
        where: the run's folder or its record; or a JSON file {matrix: rank}.

    Raises:
        RecordError: there is no such file, the run is not finished, or it has no ranks; the message names the file.
    """
    if where.is_file() and (plain := read_json(where, _plain_ranks)):
        return plain, None
    path, record = finished(where)
    pattern = record.rank_pattern or {}
    if not any(pattern.values()):
        raise RecordError(f"{path}: method '{record.key['method']}' has no ranks")
    return pattern, record.key["budget"]


def _plain_ranks(value: Any, _: str) -> dict[str, int]:
    """A JSON value as {matrix: rank}; {} if it is something else, a record say.

    Raises:
        ValueError: a rank is no whole number, or all are 0.
    """
    if not isinstance(value, dict) or not value or "schema_version" in value:
        return {}
    each(COUNT)(value, "rank")
    if not any(value.values()):
        raise ValueError("every rank is 0")
    return value


def write(record: RunRecord, folder: Path) -> Path:
    """Writes ``folder/metrics.json`` atomically and returns its path.

    Raises:
        RecordError: the record would not be readable (checked before anything is written).
        OSError: the disk is full or the folder not writable; the record that was there survives.
    """
    path = folder / RECORD_NAME
    write_atomic(path, validated(record.to_json(), path, validate))
    return path


def validated(values: dict[str, Any], path: Path, validate: Callable[[Any, str], object]) -> bytes:
    """The values as the content of a file, checked as a reader will check them.

    Raises:
        RecordError: the reader would refuse it.
    """
    try:
        content = validation.dump(values, indent=1)
        validate(validation.parse(content), str(path))
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    return content


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replaces ``path`` by ``content``: even after a crash or on a full disk, the old or the new file is complete.

    The permissions of the new file follow the umask.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):  # the error that is raised says more
            new.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed ``write_atomic`` left in ``folder``; nobody else may be writing there."""
    for path in folder.glob(f".*.{'[0-9a-f]' * 8}"):
        path.unlink(missing_ok=True)


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes files beside a record, each atomically: a JSON value, or the rows of a ``*.jsonl.gz``.

    Equal content gives equal bytes (no time stamp in the archive).
    """
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith(".jsonl.gz"):
            write_atomic(folder / name, gzip.compress(b"".join(map(validation.dump, content)), mtime=0))
        else:
            write_atomic(folder / name, validation.dump(content))


def walk(
    top: Path, name: Callable[[str], bool], levels: int, refuse: Callable[[str], None] = lambda line: None
) -> Iterator[Path]:
    """Paths below ``top`` whose names match, in a fixed order. Links to folders are not followed.

    Args:
        name: whether a name matches; the path may also be a folder or a broken link.
        levels: how many levels of folders below ``top`` may hold such names.
        refuse: is given a line for each folder that cannot be searched: no permission, or a link within ``levels``.
    """
    if top.is_symlink() and not top.exists():
        refuse(f"{top}: a broken link")

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it was moved meanwhile
            refuse(f"{error.filename}: {error.strerror}; records in it are not counted")

    for folder, folders, files in os.walk(top, onerror=unreadable):
        level = len(Path(folder).relative_to(top).parts)
        for entry in sorted((*folders, *files)):
            path = Path(folder, entry)
            if name(entry):
                yield path
            elif level < levels and path.is_symlink() and not entry.startswith("."):
                refuse(f"{path}: a link, which is not followed; records in it are not counted")
        folders[:] = sorted(entry for entry in folders if not name(entry))


def find(results: Path, refuse: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Paths of all records below ``results/runs``, in a fixed order; ``refuse``: see ``walk``.

    Records that ``force=true`` set aside are not among them.
    """
    return walk(results / "runs", lambda name: name == RECORD_NAME, RUN_LEVELS, refuse)


def read_all(results: Path) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """All readable records below ``results/runs``, and a line with the reason for each file or folder refused.

    A record counts only in the folder that its key names: a copy elsewhere would be averaged in twice.
    """
    refused: list[str] = []
    paths = find(results, refused.append)
    return read_each(paths, validate, lambda record: (run_folder(results, record.key), ""), refused)


def read_each(
    paths: Iterable[Path],
    validate: Callable[[Any, str], T],
    belongs: Callable[[T], tuple[Path, str]],
    refused: list[str],
) -> tuple[list[tuple[Path, T]], list[str]]:
    """The records in these files, and ``refused`` with a line for each file that is not counted.

    Args:
        belongs: the folder of a record, and the pattern of what may follow that folder's name.
    """
    records: list[tuple[Path, T]] = []
    for path in paths:
        try:
            record = read_json(path, validate)
            try:
                folder, suffix = belongs(record)
            except RecordError as error:
                raise RecordError(f"{path}: {error}") from None
            if path.parent.parent != folder.parent or not re.fullmatch(
                re.escape(folder.name) + suffix, path.parent.name
            ):
                raise RecordError(f"{path}: its key belongs in {folder}, a copied or renamed folder is not counted")
        except FileNotFoundError:
            continue  # replaced or moved meanwhile
        except RecordError as error:
            refused.append(str(error))
        else:
            records.append((path, record))
    return records, refused


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
