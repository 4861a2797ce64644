"""Where rows come from: the hub, files of the user, or text generated here.

``check``, ``train_rows`` and ``fingerprint`` need neither torch nor ``datasets``: they run before anything heavy is
imported. Every function takes the whole composed configuration.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adalora_repro.errors import InputError, one_of
from adalora_repro.tasks import sample

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

SOURCES = ("hub", "local", "sample")
TRAIN = "train"
SUFFIXES = (".jsonl.gz", ".jsonl")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
FORMAT = "one JSON object a line, UTF-8, gzip-compressed (.jsonl.gz) or plain (.jsonl)"


def splits(cfg: DictConfig) -> list[str]:
    """The training split, then those to evaluate on."""
    return [TRAIN, *dict.fromkeys(cfg.task.validation.values())]


def check(cfg: DictConfig) -> None:
    """What can be told about the data without reading them: fails before torch is imported.

    Raises:
        InputError: ``data.dir`` not given or missing, a split's file missing, unreadable or empty, its first row
            without a column; a sample size below 1; a task that ``data=sample`` has no text for.
    """
    source = cfg.data.source
    if source == "local":
        for split in splits(cfg):
            path = _file(cfg, split)
            if next(_rows(path, cfg.task), None) is None:
                raise InputError(f"{path}: empty, the {split} split of {cfg.task.name} needs rows")
    elif source == "sample":
        sample.check(cfg.task.name, _sizes(cfg))
    elif source != "hub":
        raise one_of("data source", source, SOURCES)


def train_rows(cfg: DictConfig) -> int:
    """Rows of the training split, without loading them: the official number for the hub, counted in a local file.

    Raises:
        InputError: as ``check``.
    """
    if cfg.data.source == "local":
        path = _file(cfg, TRAIN)
        with _opened(path) as file:
            return sum(1 for line in file if line.strip())
    if cfg.data.source == "sample":
        return int(cfg.data.sample_rows)
    return int(cfg.task.rows[TRAIN])


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits that change whenever the rows of any split could."""
    return _short([split_fingerprint(cfg, split) for split in splits(cfg)])


def split_fingerprint(cfg: DictConfig, split: str) -> str:
    """16 hex digits for one split: a local file's bytes, the hub's pinned revision, the generator and its settings."""
    task, source = cfg.task, cfg.data.source
    if source == "local":
        return _sha256(_file(cfg, split))[:16]
    if source == "sample":
        return _short([sample.VERSION, task.name, split, _sizes(cfg), cfg.data.sample_seed])
    return _short([task.hub, task.hub_config, task.revision, split])


def load_split(cfg: DictConfig, split: str) -> Dataset:
    """One split with the task's text columns, its label column and ``id`` where rows have one.

    Raises:
        InputError: no network and nothing cached; a file that is missing, damaged or empty; a line that is not JSON,
            lacks a column or has one of the wrong type; a label out of range. Names the file and the line (hub: row).
    """
    rows: Iterator[dict[str, Any]]
    if cfg.data.source == "hub":
        return _from_hub(cfg, split)
    if cfg.data.source == "local":
        where = str(_file(cfg, split))
        rows = _rows(_file(cfg, split), cfg.task)
    else:
        where = f"data=sample, {split}"
        rows = iter(sample.generate(cfg.task.name, split, _sizes(cfg), cfg.data.sample_seed))
    dataset = _dataset(rows, cfg.task)
    if not len(dataset):
        raise InputError(f"{where}: empty, the {split} split of {cfg.task.name} needs rows")
    return dataset


def provenance(cfg: DictConfig, rows: dict[str, int]) -> dict[str, Any]:
    """What the record says about the data; ``rows`` are those used, per split."""
    origin: dict[str, Any] = {"source": cfg.data.source, "fingerprint": fingerprint(cfg), "rows": dict(rows)}
    if cfg.data.source == "hub":
        origin |= {"hub": cfg.task.hub, "hub_config": cfg.task.hub_config, "revision": cfg.task.revision}
    elif cfg.data.source == "local":
        origin["sha256"] = {split: _sha256(_file(cfg, split)) for split in splits(cfg)}
    else:
        origin |= {"generator": sample.VERSION, "seed": cfg.data.sample_seed}
    return origin


# Rows and what must hold of them


def columns(task: DictConfig) -> list[str]:
    """Columns a row must have."""
    named = [*task.text_columns, task.label_column]
    return named if task.family == "glue" else ["id", *named]


