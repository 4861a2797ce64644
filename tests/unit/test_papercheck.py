"""tables/papercheck.py against counting all possibilities, and docs/paper-check.md against what writes it."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import adalora_repro
from adalora_repro.cli import report
from adalora_repro.reports.papercheck import (
    COUNTED,
    ROUNDED,
    at_least,
    check_paper,
    nearest,
    possible_share,
    printed_figures,
    reachable,
)

ROOT = Path(adalora_repro.__file__).parent.parent
HALF_UP, HALF_EVEN = ROUNDED


def all_printed(count: int, decimals: int, rounding: str) -> set[str]:
    """Every k / count in percent as printed, by decimal arithmetic; counts below divide without a remainder at last."""
    place = Decimal(1).scaleb(-decimals)
    return {str((Decimal(100) * k / Decimal(count)).quantize(place, rounding)) for k in range(count + 1)}


@pytest.mark.parametrize("count", [8, 64, 80, 277, 408])  # 8, 64 and 80: halves at the second decimal
@pytest.mark.parametrize(("rule", "rounding"), [(HALF_UP, ROUND_HALF_UP), (HALF_EVEN, ROUND_HALF_EVEN)])
def test_reachable_is_being_among_all_that_can_be_printed(count: int, rule: object, rounding: str) -> None:
    found = all_printed(count, 2, rounding)
    for units in range(5000, 10_001):
        text = str(Decimal(units).scaleb(-2))
        assert reachable(text, count, rule) == (text in found), text  # type: ignore[arg-type]


def test_halves_by_hand() -> None:
    # 1/16 = 6.25 %, with one decimal 6.3 by halves up and 6.2 by halves to even
    assert reachable("6.3", 16, HALF_UP)
    assert not reachable("6.2", 16, HALF_UP)
    assert reachable("6.2", 16, HALF_EVEN)
    assert not reachable("6.3", 16, HALF_EVEN)
    assert reachable("6.2", 16, math.floor)
    assert not reachable("88.00", 5 * 277, HALF_UP)  # 1,218 of 1,385 is 87.94, 1,219 is 88.01
    assert reachable("88.09", 277, HALF_UP)  # 244 of 277 is 88.087


@given(st.integers(1, 20_000), st.integers(0, 20_000))
def test_what_is_printed_of_a_count_is_reachable(count: int, k: int) -> None:
    k = min(k, count)
    for rule in ROUNDED:
        text = str(Decimal(rule(Fraction(10_000 * k, count))).scaleb(-2))
        assert reachable(text, count, rule)
        assert abs(nearest(text, count) - Fraction(text)) <= Fraction(1, 200)


@pytest.mark.parametrize("count", [277, 408, 5 * 277, 5 * 872, 9815])
def test_share_of_possible_figures_is_counted(count: int) -> None:
    both = all_printed(count, 2, ROUND_HALF_UP) | all_printed(count, 2, ROUND_HALF_EVEN)
    expected = sum(50 <= Decimal(text) < 100 for text in both)
    assert possible_share(count, 2) == Fraction(expected, 5000)


@pytest.mark.parametrize("count", [10_000, 10_007, 15_000])
def test_fine_steps_leave_no_gap(count: int) -> None:
    assert possible_share(count, 2) == 1
    texts = all_printed(count, 2, ROUND_HALF_UP)
    assert all(str(Decimal(units).scaleb(-2)) in texts for units in range(5000, 10_000))


def test_at_least_is_the_upper_tail() -> None:
    assert at_least(0, 7, 0.3) == pytest.approx(1)
    assert at_least(12, 12, 0.2) == pytest.approx(0.2**12)
    assert at_least(1, 3, 0.5) == pytest.approx(7 / 8)


def test_rows_of_the_validation_sets_are_the_configurations() -> None:
    configured = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["task"]["rows"]
        for path in (ROOT / "conf" / "task").glob("*.yaml")
    }
    splits = {"mnli_m": ("mnli", "validation_matched"), "mnli_mm": ("mnli", "validation_mismatched")}
    for column, (_, rows) in COUNTED.items():
        task, split = splits.get(column, (column.rsplit("_", 1)[0], "validation"))
        assert configured[task][split] == rows


def test_every_table_with_accuracies_is_read() -> None:
    found = list(printed_figures())
    assert {1, 2, 4, 5, 14} <= {figure.table for figure in found}
    assert all(figure.column in COUNTED and 50 < float(figure.text) < 100 for figure in found)


def test_the_page_is_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["check-paper", "--out", str(tmp_path / "page.md")]) == 0
    page = (ROOT / "docs" / "paper-check.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page, (
        "run: adalora-report check-paper --overwrite --out docs/paper-check.md"
    )
    capsys.readouterr()
    assert report.main(["check-paper"]) == 0
    assert capsys.readouterr().out == page


def test_averages_are_made_again_for_every_table_that_has_one() -> None:
    specs = report.discover().values()
    text = check_paper(specs)
    assert text.count("## Averages of ") == sum(spec.average is not None for spec in specs)
