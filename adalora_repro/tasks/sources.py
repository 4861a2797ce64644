"""Where rows come from: the hub, files of the user, or text generated here.

``check``, ``train_rows`` and ``fingerprint`` need neither torch nor ``datasets``: they run before anything heavy is
imported. Every function takes the whole composed configuration.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adalora_repro.errors import InputError, expanded, first_line
from adalora_repro.models import hub
from adalora_repro.records import digests, run_record, validation
from adalora_repro.records.validation import not_a_file, shown
from adalora_repro.tasks import held_out, row_files, toy_text
from adalora_repro.tasks.row_files import FORMAT, BrokenLine

if TYPE_CHECKING:
    from datasets import Dataset
    from omegaconf import DictConfig

    from adalora_repro.tasks.base import BaseTask

TRAIN = "train"
JSON_LINES = row_files.SUFFIXES[:2]  # of the tasks that are on the hub
SHARE = "task.validation_share"
MOST_LABELS = 1_000  # distinct ones that are looked at before a file is loaded
LARGE = 2**20  # bytes; the fingerprint of a larger local file is cached, because parsing it takes seconds


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
    """Checks the first row of every file and the sizes of a sample, before torch is imported.

    Raises:
        InputError: ``data.dir`` not given or missing, a split's file missing, there twice, unreadable or empty, its
            first row without a column; a sample size below 1; a task that ``data=sample`` has no text for.
    """
    if cfg.data.source == "local":
        for split in splits(cfg):
            path = file_of(cfg, split)
            bad = BadRows(cfg.data.skip_invalid)
            if next(_checked(_rows(cfg, path, rules), rules, bad), None) is None:
                raise nothing_left(str(path), cfg, split, bad)
    elif cfg.data.source == "sample":
        toy_text.check(cfg.task.name, _sizes(cfg))
    elif cfg.task.hub is None:
        raise not_on_the_hub(cfg)


def not_on_the_hub(cfg: DictConfig) -> InputError:
    """The error for another source of a task that only files of the user can have."""
    return InputError(f"task={cfg.task.name} has no data set on the hub: data=local data.dir=DIR reads your files")


def train_rows(cfg: DictConfig) -> int:
    """Rows of the training split, without loading them: the official number for the hub, counted in a local file.

    Raises:
        InputError: as ``check``.
    """
    if cfg.data.source == "local":
        rows = content(cfg, TRAIN).rows
        return rows if cfg.task.validation_share is None else rows - _share(cfg, rows)
    if cfg.data.source == "sample":
        return int(cfg.data.sample_rows)
    return int(cfg.task.rows[TRAIN])


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits that change whenever the rows of any split could."""
    return digests.of_values([split_fingerprint(cfg, split) for split in splits(cfg)])


def split_fingerprint(cfg: DictConfig, split: str) -> str:
    """16 hex digits for one split: a local file's rows, the hub's pinned revision, the generator and its settings."""
    task, source = cfg.task, cfg.data.source
    if source == "local":
        rows, share = content(cfg, split).sha256, task.validation_share
        if share is None:
            return rows[:16]
        return digests.of_values([rows, held_out.SEED, share, list(task.holdout_by), split])
    if source == "sample":
        return digests.of_values([toy_text.VERSION, task.name, split, _sizes(cfg), cfg.data.sample_seed])
    return digests.of_values([task.hub, task.hub_config, task.revision, split])


def byte_fingerprint(cfg: DictConfig) -> str:
    """The former ``fingerprint`` of local files: a hash of their bytes instead of their rows."""
    return digests.of_values([digests.of_file(file_of(cfg, split))[:16] for split in splits(cfg)])


def location(cfg: DictConfig, split: str) -> str:
    """What the messages about bad rows depend on: the path of a local file and its bytes, which decide line numbers."""
    if cfg.data.source != "local":
        return ""
    path = file_of(cfg, split)
    return f"{path} {digests.of_file(path)}"


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
            where = str(file_of(cfg, split))
            rows = _rows(cfg, Path(where), rules)
        else:
            where = f"data=sample, {split}"
            made = toy_text.generate(cfg.task.name, split, _sizes(cfg), cfg.data.sample_seed)
            rows = ((f"{where}, row {i}", row) for i, row in enumerate(made))
        dataset = _dataset((row for _, row in _checked(rows, rules, bad)), rules)
        if cfg.task.validation_share is not None and len(dataset):
            count = _share(cfg, len(dataset))
            held, trained = parted(dataset, rules, count)
            if not held:
                raise groups_too_large(rules, SHARE, count)
            dataset = dataset.select(trained if split == TRAIN else held)
    if not len(dataset):
        raise nothing_left(where, cfg, split, bad)
    return dataset


def parted(rows: Dataset, rules: BaseTask, count: int) -> tuple[list[int], list[int]]:
    """Indices of the rows of train to evaluate on, and of those to train on: all but ``count``, as ``held_out.parts``.

    The first list is empty if every group of rows that share a text is larger than ``count``.
    """
    task = rules.cfg.task
    columns = list(task.text_columns)
    by = [columns.index(name) for name in task.holdout_by] or list(range(len(columns)))
    strata = [rules.stratum(label) for label in rows[task.label_column][:]]
    return held_out.parts(zip(*(rows[column][:] for column in columns), strict=True), strata, by, count)


