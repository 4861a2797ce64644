"""The one exception that means "the input is wrong", and the exit codes scripts rely on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(Exception):
    """Something a user typed, pointed at or provided is wrong.

    The message is one line: what is wrong, where, and the valid choices or the way out. The command-line programs
    print it without a traceback and exit with code 2.
    """


def one_of(what: str, got: object, choices: Iterable[object]) -> InputError:
    """The error for a value outside a known set: names the value, the choice most like it, and every valid choice."""
    valid = [str(choice) for choice in choices]
    return InputError(f"unknown {what} '{got}'{did_you_mean(str(got), valid)}; valid: {', '.join(valid) or 'none'}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that is most like a name, whatever the case and the punctuation; None if none is like it."""
    plain = {_plain(choice): choice for choice in choices}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.65)
    return plain[close[0]] if close else None


def did_you_mean(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean …?)" with the nearest choice behind ``prefix``, or nothing."""
    choice = nearest(name, choices)
    return f" (did you mean {prefix}{choice}?)" if choice is not None else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.%]", "", name.lower())
