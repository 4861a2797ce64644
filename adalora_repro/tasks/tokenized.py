"""Tokenized splits: made by ``Dataset.map`` and kept between runs, in a folder that any number of runs may share.

An entry is a folder named by everything its content depends on: the Arrow files that ``Dataset.map`` wrote (one for
each process) and, written last, ``notes.json`` with the SHA-256 of each. An entry without its notes, or with a file
that differs from them, is made again: a damaged cache must not change a result. The fingerprint cache of ``datasets``
is not used: it would hash the whole task with its configuration, so that no two learning rates or seeds shared an
entry, and it does not verify its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.records import digests
from adalora_repro.tasks import processes

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NOTES = "notes.json"
KEY_DIGITS = 32  # of an entry's name, a hash of everything that its content depends on
PROBLEM = "problem"  # a column: what is wrong with a row that shows itself bad only when it is tokenized, else null
ROWS = 1000  # tokenized at once
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # pyarrow's are among them

#: (columns of a batch of rows, their numbers in the split) -> columns
Encode = Callable[[dict[str, list[Any]], list[int]], dict[str, Any]]


@dataclass
class Entry:
    """A tokenized split, and what its making showed (JSON types)."""

    dataset: Dataset
    notes: dict[str, Any] = field(default_factory=dict)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer does with a text, wherever it was loaded from.

    The truncation and padding of a fast tokenizer's last call are left out (``datasets`` would hash them too).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "inputs": tokenizer.model_input_names,
        "truncation_side": tokenizer.truncation_side,
    }
    if backend is not None:
        content["backend"] = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    else:
        special = {name: str(token) for name, token in dict(tokenizer.special_tokens_map).items()}
        content |= {"vocabulary": tokenizer.get_vocab(), "special": special}
    return digests.of_values([content], KEY_DIGITS)


def cached(folder: Path, build: Callable[[Path | None], Entry]) -> Entry:
    """The entry ``folder``; where there is none, what ``build`` makes, with its Arrow files at the given path.

    The files are written beside their place and renamed, so that a reader sees a whole entry or none, and two runs may
    write the same one. A cache that cannot be written costs memory, never the run: it is reported and done without.
    """
    if folder.is_dir():
        try:
            return _read(folder)
        except DAMAGE as error:
            logger.warning("cache entry %s is damaged and made again: %s", folder, error)
    new = None
    try:
        new = folder.parent / f".new-{secrets.token_hex(8)}"  # other users may read it, unlike a folder of ``tempfile``
        new.mkdir(parents=True)
        entry = build(new / "rows.arrow")
        content = {"files": _sums(new.iterdir()), "notes": entry.notes}
        (new / NOTES).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        try:
            os.rename(new, folder)
        except OSError:  # there is one: another run was faster, or it is the damaged one
            with suppress(*DAMAGE):
                return _read(folder)
            shutil.rmtree(folder)
            os.rename(new, folder)
        return _read(folder)
    except OSError as error:
        logger.warning("tokenized data are not kept: %s (data.cache_dir chooses another folder)", error)
        return build(None)
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def _read(folder: Path) -> Entry:
    """Raises one of ``DAMAGE`` if the entry is not what was written."""
    from datasets import Dataset, concatenate_datasets

    content = json.loads((folder / NOTES).read_bytes())
    if content["files"] != _sums(folder / name for name in content["files"]):
        raise ValueError("a file differs from what was written")
    parts = [Dataset.from_file(str(folder / name)) for name in sorted(content["files"])]
    return Entry(concatenate_datasets(parts), content["notes"])


def _sums(paths: Iterable[Path]) -> dict[str, str]:
    """Read anew each time: ``digests.of_file`` would take a file whose time and size are unchanged for undamaged."""
    sums = {}
    for path in paths:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def mapped(
    rows: Dataset, encode: Encode, count: int, features: Features | None, fingerprint: str, path: Path | None
) -> Dataset:
    """``encode`` over all rows, by ``count`` processes, in the file ``path`` (None: in memory).

    The rows do not depend on ``count``.

    Raises:
        Exception: what ``encode`` raised.
        RuntimeError: one of several processes was killed.
    """
    with processes.mapping() if count > 1 else nullcontext():
        return rows.map(
            encode,
            with_indices=True,
            batched=True,
            batch_size=ROWS,
            remove_columns=rows.column_names,
            features=features,
            num_proc=count if count > 1 else None,  # 1 would start a process
            new_fingerprint=fingerprint,
            load_from_cache_file=False,  # ``cached`` did not find it
            cache_file_name=None if path is None else str(path),
            keep_in_memory=path is None,
            desc="tokenizing",
        )


def good(dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The rows without a problem, and the problems of the others."""
    if PROBLEM not in dataset.column_names:
        return dataset, []
    problems = dataset[PROBLEM][:]
    dataset = dataset.remove_columns(PROBLEM)
    if any(problems):
        dataset = dataset.select([row for row, problem in enumerate(problems) if problem is None])
    return dataset, [problem for problem in problems if problem is not None]
