"""Text for a terminal: nothing that a record, a file name or an error message holds may steer the terminal.

Terminals obey control characters and escape sequences, and Unicode's direction characters make a line read as what it
is not. ``clean`` makes such text harmless; ``guarded`` does the same with all that a program prints.
"""

from __future__ import annotations

import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

#: what one character may not be: control, format (direction), surrogate, private, unassigned; line and paragraph breaks
FORBIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: kept in a stream: line breaks and tabs; on standard error also what progress bars of libraries need, to go back to
#: the start of a line and to the line above
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # left out of a stream: argparse and other libraries colour what they print
LAYOUT = re.compile(r"([\n\t]+)")
PROGRESS = re.compile(r"((?:[\n\t\r]|\x1b\[A)+)")


def clean(text: str) -> str:
    """One harmless line: line breaks and tabs become blanks, any other character of ``FORBIDDEN`` a question mark."""
    return _harmless(re.sub(r"[\n\r\t]+", " ", text))


def one_line(error: BaseException) -> str:
    """The type of an error and the first 200 characters of what it says, as one harmless line."""
    text = clean(f"{type(error).__name__}: {error}".rstrip(": "))
    return text if len(text) <= 200 else f"{text[:199]}…"


def _harmless(text: str) -> str:
    if text.isprintable():  # neither FORBIDDEN nor a blank other than the space
        return text
    return "".join("?" if unicodedata.category(c) in FORBIDDEN else c for c in text)


class CleanStream:
    """A text stream that passes harmless text on to ``raw``, which it resembles in everything else."""

    def __init__(self, raw: Any, layout: re.Pattern[str] = LAYOUT) -> None:
        self.raw, self._layout = raw, layout

    def write(self, text: str) -> int:
        parts = self._layout.split(COLOUR.sub("", text))  # what the pattern matches has the odd places
        self.raw.write("".join(part if i % 2 else _harmless(part) for i, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """The stream behind a ``CleanStream``, for output that moves the cursor on purpose; another stream itself."""
    return stream.raw if isinstance(stream, CleanStream) else stream


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, standard output and standard error pass harmless text alone. An uncaught error is printed so too."""
    out, err, hook = sys.stdout, sys.stderr, sys.excepthook
    ours_out, ours_err = CleanStream(raw(out)), CleanStream(raw(err), PROGRESS)
    sys.stdout, sys.stderr = cast(Any, ours_out), cast(Any, ours_err)
    sys.excepthook = _print_error
    try:
        yield
        sys.excepthook = hook
    finally:
        if sys.stdout is cast(Any, ours_out):
            sys.stdout = out
        if sys.stderr is cast(Any, ours_err):
            sys.stderr = err


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    CleanStream(raw(sys.stderr)).write("".join(traceback.format_exception(kind, error, trace)))
