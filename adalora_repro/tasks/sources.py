"""Where rows come from: the hub, files of the user, or text generated here.

``check``, ``train_rows`` and ``fingerprint`` need neither torch nor ``datasets``: they run before anything heavy is
imported. Every function takes the whole composed configuration.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, first_line, one_of
from adalora_repro.models import hub
from adalora_repro.records import run_record, validation
from adalora_repro.records.validation import not_a_file, shown
from adalora_repro.tasks import toy_text

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

    from adalora_repro.tasks.base import BaseTask

SOURCES = ("hub", "local", "sample")
TRAIN = "train"
SUFFIXES = (".jsonl.gz", ".jsonl")
LARGE = 2**20  # bytes; the fingerprint of a larger local file is cached, because parsing it takes seconds
FORMAT = "one JSON object a line, UTF-8, gzip-compressed (.jsonl.gz) or plain (.jsonl)"


def splits(cfg: DictConfig) -> list[str]:
    """The training split, then those to evaluate on."""
    return [TRAIN, *dict.fromkeys(cfg.task.validation.values())]


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


def check(cfg: DictConfig, rules: BaseTask) -> None:
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
            if next(_checked(_rows_of_file(path), rules, bad), None) is None:
                raise nothing_left(str(path), cfg, split, bad)
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
        return _content(cfg, TRAIN)[0]
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
        return _content(cfg, split)[1][:16]
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


def load_split(cfg: DictConfig, split: str, rules: BaseTask, bad: BadRows) -> Dataset:
    """One split with the columns of ``rules``; rows that break a rule go to ``bad``.

    Raises:
        InputError: no network and nothing cached; a file that is missing, damaged or empty; and, unless ``bad`` takes
            it, a line that is not JSON, lacks a column or has one of the wrong type, a bad label, an id that another
            row has. Names the file and the line (hub: row), and the row's id where it has one.
    """
    if cfg.data.source == "hub":
        dataset, where = _from_hub(cfg, split, rules)
        good = [i for i, _ in _checked(_rows_of_hub(dataset, where), rules, bad)]
        dataset = dataset if len(good) == len(dataset) else dataset.select(good)
    else:
        if cfg.data.source == "local":
            where = str(_file(cfg, split))
            rows = _rows_of_file(Path(where))
        else:
            where = f"data=sample, {split}"
            made = toy_text.generate(cfg.task.name, split, _sizes(cfg), cfg.data.sample_seed)
            rows = ((f"{where}, row {i}", row) for i, row in enumerate(made))
        dataset = _dataset((row for _, row in _checked(rows, rules, bad)), rules)
    if not len(dataset):
        raise nothing_left(where, cfg, split, bad)
    return dataset


def nothing_left(where: str, cfg: DictConfig, split: str, bad: BadRows) -> InputError:
    """The error for a split without a row."""
    why = f"no good row ({bad.problems[0]})" if bad.problems else "empty"
    return InputError(f"{where}: {why}, the {split} split of {cfg.task.name} needs rows")


def provenance(cfg: DictConfig, rows: dict[str, int]) -> dict[str, Any]:
    """What the record says about the data; ``rows`` are those used, per split."""
    origin: dict[str, Any] = {"source": cfg.data.source, "fingerprint": fingerprint(cfg), "rows": dict(rows)}
    if cfg.data.source == "hub":
        origin |= {"hub": cfg.task.hub, "hub_config": cfg.task.hub_config, "revision": cfg.task.revision}
    elif cfg.data.source == "local":
        origin["sha256"] = {split: _sha256(_file(cfg, split)) for split in splits(cfg)}
        origin["rows_sha256"] = {split: _content(cfg, split)[1] for split in splits(cfg)}
    else:
        origin |= {"generator": toy_text.VERSION, "seed": cfg.data.sample_seed}
    return origin


# -- rows and what must hold of them --------------------------------------------------------------------------------


class BrokenLine(str):
    """In the place of a row: why a line is none."""


def _checked(rows: Iterable[tuple[str, Any]], rules: BaseTask, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of the good ones among (where, row)."""
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        problem = row_problem(rules, row)
        name = row.get("id") if isinstance(row, dict) and "id" in rules.columns else None
        if isinstance(name, str):
            if problem is None and seen.setdefault(name, where) != where:
                problem = f"the id is also that of {seen[name]}"
            where = f"{where}: id {name!r}"
        if problem is None:
            yield number, row
        else:
            bad.add(f"{where}: {problem}")