def row_problem(task: DictConfig, row: Any) -> str | None:
    """What is wrong with one row, or None. Blank text is allowed: GLUE has some."""
    if not isinstance(row, dict):
        return f"not an object but {_kind(row)}"
    for column in columns(task):
        if column not in row:
            return f"column '{column}' is missing (found: {', '.join(map(str, row)) or 'none'})"
        if column != task.label_column and not isinstance(row[column], str):
            return f"column '{column}' must be text, is {_kind(row[column])}"
        if isinstance(row[column], str) and not row[column].isascii() and _surrogate(row[column]):
            return f"column '{column}' has half of a surrogate pair, which is no text"
    label = row[task.label_column]
    if task.family == "glue":
        return label_problem(task, label)
    if task.family == "squad":
        return _answers_problem(task.label_column, label)
    return None if isinstance(label, str) else f"column '{task.label_column}' must be text, is {_kind(label)}"


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def label_problem(task: DictConfig, label: Any) -> str | None:
    """A class is an integer in [0, num_labels); a score (num_labels 1) is a number in label_range."""
    name = task.label_column
    if isinstance(label, bool) or not isinstance(label, int | float):
        return f"column '{name}' must be a number, is {_kind(label)}"
    if task.num_labels == 1:
        low, high = task.label_range
        return None if low <= label <= high else f"{name} {label} is out of range, must be {low:g} to {high:g}"
    if not isinstance(label, int):
        return f"{name} {label} is not an integer"
    if not 0 <= label < task.num_labels:
        return f"{name} {label} is out of range, must be 0 to {task.num_labels - 1}"
    return None


def _answers_problem(name: str, answers: Any) -> str | None:
    form = f"column '{name}' must be {{text: [text, …], answer_start: [integer, …]}} of equal lengths"
    if not isinstance(answers, dict):
        return f"{form}, is {_kind(answers)}"
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return form
    whole = all(isinstance(start, int) and not isinstance(start, bool) for start in starts)
    return None if whole and all(isinstance(text, str) for text in texts) else form


def _answers(answers: dict[str, Any]) -> dict[str, Any]:
    return {"text": answers["text"], "answer_start": answers["answer_start"]}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _dataset(rows: Iterator[dict[str, Any]], task: DictConfig) -> Dataset:
    from datasets import Dataset, Features, List, Value

    text = Value("string")
    label: Any = text
    if task.family == "glue":
        label = Value("float32") if task.num_labels == 1 else Value("int64")
    elif task.family == "squad":
        label = {"text": List(text), "answer_start": List(Value("int32"))}
        rows = (row | {task.label_column: _answers(row[task.label_column])} for row in rows)
    names = columns(task)
    content: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            content[name].append(row[name])
    features = Features({name: label if name == task.label_column else text for name in names})
    return Dataset.from_dict(content, features=features)


# The hub


def _from_hub(cfg: DictConfig, split: str) -> Dataset:
    from datasets import load_dataset

    task = cfg.task
    try:
        dataset = load_dataset(task.hub, task.hub_config, split=split, revision=task.revision)
    except OSError as error:  # ConnectionError and "not found" are OSErrors, and so is a disk that cannot be written
        if error.errno in DISK_ERRORS:
            raise InputError(f"data=hub: cannot store {task.hub} below HF_HOME: {_first_line(error)}") from None
        raise InputError(
            f"data=hub: cannot load {task.hub} ({_first_line(error)}); without a network use data=local data.dir=DIR "
            "or data=sample, or run once with a network: later runs use the cache in HF_HOME"
        ) from None
    where = f"{task.hub} ({task.hub_config}) {split}" if task.hub_config else f"{task.hub} {split}"
    if not len(dataset):
        raise InputError(f"{where}: empty, {task.name} needs rows")
    missing = [name for name in columns(task) if name not in dataset.column_names]
    if missing:
        raise InputError(f"{where}: column '{missing[0]}' is missing (found: {', '.join(dataset.column_names)})")
    dataset = dataset.select_columns(columns(task))
    if task.family == "glue":
        for row, label in enumerate(dataset[task.label_column]):
            if problem := label_problem(task, label):
                raise InputError(f"{where}, row {row}: {problem}")
    return dataset


# Files of the user


def _file(cfg: DictConfig, split: str) -> Path:
    """The file of one split: data.dir/<task>/<split>.jsonl.gz or .jsonl."""
    if not cfg.data.dir:
        raise InputError(f"data=local needs data.dir=DIR, a folder with {cfg.task.name}/{split}.jsonl.gz: {FORMAT}")
    root = Path(cfg.data.dir).expanduser()
    if not root.is_dir():
        raise InputError(f"data.dir={cfg.data.dir}: no such folder")
    for suffix in SUFFIXES:
        path = root / cfg.task.name / f"{split}{suffix}"
        if path.is_file():
            return path
    raise InputError(f"{root / cfg.task.name / (split + SUFFIXES[0])}: no such file; it must hold {FORMAT}")


def _rows(path: Path, task: DictConfig) -> Iterator[dict[str, Any]]:
    """Checked rows of a file; a line with nothing on it is skipped.

    Raises:
        InputError: naming the file, the line and what is wrong with it.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                raise InputError(f"{path}:{number}: not JSON ({_first_line(error)}); expected {FORMAT}") from None
            if problem := row_problem(task, row):
                raise InputError(f"{path}:{number}: {problem}")
            yield row


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; damage found while reading is the user's to repair, so it is an InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise InputError(f"{path}: cannot be read ({_first_line(error)}); expected {FORMAT}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sizes(cfg: DictConfig) -> dict[str, int]:
    evaluation = dict.fromkeys(splits(cfg)[1:], int(cfg.data.sample_validation_rows))
    return {TRAIN: int(cfg.data.sample_rows)} | evaluation


def _short(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
