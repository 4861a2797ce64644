"""Where rows come from: the hub, files of the user, or text generated here.

``check``, ``train_rows`` and ``fingerprint`` need neither torch nor ``datasets``: they run before anything heavy is
imported. Every function takes the whole composed configuration.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from adalora_repro.errors import InputError, first_line, one_of
from adalora_repro.models import hub
from adalora_repro.records import run_record, validation
from adalora_repro.records.validation import not_a_file
from adalora_repro.tasks import toy_text

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from omegaconf import DictConfig

SOURCES = ("hub", "local", "sample")
TRAIN = "train"
SUFFIXES = (".jsonl.gz", ".jsonl")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
LARGE = 2**20  # bytes; the fingerprint of a larger local file is cached, because parsing it takes seconds
BLOCK = 2**20  # bytes unpacked at a time
MOST_LINE = 2**24  # bytes of one row; the longest article of CNN/DailyMail has 16 thousand
MOST_BYTES = 2**36  # of a file's unpacked text; the largest split of the tasks, of CNN/DailyMail, has 1.3e9
#: an archive that exceeds both is refused: gzip packs text of the tasks to a third, zeros to a thousandth
SUSPECT_BYTES, SUSPECT_RATIO = 2**28, 100
FORMAT = "one JSON object a line, UTF-8, gzip-compressed (.jsonl.gz) or plain (.jsonl)"


def splits(cfg: DictConfig) -> list[str]:
    """The training split, then those to evaluate on."""
    return [TRAIN, *dict.fromkeys(cfg.task.validation.values())]


class RowRules(Protocol):
    """What a family says of its rows."""

    columns: list[str]  # those a row must have; all are text but the task's label column

    def row_problem(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row that has its columns; None if nothing."""
        ...

    def features(self) -> Features:
        """Types of ``columns``."""
        ...


class BadRows:
    """Bad rows of one split: the first stops the run, or with ``data.skip_invalid=true`` they are left out and kept
    here, one line each."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        """Takes one line that names a row and says what is wrong with it.

        Raises:
            InputError: rows are not to be skipped.
        """
        if not self._skip:
            raise InputError(f"{problem}; data.skip_invalid=true leaves such rows out")
        self.problems.append(problem)


def check(cfg: DictConfig, rules: RowRules) -> None:
    """What can be told about the data without reading them: fails before torch is imported.

    Raises:
        InputError: ``data.dir`` not given or missing, a split's file missing, there twice, unreadable or empty, its
            first row without a column; a sample size below 1; a task that ``data=sample`` has no text for.
    """
    source = cfg.data.source
    if source == "local":
        for split in splits(cfg):
            path = _file(cfg, split)
            bad = BadRows(cfg.data.skip_invalid)
            if next(_checked(_lines(path), cfg, rules, bad), None) is None:
                raise InputError(f"{path}: {nothing_left(bad)}, the {split} split of {cfg.task.name} needs rows")
    elif source == "sample":
        toy_text.check(cfg.task.name, _sizes(cfg))
    elif source != "hub":
        raise one_of("data source", source, SOURCES)


def train_rows(cfg: DictConfig) -> int:
    """Rows of the training split, without loading them: the official number for the hub, counted in a local file.

    Raises:
        InputError: as ``check``.
    """
    if cfg.data.source == "local":
        return _content(cfg, TRAIN).rows
    if cfg.data.source == "sample":
        return int(cfg.data.sample_rows)
    return int(cfg.task.rows[TRAIN])


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits that change whenever the rows of any split could."""
    return _short([split_fingerprint(cfg, split) for split in splits(cfg)])


def split_fingerprint(cfg: DictConfig, split: str) -> str:
    """16 hex digits for one split: a local file's rows, the hub's pinned revision, the generator and its settings."""
    task, source = cfg.task, cfg.data.source
    if source == "local":
        return _content(cfg, split).fingerprint[:16]
    if source == "sample":
        return _short([toy_text.VERSION, task.name, split, _sizes(cfg), cfg.data.sample_seed])
    return _short([task.hub, task.hub_config, task.revision, split])


def byte_fingerprint(cfg: DictConfig) -> str:
    """The former ``fingerprint`` of local files: a hash of their bytes instead of their rows."""
    return _short([_sha256(_file(cfg, split))[:16] for split in splits(cfg)])


def place(cfg: DictConfig, split: str) -> str:
    """What the messages about bad rows depend on: the path of a local file and its bytes, which decide line numbers."""
    if cfg.data.source != "local":
        return ""
    path = _file(cfg, split)
    return f"{path} {_sha256(path)}"