def row_problem(rules: BaseTask, row: Any) -> str | None:
    """What is wrong with one row, or None."""
    if isinstance(row, BrokenLine):
        return row
    if not isinstance(row, dict):
        return f"not an object but {shown(row)}"
    for column in rules.columns:
        if column not in row:
            return f"column '{column}' is missing (found: {', '.join(map(str, row)) or 'none'})"
        value = row[column]
        if column == rules.cfg.task.label_column and not rules.text_label:
            continue
        if not isinstance(value, str):
            return f"column '{column}' must be text, is {shown(value)}"
        if not rules.blank_texts and not value.strip():
            return f"the {column} is empty"
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can hold halves of surrogate pairs
            return f"column '{column}' has half of a surrogate pair, which is no text"
    return rules.label_problem(row)


def _dataset(rows: Iterator[dict[str, Any]], rules: BaseTask) -> Dataset:
    """Rows as Arrow tables, a chunk at a time: as Python objects a large split would take many times its size."""
    from datasets import Dataset, concatenate_datasets

    chunks: list[Dataset] = []
    while (chunk := list(islice(rows, 10_000))) or not chunks:
        content = {name: [row[name] for row in chunk] for name in rules.columns}
        chunks.append(Dataset.from_dict(content, features=rules.features()))
    return concatenate_datasets(chunks)


# -- the hub --------------------------------------------------------------------------------------------------------


def _from_hub(cfg: DictConfig, split: str, rules: BaseTask) -> tuple[Dataset, str]:
    """A split with the columns of ``rules``, and its name for messages."""
    from datasets import load_dataset

    task = cfg.task
    where = f"{task.hub} ({task.hub_config}) {split}" if task.hub_config else f"{task.hub} {split}"
    try:
        with hub.asked():
            dataset = load_dataset(task.hub, task.hub_config, split=split, revision=task.revision)
    except OSError as error:  # ConnectionError and "not found" are OSErrors, and so is a disk that cannot be written
        raise InputError(
            f"data=hub: cannot load {task.hub} ({first_line(error)}); without a network use data=local data.dir=DIR "
            "or data=sample, or run once with a network: later runs use the cache in HF_HOME"
        ) from None
    if missing := [name for name in rules.columns if name not in dataset.column_names]:
        raise InputError(f"{where}: column '{missing[0]}' is missing (found: {', '.join(dataset.column_names)})")
    return dataset.select_columns(rules.columns), where


def _rows_of_hub(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=1_000):
        for values in zip(*batch.values(), strict=True):
            yield f"{where}, row {number}", dict(zip(batch, values, strict=True))
            number += 1


# -- files of the user ----------------------------------------------------------------------------------------------


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


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file and line number, line) of a file, blank lines left out.

    Raises:
        InputError: the file cannot be read or is damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise InputError(f"{path}: cannot be read ({first_line(error)}); expected {FORMAT}") from None


def _rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path):
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            yield where, BrokenLine(f"not JSON ({first_line(error)}); expected {FORMAT}")


def _sha256(path: Path) -> str:
    """SHA-256 of the bytes; a sweep of hundreds of runs reads them once, and again if time or size changes."""
    stat = path.stat()
    return _sha256_of(path.absolute(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, modified: int, size: int) -> str:
    del modified, size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(cfg: DictConfig, split: str) -> tuple[int, str]:
    """The number of rows of a local file, and their SHA-256.

    The hash is of the rows in order, each as JSON with sorted keys, or unchanged if not JSON; it does not depend on
    line ends, spacing, escapes, compression or a byte order mark.
    """
    path = _file(cfg, split)
    return _content_of(path, _sha256(path), Path(cfg.data.cache_dir).expanduser() / "rows")


@functools.lru_cache(maxsize=256)
def _content_of(path: Path, sha256: str, folder: Path) -> tuple[int, str]:
    kept = folder / f"{sha256}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(kept.read_bytes())
        return int(content["rows"]), str(content["fingerprint"])
    total, rows = hashlib.sha256(), 0
    for _, line in _lines(path):
        with suppress(ValueError, RecursionError):
            line = json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode()
        total.update(line + b"\n")
        rows += 1
    content = {"rows": rows, "fingerprint": total.hexdigest()}
    if path.stat().st_size >= LARGE:
        with suppress(OSError):  # without the cache the next command takes as long
            folder.mkdir(parents=True, exist_ok=True)
            run_record.write_atomic(kept, validation.dump(content))
    return rows, total.hexdigest()


def _sizes(cfg: DictConfig) -> dict[str, int]:
    evaluation = dict.fromkeys(splits(cfg)[1:], int(cfg.data.sample_validation_rows))
    return {TRAIN: int(cfg.data.sample_rows)} | evaluation


def _short(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
