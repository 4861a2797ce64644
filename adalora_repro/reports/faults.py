"""The last line of defence of the reports: a failure in one record or one section does not stop the others.

Records are validated when they are read (``records.FIELDS``); failures that this does not prevent are caught and named.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from adalora_repro.errors import InputError, one_line

R = TypeVar("R")
T = TypeVar("T")


def fault(error: Exception) -> str:
    """One line about an unforeseen error, with the place in the source where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{one_line(error)} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else one_line(error)


def without_faulty(
    make: Callable[[Sequence[tuple[Path, R]]], T], records: Sequence[tuple[Path, R]]
) -> tuple[T, list[str]]:
    """``make`` applied to the records; if it fails, to those records with which it does not fail.

    Returns:
        The result, and one line for each record that was left out, with the reason.

    Raises:
        InputError: ``make`` raised it.
        Exception: ``make`` failed, and no single record is to blame.
    """
    try:
        return make(records), []
    except InputError:
        raise
    except Exception:
        fails_empty = failure(make, []) is not None  # then it says nothing that a single record fails too
        faults = {path: None if fails_empty else failure(make, [(path, record)]) for path, record in records}
        faulty = {path: error for path, error in faults.items() if error is not None}
        if not faulty:
            raise
    lines = [f"{path}: {fault(error)}" for path, error in faulty.items()]
    return make([(path, record) for path, record in records if path not in faulty]), lines


def failure(make: Callable[[Sequence[tuple[Path, R]]], T], records: Sequence[tuple[Path, R]]) -> Exception | None:
    """The unforeseen error of ``make``."""
    try:
        make(records)
    except InputError:
        return None
    except Exception as error:
        return error
    return None


def attempt(what: str, make: Callable[[], T], instead: T, refused: list[str]) -> T:
    """The result of ``make``; if it fails, ``instead``, and a line in ``refused`` that says ``what`` is missing."""
    try:
        return make()
    except Exception as error:
        refused.append(f"{what} could not be made: {fault(error)}")
        return instead