def load_split(cfg: DictConfig, split: str, rules: RowRules, bad: BadRows) -> Dataset:
    """One split with the columns of ``rules``; rows that break a rule go to ``bad``.

    Raises:
        InputError: no network and nothing cached; a file that is missing, damaged or empty; and, unless ``bad`` takes
            it, a line that is not JSON, lacks a column or has one of the wrong type, a bad label, an id that another
            row has. Names the file and the line (hub: row), and the row's id where it has one.
    """
    lines: Iterator[tuple[str, Any]]
    if cfg.data.source == "hub":
        dataset, where = _from_hub(cfg, split, rules), _hub_name(cfg, split)
        good = [i for i, _ in _checked(_hub_rows(dataset, where), cfg, rules, bad)]
        dataset = dataset if len(good) == len(dataset) else dataset.select(good)
    else:
        if cfg.data.source == "local":
            where = str(_file(cfg, split))
            lines = _lines(_file(cfg, split))
        else:
            where = f"data=sample, {split}"
            rows = toy_text.generate(cfg.task.name, split, _sizes(cfg), cfg.data.sample_seed)
            lines = ((f"{where}, row {i}", row) for i, row in enumerate(rows))
        dataset = _dataset((row for _, row in _checked(lines, cfg, rules, bad)), rules)
    if not len(dataset):
        raise InputError(f"{where}: {nothing_left(bad)}, the {split} split of {cfg.task.name} needs rows")
    return dataset


def nothing_left(bad: BadRows) -> str:
    """Why a split has no row."""
    return f"no good row ({bad.problems[0]})" if bad.problems else "empty"


def provenance(cfg: DictConfig, rows: dict[str, int]) -> dict[str, Any]:
    """What the record says about the data; ``rows`` are those used, per split."""
    origin: dict[str, Any] = {"source": cfg.data.source, "fingerprint": fingerprint(cfg), "rows": dict(rows)}
    if cfg.data.source == "hub":
        origin |= {"hub": cfg.task.hub, "hub_config": cfg.task.hub_config, "revision": cfg.task.revision}
    elif cfg.data.source == "local":
        origin["sha256"] = {split: _sha256(_file(cfg, split)) for split in splits(cfg)}
        origin["rows_sha256"] = {split: _content(cfg, split).fingerprint for split in splits(cfg)}
    else:
        origin |= {"generator": toy_text.VERSION, "seed": cfg.data.sample_seed}
    return origin


# Rows and what must hold of them


class BrokenLine(str):
    """In the place of a row: why a line is none."""