def groups_too_large(rules: BaseTask, name: str, count: int) -> InputError:
    """The error for a part of train that is smaller than every group of rows that share a text."""
    shared = ", ".join(rules.cfg.task.holdout_by or rules.cfg.task.text_columns)
    return InputError(
        f"{name}={count}: rows of {rules.cfg.task.name} with the same {shared} are held out together, and every such "
        "group is larger than that; give a larger number"
    )


def nothing_left(where: str, cfg: DictConfig, split: str, bad: BadRows) -> InputError:
    """The error for a split without a row."""
    why = f"no valid row ({bad.problems[0]})" if bad.problems else "empty"
    return InputError(f"{where}: {why}; the {split} split of {cfg.task.name} must have at least one row")


def provenance(cfg: DictConfig, rows: dict[str, int]) -> dict[str, Any]:
    """What the record says about the data; ``rows`` are those used, per split."""
    origin: dict[str, Any] = {"source": cfg.data.source, "fingerprint": fingerprint(cfg), "rows": dict(rows)}
    if cfg.data.source == "hub":
        origin |= {"hub": cfg.task.hub, "hub_config": cfg.task.hub_config, "revision": cfg.task.revision}
    elif cfg.data.source == "local":
        origin["sha256"] = {split: digests.of_file(file_of(cfg, split)) for split in splits(cfg)}
        origin["rows_sha256"] = {split: content(cfg, split).sha256 for split in splits(cfg)}
    else:
        origin |= {"generator": toy_text.VERSION, "seed": cfg.data.sample_seed}
    return origin


# -- rows and what must hold of them --------------------------------------------------------------------------------


