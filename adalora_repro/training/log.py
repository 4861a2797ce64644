"""``log.jsonl``, the curve of a run, one JSON object a line; and an evaluation's metrics as text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adalora_repro.records import validation
from adalora_repro.records.lock import LostFolderError


class Log:
    """``log.jsonl`` of a run; processes other than the main one write to ``os.devnull``."""

    def __init__(
        self, path: Path, length: int, main: bool, also: Callable[[dict[str, Any]], None] = lambda line: None
    ) -> None:
        """Opens the file and cuts off the lines after the checkpoint, which will be written again.

        Args:
            length: bytes of the lines before the checkpoint.
            main: whether this process writes.
            also: gets each line of the main process too.
        """
        self._path, self._also = path, also if main else lambda line: None
        self._file = (path if main else Path(os.devnull)).open("a+b")
        if main:
            self._file.truncate(min(length, path.stat().st_size))

    @property
    def length(self) -> int:
        """In bytes."""
        return self._file.seek(0, os.SEEK_END)

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line; a number that is not finite, which JSON does not have, is written as null.

        Raises:
            LostFolderError: the file was removed.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise LostFolderError(f"{self._path} was removed while the run was training")
        line = _finite(line)
        self._file.write(validation.dump(line))
        self._file.flush()
        self._also(line)

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(names: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The metrics of these names in an evaluation (such as ``final`` of a record), as text."""

    def text(metrics: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)

    return text(entry["metrics"]) + (f"; held out: {text(entry['holdout'])}" if "holdout" in entry else "")
