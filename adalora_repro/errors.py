"""The exception that means "the input is wrong", the exit codes that scripts rely on, and text that is safe to print.

No record, file name or error message may control the terminal: terminals obey control characters and escape sequences,
and Unicode's direction characters can make a line look like another. ``clean`` makes such text harmless; ``guarded``
does the same for everything that a program prints.
"""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(Exception):
    """Something a user typed, pointed at or provided is wrong.

    The message is one line: what is wrong, where, and the valid choices or the way out. The command-line programs
    print it without a traceback and exit with code 2.

    Attributes:
        draft: the text of a file that would put it right, which goes to standard output; or nothing.
    """

    def __init__(self, message: str, draft: str = "") -> None:
        super().__init__(message)
        self.draft = draft


def one_of(what: str, got: object, choices: Iterable[object]) -> InputError:
    """The error for an invalid choice: names the value, the nearest valid choice, and all valid choices."""
    valid = [str(choice) for choice in choices]
    return InputError(f"unknown {what} '{got}'{did_you_mean(str(got), valid)}; valid: {', '.join(valid) or 'none'}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice nearest to a name, regardless of case and punctuation; None if none is near."""
    plain = {_plain(choice): choice for choice in choices}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.65)
    return plain[close[0]] if close else None


def did_you_mean(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean …?)" with the nearest choice behind ``prefix``, or nothing."""
    choice = nearest(name, choices)
    return f" (did you mean {prefix}{choice}?)" if choice is not None else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.%]", "", name.lower())


def expanded(path: str) -> Path:
    """A path that a user typed, with ``~`` and ``~user`` filled in.

    Raises:
        InputError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"'{path}': no such home folder") from None


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error: safetensors and tokenizers, in Rust, have it in their message alone."""
    rust = re.search(r"\(os error (\d+)\)", str(error))
    return error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None


# -- text for a terminal ------------------------------------------------------------------------------------------

#: categories of characters that are replaced: control, format (direction), surrogate, private, unassigned, separators
FORBIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # removed from a stream: argparse and other libraries colour what they print
LAYOUT = re.compile(r"([\n\t]+)")  # kept in a stream
#: kept on standard error: also what progress bars of libraries need, to go back to the start of a line or a line up
PROGRESS = re.compile(r"((?:[\n\t\r]|\x1b\[A)+)")


def clean(text: str) -> str:
    """One harmless line: line breaks and tabs become blanks, any other character of ``FORBIDDEN`` a question mark."""
    return _harmless(re.sub(r"[\n\r\t]+", " ", text))


def one_line(error: BaseException) -> str:
    """The type and message of an error as one harmless line of at most 200 characters."""
    return shortened(clean(f"{type(error).__name__}: {error}".rstrip(": ")))


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message, harmless and of at most 200 characters; without a message its type."""
    lines = str(error).strip().splitlines() or ["" if isinstance(error, str) else type(error).__name__]
    return shortened(clean(lines[0].strip()))


def shortened(text: str, length: int = 200) -> str:
    """The text, cut to ``length`` characters; the last is then an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def duration(seconds: float) -> str:
    """For people: ``45 s``, ``4 min``, ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _harmless(text: str) -> str:
    if text.isprintable():  # neither FORBIDDEN nor a blank other than the space
        return text
    return "".join("?" if unicodedata.category(c) in FORBIDDEN else c for c in text)


class CleanStream:
    """A text stream that passes only harmless text on to ``raw``; everything else it leaves to ``raw``."""

    def __init__(self, raw: Any, layout: re.Pattern[str] = LAYOUT) -> None:
        self.raw, self._layout = raw, layout

    def write(self, text: str) -> int:
        parts = self._layout.split(COLOUR.sub("", text))  # parts with an odd index match the pattern
        try:
            self.raw.write("".join(part if i % 2 else _harmless(part) for i, part in enumerate(parts)))
        except OSError as error:  # progress that nobody can read ends no run, nor does a terminal that is gone
            if self._layout is not PROGRESS and error.errno != errno.EIO:
                raise
            mute(self.raw)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def close(self) -> None:
        """Closes nothing: a handler of a library's logging would close standard error when logging is set up anew."""
        self.raw.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """The stream behind a ``CleanStream``, for output that moves the cursor on purpose; any other stream as it is."""
    return stream.raw if isinstance(stream, CleanStream) else stream


def tolerate_any_locale() -> None:
    """Makes standard streams write a question mark for a character that the terminal's encoding lacks.

    Without this, printing such a character would raise an error and end the program, which therefore calls it first.
    """
    for stream in map(raw, (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks replace the streams
            stream.reconfigure(errors="replace")


def mute(stream: Any) -> None:
    """The stream leads nowhere from here on: its reader, ``head`` say, has seen enough and closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, standard output and standard error pass only harmless text; so does the trace of an uncaught error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, ``>&-``
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
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