def _checked(rows: Iterable[tuple[str, Any]], rules: BaseTask, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of the good ones among (where, row)."""
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        problem = row_problem(rules, row)
        name = row.get("id") if isinstance(row, dict) and "id" in rules.columns else None
        if isinstance(name, str):
            if problem is None and seen.setdefault(name, where) != where:
                problem = f"duplicate id, first in {seen[name]}"
            where = f"{where}: id {name!r}"
        if problem is None:
            yield number, row
        else:
            bad.add(f"{where}: {problem}")


def missing_column(column: str, columns: Iterable[str]) -> str:
    return f"column '{column}' is missing (found: {', '.join(map(str, columns)) or 'none'})"


def row_problem(rules: BaseTask, row: Any) -> str | None:
    """What is wrong with one row, or None."""
    if isinstance(row, BrokenLine):
        return row
    if not isinstance(row, dict):
        return f"not an object but {shown(row)}"
    for column in rules.columns:
        if column not in row:
            return missing_column(column, row)
        value = row[column]
        if column == rules.cfg.task.label_column and not rules.text_label:
            continue
        if not isinstance(value, str):
            return f"column '{column}' must be text, not {shown(value)}"
        if not value.strip() and (column == rules.cfg.task.label_column or not rules.blank_texts):
            return f"the {column} is empty"
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can hold halves of surrogate pairs
            return f"column '{column}' contains an unpaired surrogate, which is not valid text"
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
    except Exception as error:  # of datasets, an HTTP library, the system: no connection, no such split, a full disk
        problem = error if isinstance(error, OSError) else error.__cause__ or error
        raise InputError(
            f"data=hub: cannot load {task.hub} ({first_line(problem)}); without a network use data=local data.dir=DIR "
            "or data=sample, or run once with a network: later runs use the cache in HF_HOME"
        ) from None
    if missing := [name for name in rules.columns if name not in dataset.column_names]:
        raise InputError(f"{where}: {missing_column(missing[0], dataset.column_names)}")
    return dataset.select_columns(rules.columns), where


def _rows_of_hub(dataset: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=1_000):
        for values in zip(*batch.values(), strict=True):
            yield f"{where}, row {number}", dict(zip(batch, values, strict=True))
            number += 1


# -- files of the user ----------------------------------------------------------------------------------------------


def present(cfg: DictConfig, split: str) -> tuple[list[Path], list[Path]]:
    """Files that may hold a split, and those that are there: ``<split>.jsonl.gz``, … in data.dir/<task>; of a task
    that is not on the hub in data.dir too, and in any format of ``row_files``.

    Raises:
        InputError: data.dir is not given or no folder.
    """
    own = cfg.task.hub is None
    if not cfg.data.dir:
        where = f"{TRAIN}.jsonl, .csv, .tsv or .parquet" if own else f"{cfg.task.name}/{split}.jsonl.gz: {FORMAT}"
        raise InputError(f"data=local needs data.dir=DIR, a folder with {where}")
    root = expanded(cfg.data.dir)
    if not os.path.isdir(root):
        problem = "a file; name its folder" if os.path.isfile(root) else "no such folder"
        raise InputError(f"data.dir={cfg.data.dir}: {problem}")
    folders = [root / cfg.task.name, root] if own else [root / cfg.task.name]
    suffixes = row_files.SUFFIXES if own else JSON_LINES
    paths = [folder / f"{split}{suffix}" for folder in folders for suffix in suffixes]
    return paths, [path for path in paths if os.path.exists(path)]


def file_of(cfg: DictConfig, split: str) -> Path:
    """The file with the rows of one split: its own, or train's if the split is a part of train's."""
    paths, files = present(cfg, split if cfg.task.validation_share is None else TRAIN)
    if not files:
        if cfg.task.hub is None:
            raise InputError(
                f"{paths[-1].parent}: no file {split}.jsonl, .csv, .tsv or .parquet for the {split} split of "
                f"{cfg.task.name}"
            )
        raise InputError(f"{paths[0]}: no such file; it must hold {FORMAT}")
    if len(files) > 1:  # one of them may be older
        raise InputError(f"{' and '.join(map(str, files))} each contain the {split} split; keep only one")
    if other := not_a_file(files[0].stat().st_mode):
        raise InputError(f"{files[0]}: {other}, not a file; it must hold {'rows' if cfg.task.hub is None else FORMAT}")
    return files[0]


def _share(cfg: DictConfig, rows: int) -> int:
    """Rows of train's file that are the validation split."""
    return held_out.size(cfg.task.validation_share, rows, SHARE)


def _rows(cfg: DictConfig, path: Path, rules: BaseTask) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file. Of a task that is not on the hub rows without an id take their number, and labels are
    those that ``rules`` make of what the file has."""
    if cfg.task.hub is not None:
        yield from row_files.rows(path)
        return
    label = cfg.task.label_column
    for number, (where, row) in enumerate(row_files.rows(path)):
        if isinstance(row, dict):
            if "id" in rules.columns:
                row["id"] = str(number if row.get("id") is None else row["id"])
            try:
                row |= {label: rules.read_label(row[label])} if label in row else {}
            except ValueError as error:
                row = BrokenLine(str(error))
        yield where, row


class Content(NamedTuple):
    """What a plan needs to know of a file, which is loaded later.

    Attributes:
        rows: their number.
        sha256: of the rows in order, each as JSON with sorted keys, or unchanged if not JSON; it does not depend on
            line ends, spacing, escapes, compression or a byte order mark. Of a task that is not on the hub only texts,
            label and id count, the last two whether they are numbers or their text.
        labels: of such a task with classes: each label as JSON, up to ``MOST_LABELS``, and where it is first.
    """

    rows: int
    sha256: str
    labels: dict[str, str]


def content(cfg: DictConfig, split: str) -> Content:
    """The content of the file with a split's rows."""
    path, task = file_of(cfg, split), cfg.task
    own = None if task.hub is not None else (*task.text_columns, "id", task.label_column)
    return _content_of(path, digests.of_file(path), expanded(cfg.data.cache_dir) / "rows", own)


@functools.lru_cache(maxsize=256)
def _content_of(path: Path, sha256: str, folder: Path, own: tuple[str, ...] | None) -> Content:
    kept = folder / f"{sha256 if own is None else digests.of_values([sha256, str(path), *own])}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(kept.read_bytes())
        return Content(int(cached["rows"]), str(cached["fingerprint"]), dict(cached.get("labels", {})))
    total, rows = hashlib.sha256(), 0
    labels: dict[str, str] = {}
    for line in _json_lines(path) if own is None else _own_lines(path, own, labels):
        total.update(line + b"\n")
        rows += 1
    made = Content(rows, total.hexdigest(), labels)
    if path.stat().st_size >= LARGE:
        with suppress(OSError):  # without the cache the next command takes as long
            folder.mkdir(parents=True, exist_ok=True)
            entry = {"rows": rows, "fingerprint": made.sha256} | ({} if own is None else {"labels": labels})
            run_record.write_atomic(kept, validation.dump(entry))
    return made


def _json_lines(path: Path) -> Iterator[bytes]:
    for _, line in row_files.lines(path):
        with suppress(ValueError, RecursionError):
            line = json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode()
        yield line


def _own_lines(path: Path, columns: tuple[str, ...], labels: dict[str, str]) -> Iterator[bytes]:
    """Rows with ``columns`` alone, of which the last is the label, each as JSON; fills ``labels``."""
    label = columns[-1]
    for where, row in row_files.rows(path):
        if isinstance(row, dict):
            if label in row and len(labels) < MOST_LABELS:
                labels.setdefault(_json(row[label]), where)
            row = {name: row[name] for name in columns if name in row}
            row |= {name: _value(row[name]) for name in ("id", label) if name in row}
        yield _json(row).encode()


def _value(value: Any) -> Any:
    """A number for its text, an object for its JSON: what CSV has of them."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    with suppress(OverflowError):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)  # Parquet has dates


def _sizes(cfg: DictConfig) -> dict[str, int]:
    evaluation = dict.fromkeys(splits(cfg)[1:], int(cfg.data.sample_validation_rows))
    return {TRAIN: int(cfg.data.sample_rows)} | evaluation
