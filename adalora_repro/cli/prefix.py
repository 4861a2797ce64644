"""Lines of a run of a sweep begin with which of them it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


class Prefixed:
    """A text stream that writes ``prefix`` before each line; everything else it leaves to ``stream``."""

    def __init__(self, stream: Any, prefix: str) -> None:
        self.stream, self.prefix = stream, prefix
        self.line_begins = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(f"{self.prefix} {line}" if self.line_begins and line.strip() else line)
            self.line_begins = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Inside, lines on standard output and standard error begin with ``prefix``; a terminal's bar keeps its own."""
    out, err = sys.stdout, sys.stderr
    sys.stdout = cast(Any, Prefixed(out, prefix))
    if not err.isatty():
        sys.stderr = cast(Any, Prefixed(err, prefix))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
