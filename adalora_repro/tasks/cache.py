"""Tokenized splits kept between runs, in a folder that any number of runs may share.

An entry is a folder named by everything its content depends on, with ``manifest.json``: the SHA-256 of each of its
files, and notes. It is written beside its place and renamed, so a reader sees a whole entry or none, and two runs may
write the same one. An entry whose files do not match is made again: a damaged cache must not change a result.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass
class Entry:
    """A tokenized split, and what its making found out (JSON types)."""

    dataset: Dataset
    notes: dict[str, Any] = field(default_factory=dict)


def key(*parts: Any) -> str:
    """32 hex digits of everything that the content depends on (JSON types)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


def version(package: str) -> str:
    """The installed version of a package that affects the rows."""
    return importlib.metadata.version(package)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer does with a text, wherever it was loaded from.

    A fast tokenizer serializes itself whole, but with the truncation and padding of its last call: these are left out.
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
        content |= {"vocabulary": tokenizer.get_vocab(), "special": {k: str(v) for k, v in _special(tokenizer).items()}}
    return key(content)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return dict(tokenizer.special_tokens_map)


def cached(root: Path, name: str, build: Callable[[], Entry]) -> Entry:
    """The entry ``root/name``, or what ``build`` returns after storing it there.

    A cache that cannot be written costs time, never the run: it is reported and gone without.
    """
    folder = root / name
    found = _read(folder)
    if found is not None:
        return found
    entry = build()
    try:
        _write(entry, folder)
    except OSError as error:
        found = _read(folder)  # another run may have been faster
        if found is not None:
            return found
        logger.warning("tokenized data are not kept: %s (data.cache_dir chooses another folder)", error)
        return entry
    return _read(folder) or entry


def _read(folder: Path) -> Entry | None:
    from datasets import load_from_disk

    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["files"] != _sums(folder):
            raise ValueError("a file differs from what was written")
        return Entry(load_from_disk(folder), manifest["notes"])
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        logger.warning("cache entry %s is damaged and made again: %s", folder, error)
        return None


def _write(entry: Entry, target: Path) -> None:
    """Stores an entry; one that was there was found damaged (or was written by another run meanwhile) and goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        entry.dataset.save_to_disk(folder / "entry")
        manifest = {"files": _sums(folder / "entry"), "notes": entry.notes}
        (folder / "entry" / MANIFEST).write_text(json.dumps(manifest, allow_nan=False), encoding="utf-8")
        try:
            os.rename(folder / "entry", target)
        except OSError:  # there is one: put it away in one step, for another run may be writing the same
            os.rename(target, folder / "old")
            os.rename(folder / "entry", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