def _checked(
    rows: Iterable[tuple[str, Any]], cfg: DictConfig, rules: RowRules, bad: BadRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of the good ones among (where, row)."""
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        problem = row_problem(cfg.task.label_column, rules, row)
        name = row.get("id") if isinstance(row, dict) and "id" in rules.columns else None
        if isinstance(name, str):
            if problem is None and seen.setdefault(name, where) != where:
                problem = f"the id is also that of {seen[name]}"
            where = f"{where}: id {name!r}"
        if problem is None:
            yield number, row
        else:
            bad.add(f"{where}: {problem}")


def row_problem(label_column: str, rules: RowRules, row: Any) -> str | None:
    """What is wrong with one row, or None."""
    if isinstance(row, BrokenLine):
        return row
    if not isinstance(row, dict):
        return f"not an object but {kind(row)}"
    for column in rules.columns:
        if column not in row:
            return f"column '{column}' is missing (found: {', '.join(map(str, row)) or 'none'})"
        if column != label_column and not isinstance(row[column], str):
            return f"column '{column}' must be text, is {kind(row[column])}"
        if isinstance(row[column], str) and (problem := text_problem(column, row[column])):
            return problem
    return rules.row_problem(row)


def text_problem(column: str, text: str) -> str | None:
    """JSON can hold halves of surrogate pairs, which no tokenizer and no file takes."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return None
    return f"column '{column}' has half of a surrogate pair, which is no text"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _dataset(rows: Iterator[dict[str, Any]], rules: RowRules) -> Dataset:
    """Rows as Arrow tables, a chunk at a time: as Python objects a large split would take many times its size."""
    from datasets import Dataset, concatenate_datasets

    features, chunks = rules.features(), []
    while chunk := list(islice(rows, 10_000)):
        content = {name: [row[name] for row in chunk] for name in rules.columns}
        chunks.append(Dataset.from_dict(content, features=features))
    if not chunks:
        return Dataset.from_dict({name: [] for name in rules.columns}, features=features)
    return concatenate_datasets(chunks)


# The hub


def _hub_name(cfg: DictConfig, split: str) -> str:
    task = cfg.task
    return f"{task.hub} ({task.hub_config}) {split}" if task.hub_config else f"{task.hub} {split}"


def _from_hub(cfg: DictConfig, split: str, rules: RowRules) -> Dataset:
    from datasets import load_dataset

    task = cfg.task
    try:
        with hub.asked():
            dataset = load_dataset(task.hub, task.hub_config, split=split, revision=task.revision)
    except OSError as error:  # ConnectionError and "not found" are OSErrors, and so is a disk that cannot be written
        if error.errno in DISK_ERRORS:
            raise InputError(f"data=hub: cannot store {task.hub} below HF_HOME: {first_line(error)}") from None
        raise InputError(
            f"data=hub: cannot load {task.hub} ({first_line(error)}); without a network use data=local data.dir=DIR "
            "or data=sample, or run once with a network: later runs use the cache in HF_HOME"
        ) from None
    missing = [name for name in rules.columns if name not in dataset.column_names]
    if missing:
        found = ", ".join(dataset.column_names)
        raise InputError(f"{_hub_name(cfg, split)}: column '{missing[0]}' is missing (found: {found})")
    return dataset.select_columns(rules.columns)


def _hub_rows(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=1_000):
        for values in zip(*batch.values(), strict=True):
            yield f"{where}, row {number}", dict(zip(batch, values, strict=True))
            number += 1


# Files of the user


def _file(cfg: DictConfig, split: str) -> Path:
    """The file of one split: data.dir/<task>/<split>.jsonl.gz or .jsonl."""
    if not cfg.data.dir:
        raise InputError(f"data=local needs data.dir=DIR, a folder with {cfg.task.name}/{split}.jsonl.gz: {FORMAT}")
    root = Path(cfg.data.dir).expanduser()
    if not os.path.isdir(root):
        raise InputError(f"data.dir={cfg.data.dir}: no such folder")
    paths = [root / cfg.task.name / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise InputError(f"{paths[0]}: no such file; it must hold {FORMAT}")
    if len(found) > 1:  # one of them may be older
        raise InputError(f"{' and '.join(map(str, found))} both hold the {split} split; move one away")
    if other := not_a_file(found[0].stat().st_mode):
        raise InputError(f"{found[0]}: {other}, not a file; it must hold {FORMAT}")
    return found[0]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, row) of a file; a line with nothing on it is skipped."""
    for number, line in enumerate(_text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            row = BrokenLine(f"not JSON ({first_line(error)}); expected {FORMAT}")
        yield f"{path}:{number}", row


def _text_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked on demand with a bounded part of them in memory.

    Raises:
        InputError: a line, the text or the archive is larger than a task's data can be; or the file is damaged.
    """
    packed, text, number, rest = path.stat().st_size, 0, 1, b""
    with _opened(path) as file:
        while block := file.read(BLOCK):
            text += len(block)
            if max(text, packed) > MOST_BYTES:
                raise InputError(f"{path}: more than {MOST_BYTES:,} bytes of text, the most that is read of one split")
            if text > max(SUSPECT_BYTES, SUSPECT_RATIO * packed):
                raise InputError(
                    f"{path}: its {packed:,} bytes unpack to more than {SUSPECT_RATIO} times as many: no text does that"
                )
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            number += len(lines)
            if len(rest) > MOST_LINE:
                raise InputError(f"{path}:{number}: a line of more than {MOST_LINE:,} bytes; expected {FORMAT}")
    if rest:
        yield rest


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; damage found while reading is the user's to repair, so it is an InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise InputError(f"{path}: cannot be read ({first_line(error)}); expected {FORMAT}") from None


_sums: dict[Path, tuple[tuple[int, int], str]] = {}


def _sha256(path: Path) -> str:
    """SHA-256 of the bytes; a sweep of hundreds of runs reads them once, and again if time or size changes."""
    stat, name = path.stat(), path.absolute()
    stamp = (stat.st_mtime_ns, stat.st_size)
    if name not in _sums or _sums[name][0] != stamp:
        with path.open("rb") as file:
            _sums[name] = stamp, hashlib.file_digest(file, "sha256").hexdigest()
    return _sums[name][1]


@dataclass(frozen=True)
class Content:
    """The content of a local file.

    Attributes:
        rows: number of rows.
        fingerprint: SHA-256 of the rows in order, each as JSON with sorted keys, or unchanged if not JSON; it does
            not depend on line ends, spacing, escapes, compression or a byte order mark.
    """

    rows: int
    fingerprint: str


_contents: dict[str, Content] = {}  # by the SHA-256 of the bytes, which determines it


def _content(cfg: DictConfig, split: str) -> Content:
    path = _file(cfg, split)
    name = _sha256(path)
    if name not in _contents:
        kept = Path(cfg.data.cache_dir).expanduser() / "rows" / f"{name}.json"
        content = _kept_content(kept)
        if content is None:
            content = _parsed_content(path)
            if path.stat().st_size >= LARGE:
                with suppress(OSError):  # without the cache the next command takes as long
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    run_record.write_atomic(kept, validation.dump(asdict(content)))
        _contents[name] = content
    return _contents[name]


def _kept_content(path: Path) -> Content | None:
    try:
        values = json.loads(path.read_bytes())
        content = Content(**values)
    except (OSError, ValueError, TypeError):
        return None
    whole = type(content.rows) is int and isinstance(content.fingerprint, str) and len(content.fingerprint) == 64
    return content if whole else None


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _parsed_content(path: Path) -> Content:
    total, rows = hashlib.sha256(), 0
    for line in _text_lines(path):
        if not (line := line.strip()):
            continue
        with suppress(ValueError, RecursionError):
            line = _CANONICAL.encode(json.loads(line)).encode()
        total.update(line + b"\n")
        rows += 1
    return Content(rows, total.hexdigest())


def _sizes(cfg: DictConfig) -> dict[str, int]:
    evaluation = dict.fromkeys(splits(cfg)[1:], int(cfg.data.sample_validation_rows))
    return {TRAIN: int(cfg.data.sample_rows)} | evaluation


def _short(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
