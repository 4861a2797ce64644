"""Values that golden files hold: how they are written, read and compared."""

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

SMALL = 1e-3  # a number below this is compared as one of this size
Tolerance = Mapping[str, float]

FRACTION = re.compile(r"-?\d+(\.\d+(e[+-]\d+)?|e[+-]\d+)")


def written(value: Any, suffix: str) -> str:
    """``value`` as the text of a file with this suffix."""
    if suffix == ".txt":
        return str(value)
    if suffix == ".csv":
        return _csv_text(value)
    return _json_text(value, 0) + "\n"


def parse(text: str, suffix: str) -> Any:
    """What ``written`` made the text of."""
    if suffix == ".txt":
        return text
    return rows_of(text) if suffix == ".csv" else json.loads(text)


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a report's CSV, without empty cells."""
    return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(text, newline=""))]


def _csv_text(rows: list[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def _json_text(value: Any, depth: int) -> str:
    """JSON with one line for every entry of the upper levels, so that a difference is one line."""
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict) and value and depth < 3:
        entries = (f"{json.dumps(key)}: {_json_text(entry, depth + 1)}" for key, entry in value.items())
        return "{" + inner + f",{inner}".join(entries) + outer + "}"
    if isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        return "[" + inner + f",{inner}".join(_json_text(entry, 3) for entry in value) + outer + "]"
    return json.dumps(value, ensure_ascii=False)


def differences(expected: Any, actual: Any, tolerance: Tolerance | None = None, where: str = "") -> list[str]:
    """One line for each difference: where, what was expected, what is there.

    Args:
        tolerance: "" -> how much a number with a fraction may differ, relative to its size (or to ``SMALL``); the name
            of a number -> by how much it may. Integers and other texts must be equal. None: so must all.
    """
    return list(_differences(expected, actual, tolerance or {}, where, ""))


def _differences(expected: Any, actual: Any, tolerance: Tolerance, where: str, name: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in [*expected, *(key for key in actual if key not in expected)]:
            below = f"{where}: {key}" if where else str(key)
            if key not in actual:
                yield f"{below}: is gone, was {_short(expected[key])}"
            elif key not in expected:
                yield f"{below}: is new: {_short(actual[key])}"
            else:
                yield from _differences(expected[key], actual[key], tolerance, below, key)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
            yield from _differences(one, other, tolerance, f"{where}[{number}]", name)
    elif isinstance(expected, str) and isinstance(actual, str) and "\n" in expected:
        yield from list(difflib.unified_diff(expected.splitlines(), actual.splitlines(), lineterm="", n=0))[2:]
    elif not _equal(expected, actual, tolerance.get("", 0.0), tolerance.get(name)):
        yield f"{where}: was {_short(expected)}, is {_short(actual)}"


def _equal(expected: Any, actual: Any, relative: float, absolute: float | None) -> bool:
    if expected == actual and type(expected) is type(actual):
        return True
    one, other = _fraction(expected), _fraction(actual)
    if one is None or other is None:
        return False
    return math.isclose(one, other, rel_tol=relative, abs_tol=relative * SMALL if absolute is None else absolute)


def _fraction(value: Any) -> float | None:
    """A number that was measured: a float, or a text of one with a point or an exponent."""
    if isinstance(value, str) and FRACTION.fullmatch(value):
        return float(value)
    return value if isinstance(value, float) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]} … ({len(text)} characters)"
