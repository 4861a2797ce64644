"""SHA-256 of files and of values, by which runs, data and caches are identified."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any


def of_file(path: Path) -> str:
    """Of the bytes; a sweep of hundreds of runs reads them once, and again if time or size changes."""
    stat = path.stat()
    return _of_file(path.absolute(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _of_file(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_values(values: Any, digits: int = 16) -> str:
    """The first hexadecimal digits of the hash of JSON types; the order of keys does not count."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()[:digits]
