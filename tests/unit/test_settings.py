"""Settings with their facts: ranges are enforced, and meanings are there."""

from dataclasses import dataclass
from typing import Any

import pytest

from adalora_repro import methods
from adalora_repro.config.schema import Config
from adalora_repro.errors import InputError
from adalora_repro.settings import Row, check, meanings, rows, setting


@dataclass
class Inner:
    share: float = setting(0.5, minimum=0, below=1)
    "How much, of all."
    plain: int = 3


@dataclass
class Outer:
    inner: Inner
    mode: str = setting("fast", later="slow", choices=("fast", "slow"))
    """The mode,
    over two lines."""
    many: int = setting(0, identity=False, minimum=0, below=2**32)
    unset: int = setting(0, minimum=1)


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def test_meanings_are_docstrings_below_fields() -> None:
    assert meanings(Outer) == {"mode": "The mode, over two lines."}
    assert list(rows(Outer)) == [
        Row("inner.share", "0.5", "How much, of all.", "yes", ">= 0, < 1"),
        Row("inner.plain", "3", "", "yes", ""),
        Row("mode", "fast", "The mode, over two lines.", "unless slow", "fast | slow"),
        Row("many", "0", "", "no", ">= 0, < 2^32"),
        Row("unset", "", "", "yes", ">= 1"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("inner.share", -0.1, "inner.share must be 0 or more, not -0.1"),
        ("inner.share", 1.0, "inner.share must be below 1, not 1.0"),
        ("inner.share", float("nan"), "inner.share must be 0 or more, not nan"),
        ("mode", "quick", "unknown mode 'quick'; valid: fast, slow"),
        ("mode", "FAST", r"unknown mode 'FAST' \(did you mean fast\?\); valid: fast, slow"),
        ("many", 2**32, r"many must be below 2\^32, not 4294967296"),
        ("many", float("inf"), "many must be below"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(name: str, value: Any, problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}"):
        check(Outer, nested(name, value))


def test_every_setting_has_a_meaning() -> None:
    assert [row.name for row in rows(Config) if not row.meaning] == []
    for name in methods.modules():
        options = vars(methods.module_of(name))["Options"]
        assert [row.name for row in rows(options, f"{name}: ") if not row.meaning] == []
