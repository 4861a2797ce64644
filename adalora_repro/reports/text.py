"""Numbers and counts as people write them, and one table of plain text."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adalora_repro.errors import clean, shortened

NONE = "–"
NARROW, WIDE = 80, 100  # columns of a terminal that a text uses


def number(value: Any) -> float | None:
    """A number from a frame or from the paper's CSV; None where there is none (None, NaN, empty text)."""
    if value is None or value == "" or value != value:
        return None
    return float(value)


def fixed(value: float | None, decimals: int = 2) -> str:
    return NONE if number(value) is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int = 2) -> str:
    """With a sign; what rounds to nothing is +0.00, never -0.00."""
    return NONE if value is None or value != value else f"{round(value, decimals) + 0.0:+.{decimals}f}"


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def cell_name(key: Mapping[str, Any]) -> str:
    """ "cola lora 0.3M"; of a method that has one size, whose budget is its own name, "cola full"."""
    words = (key["task"], key["method"], key["budget"])
    return " ".join(words[:2] if key["budget"] == key["method"] else words)


def by_size(budget: str) -> tuple[list[float], str]:
    """What budgets are sorted by: the numbers in their names, so that params9000 comes before params83000."""
    return [float(size) for size in re.findall(r"\d+(?:\.\d+)?", budget)], budget


def short(value: object) -> str:
    return shortened(str(value), 40)


def count_text(count: float) -> str:
    """A parameter count as the paper writes it, 1.33M; below 0.1M in thousands, for small backbones."""
    if count >= 100_000_000:
        return f"{count / 1e6:.0f}M"
    return f"{count / 1e6:.2f}M" if count >= 100_000 else f"{count / 1e3:.1f}K"


def extent(values: Iterable[Any], form: str | None = None) -> str:
    """ "0.31M–0.34M", smallest and largest; counts of parameters, or in the format ``form``."""
    numbers = [value for value in values if number(value) is not None]
    if not numbers:
        return NONE
    low, high = (count_text(end) if form is None else format(end, form) for end in (min(numbers), max(numbers)))
    return low if low == high else f"{low}–{high}"


def seeds_text(seeds: Iterable[int]) -> str:
    """ "0 to 4" for consecutive seeds, otherwise a list."""
    ordered = sorted(set(seeds))
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def seed_phrase(seeds: Iterable[int]) -> str:
    seeds = set(seeds)
    return f"seed{'s' * (len(seeds) > 1)} {seeds_text(seeds)}"


def width() -> int:
    """Columns that a report in text uses, in a terminal or not."""
    return min(WIDE, max(NARROW, shutil.get_terminal_size((WIDE, 24)).columns))


def wrapped(text: str, indent: str = "") -> list[str]:
    """Harmless lines of at most ``width()``; a word that is longer, a path say, stays whole."""
    return textwrap.wrap(clean(text), width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def aligned(rows: Sequence[Sequence[str]], rule: bool = False) -> list[str]:
    """The lines of a table of plain text, its first row the heading, below it a ``rule``."""
    from tabulate import tabulate

    text = tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)
    lines = [line.rstrip() for line in text.splitlines()]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]] if rule and lines else lines


def piped(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in markdown, its first row the heading."""
    from tabulate import tabulate

    return tabulate(rows[1:], rows[0], tablefmt="pipe", disable_numparse=True).splitlines()
