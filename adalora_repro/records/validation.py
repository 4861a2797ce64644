"""JSON files of this program: how they are read, and what their values must be.

A check takes a value and its name, and raises ValueError with the reason:

    RUN = fields({"seed": COUNT, "final": optional(each(NUMBER))})
    RUN(values, "")  # ValueError: seed is -1, not a whole number of 0 or more

A dataclass states the check of a field beside it (``checked``); ``schema`` makes one check of them all.
"""

from __future__ import annotations

import dataclasses
import json
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any

from adalora_repro.errors import shortened

DEPTH = 32  # levels of nesting: a record has five; recursive code can take far more
LARGEST = 2**53  # of counts and amounts: what is beyond is damage, and floats cannot tell such counts apart
Check = Callable[[Any, str], None]


# -- reading -------------------------------------------------------------------------------------------------------


def parse(content: bytes | str) -> Any:
    """JSON -> its value, strictly by the standard.

    Raises:
        ValueError: it is not JSON in UTF-8; an object has a key twice; NaN, Infinity or a number too large for a float;
            more than ``DEPTH`` levels of nesting.
    """
    try:
        value = json.loads(
            content, object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_number
        )
        depth = _depth(value)
    except RecursionError:
        depth = DEPTH + 1
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} levels of nesting")
    return value


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {shown(next(name for name in names if names.count(name) > 1))} twice")
    return values


def _number(text: str) -> float:
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    if not finite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def dump(value: Any, indent: int | None = None) -> bytes:
    """A value as one JSON document with a final line break.

    Raises:
        ValueError: it contains NaN or an infinity, which JSON does not have.
    """
    return json.dumps(value, indent=indent, allow_nan=False).encode() + b"\n"


def not_a_file(mode: int) -> str | None:
    """What has this ``os.stat_result.st_mode``, "a named pipe" say; None for a regular file.

    Ask before a file is opened: opening a named pipe waits for ever, and a device may never end.
    """
    kinds = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}
    return kinds.get(stat.S_IFMT(mode), "a device")


# -- checking ------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """The value for a message, cut to a reasonable length."""
    return shortened(repr(value), 80)


def finite(value: Any) -> bool:
    """Whether it is a usable number: not NaN, infinite, an integer too large for a float, or a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def whole(value: Any) -> bool:
    return isinstance(value, int) and finite(value) and value <= LARGEST


def a(what: str, test: Callable[[Any], bool]) -> Check:
    """A value that passes ``test``; ``what`` describes such a value."""

    def check(value: Any, name: str) -> None:
        if not test(value):
            raise ValueError(f"{name} is {shown(value)}, not {what}")

    return check


def one_of(*choices: str) -> Check:
    return a(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def optional(check: Check) -> Check:
    """The same, or null."""
    return lambda value, name: None if value is None else check(value, name)


def each(check: Check) -> Check:
    """An object with any names whose values all pass ``check``."""

    def checked(value: Any, name: str) -> None:
        OBJECT(value, name)
        for key, item in value.items():
            check(item, f"{name}.{key}")

    return checked


def items(check: Check) -> Check:
    """A list whose items all pass ``check``."""

    def checked(value: Any, name: str) -> None:
        LIST(value, name)
        for i, item in enumerate(value):
            check(item, f"{name}[{i}]")

    return checked


def fields(required: Mapping[str, Check], others: Mapping[str, Check] | None = None, closed: bool = False) -> Check:
    """An object.

    Args:
        required: fields that must be present.
        others: fields that may be present; a name that ends in ``*`` stands for all names with that beginning.
        closed: no other field is allowed.
    """
    checks = {**required, **(others or {})}
    starts = {name[:-1]: check for name, check in checks.items() if name.endswith("*")}

    def checked(value: Any, name: str) -> None:
        OBJECT(value, name or "it")
        dot = f"{name}." if name else ""
        if missing := [key for key in required if key not in value]:
            raise ValueError(f"{dot}{missing[0]} is missing")
        for key, item in value.items():
            check = checks.get(key) or next((starts[start] for start in starts if key.startswith(start)), None)
            if check is not None:
                check(item, f"{dot}{key}")
            elif closed:
                raise ValueError(f"unknown field '{dot}{key}'")

    return checked


def checked(check: Check, *, required: bool = False, **options: Any) -> Any:
    """A dataclass field (``options``: ``default`` or ``default_factory``) with the check of its value in JSON.

    Without a default the field must be present; with one it must be present if ``required``.
    """
    return dataclasses.field(metadata={"check": check, "required": required or not options}, **options)


def schema(record: type) -> Check:
    """An object with the fields of a dataclass whose fields are all ``checked``, and no others."""
    stated = {field.name: field.metadata for field in dataclasses.fields(record)}
    required = {name: facts["check"] for name, facts in stated.items() if facts["required"]}
    others = {name: facts["check"] for name, facts in stated.items() if not facts["required"]}
    return fields(required, others, closed=True)


OBJECT = a("an object", lambda value: isinstance(value, dict))
LIST = a("a list", lambda value: isinstance(value, list))
TEXT = a("text", lambda value: isinstance(value, str))
FLAG = a("true or false", lambda value: isinstance(value, bool))
NUMBER = a("a finite number", finite)
AMOUNT = a("a number of 0 or more, up to 2^53", lambda value: finite(value) and 0 <= value <= LARGEST)
POSITIVE = a("a positive number", lambda value: finite(value) and value > 0)
COUNT = a("a whole number of 0 or more, up to 2^53", lambda value: whole(value) and value >= 0)
SIZE = a("a whole number of 1 or more, up to 2^53", lambda value: whole(value) and value >= 1)
FILE_NAME = a(
    "a file name",
    lambda value: isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0"),
)
