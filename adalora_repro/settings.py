"""A setting: its range and its part in a run's identity stand beside the field, its meaning in a docstring below it.

    @dataclass
    class Options:
        beta1: float = setting(0.85, minimum=0, below=1)
        "Decay of the sensitivity average, eq. (9)."

``check`` enforces ranges, ``rows`` makes the table of settings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, get_args, get_type_hints

from adalora_repro.errors import InputError, one_of

NOTHING = object()
#: attribute of ``Setting`` -> its sign in a table, the comparison that a valid number passes, its text in a message
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "minimum": (">=", operator.ge, "{} or more"),
    "above": (">", operator.gt, "above {}"),
    "maximum": ("<=", operator.le, "at most {}"),
    "below": ("<", operator.lt, "below {}"),
}


@dataclass(frozen=True)
class Setting:
    """What is fixed about a setting.

    Attributes:
        identity: whether another value makes another run; False for where, how fast or how observed a run is.
        later: the value at which the setting is left out of the identity: what was done before the setting existed,
            and not always its default. So runs keep the identity that they had.
        minimum, above, maximum, below: the range of a number; ``minimum`` and ``maximum`` belong to it.
        choices: the valid values.
    """

    identity: bool = True
    later: Any = NOTHING
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """Those of ``BOUNDS`` that the setting has."""
        return {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}

    @property
    def range(self) -> str:
        """The range as a table prints it."""
        if self.choices is not None:
            return " | ".join(self.choices)
        return ", ".join(f"{BOUNDS[name][0]} {_short(bound)}" for name, bound in self.bounds.items())

    def check(self, name: str, value: Any) -> None:
        """Raises InputError if the value is not one of ``choices``, or outside the range."""
        if self.choices is not None and value not in self.choices:
            raise one_of(name, value, self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        for attribute, bound in self.bounds.items():
            _, holds, text = BOUNDS[attribute]
            if not holds(value, bound):
                positive = (attribute, bound) in (("minimum", 1), ("above", 0))
                raise InputError(
                    f"{name} must be {'positive' if positive else text.format(_short(bound))}, not {value}"
                )
        if not math.isfinite(value):
            raise InputError(f"{name} must be {'finite' if self.above is None else 'positive and finite'}, not {value}")


def setting(default: Any = NOTHING, *, factory: Callable[[], Any] | None = None, **facts: Any) -> Any:
    """A dataclass field with the facts of ``Setting``; without a default the setting must be given."""
    metadata = {"setting": Setting(**facts)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is NOTHING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _fields(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], type, Any]]:
    """Every field of a dataclass, and below a group its own: full name, field, class, and the type or the group's."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        nested = field.metadata.get("keys", hints[field.name])
        yield f"{prefix}{field.name}", field, schema, nested
        if dataclasses.is_dataclass(nested):
            assert isinstance(nested, type)
            yield from _fields(nested, f"{prefix}{field.name}.")


@cache
def settings_of(schema: type) -> dict[str, Setting]:
    """``group.setting`` -> its facts, for a dataclass and those nested in it; groups have facts too."""
    return {name: field.metadata.get("setting", Setting()) for name, field, _, _ in _fields(schema)}


def check(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Checks the values of a dataclass's settings, nested ones included; None is not checked.

    Raises:
        InputError: a value is outside its range; names the setting.
    """
    for name, facts in settings_of(schema).items():
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            facts.check(f"{prefix}{name}", value)


class Row(NamedTuple):
    """One line of the table of settings."""

    name: str
    default: str
    meaning: str
    identity: str
    range: str


def rows(schema: type, prefix: str = "") -> Iterator[Row]:
    """The table of settings of a dataclass and of those nested in it."""
    for name, field, schema_of, hint in _fields(schema, prefix):
        if dataclasses.is_dataclass(hint):
            continue
        facts = field.metadata.get("setting", Setting())
        identity = "yes" if facts.identity else "no"
        if facts.identity and facts.later is not NOTHING:
            identity = f"unless {_shown(facts.later)}"
        meaning = meanings(field.metadata.get("owner", schema_of)).get(field.name, "")
        scope = facts.range or ("true | false" if bool in (hint, *get_args(hint)) else "")
        yield Row(name, _default(field, facts), meaning, identity, scope)


@cache
def meanings(schema: type) -> dict[str, str]:
    """Field -> the docstring below it, in a dataclass and in those it builds on."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # a class that has no source
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for node, below in pairwise(body):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, ast.Constant):
                texts[node.target.id] = " ".join(str(text.value).split())
    return texts


def _default(field: dataclasses.Field[Any], facts: Setting) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _shown(field.default_factory())
    try:
        facts.check(field.name, field.default)
    except InputError:  # stands for "not set"
        return ""
    return "" if field.default in (dataclasses.MISSING, "???") else _shown(field.default)


def _shown(value: Any) -> str:
    """As on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(number: float) -> str:
    if isinstance(number, int) and number > 2**16 and number & (number - 1) == 0:
        return f"2^{number.bit_length() - 1}"
    return f"{number:g}"
