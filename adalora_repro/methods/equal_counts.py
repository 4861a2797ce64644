"""Ranks or widths that fill a number of parameters N, as closely as possible and never above (budget.match=params).

In a slot (a weight matrix, a sublayer) a method of size s, its rank or width, adds ``fixed + unit * s`` parameters, and
none if s = 0. One size for all slots seldom fills N, so sizes may differ by one: s or s + 1. Standard library only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from adalora_repro.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Slot:
    """A module that gets a size: its name and layer, and the parameters that a size costs: ``fixed + unit * size``."""

    name: str
    layer: tuple[str, int]
    unit: int
    fixed: int = 0


def matched(cfg: DictConfig) -> bool:
    """Whether the method's size is to fill a number of parameters; some methods have only one size."""
    return bool(cfg.budget.match == "params" and cfg.method.get("sizes") is not None)


def label_params(label: str, backbone: int) -> int:
    """N for a budget label: 0.3M is 300,000; 0.08% is that share of the ``backbone``'s parameters, rounded down.

    Raises:
        InputError: the label is not a number of this form.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[M%]", label):
        raise InputError(f"budget '{label}' is not a number such as 0.3M or 0.08%; give budget.params")
    share = Fraction(label[:-1])
    return math.floor(share * (1_000_000 if label.endswith("M") else Fraction(backbone, 100)))


def require_at_least(minimum: int, params: int) -> None:
    """Raises InputError if N is below the minimum that the method can add."""
    if params < minimum:
        raise InputError(
            f"budget.match=params: {params:,} parameters are too few for this method and backbone; budget.params must "
            f"be at least {minimum}"
        )


def mean_triplets(params: int, costs: Sequence[int]) -> int:
    """AdaLoRA's b_T for N parameters: N over the mean cost of a triplet, rounded down.

    Args:
        costs: for each adapted matrix, the parameters of one triplet, d_out + 1 + d_in.
    """
    return params * len(costs) // sum(costs)


def initial_rank(params: int, costs: Sequence[int]) -> int:
    """The rank from which AdaLoRA starts at N parameters: b_0 = 1.5 b_T (the paper's ratio), rounded up."""
    return math.ceil(Fraction(3 * mean_triplets(params, costs), 2 * len(costs)))


def fill(slots: Sequence[Slot], params: int) -> dict[str, int]:
    """Name -> size, s or s + 1, so that the sum of costs is the largest that does not exceed ``params``.

    s is the largest size that all slots can have. ``extras`` says how many slots of each cost get s + 1, ``spread``
    which ones. No other sizes that differ by at most one come closer.

    Raises:
        InputError: ``params`` is less than size 1 costs at the cheapest slot.
    """
    require_at_least(min(slot.fixed + slot.unit for slot in slots), params)
    fixed, unit = sum(slot.fixed for slot in slots), sum(slot.unit for slot in slots)
    size, rest = divmod(params - fixed, unit) if params >= fixed + unit else (0, params)
    kinds: dict[int, dict[tuple[str, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    for slot in slots:
        kinds[slot.unit if size else slot.fixed + slot.unit][slot.layer].append(slot.name)
    more: set[str] = set()
    counts = extras({unit: sum(map(len, layers.values())) for unit, layers in kinds.items()}, rest)
    for unit, count in counts.items():
        more.update(spread(list(kinds[unit].values()), count))
    return {slot.name: size + (slot.name in more) for slot in slots}


def given_ranks(pattern: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Matrix -> its rank in ``method.rank_pattern``, in the order of ``names``.

    Raises:
        InputError: the pattern is not of exactly these matrices.
    """
    for ranked, others, where in (
        (pattern, names, "which this model does not adapt"),
        (names, pattern, "of this model, which the ranks leave out"),
    ):
        if wrong := [name for name in ranked if name not in others]:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise InputError(f"method.rank_pattern does not fit: {wrong[0]}{more}, {where}")
    return {name: pattern[name] for name in names}


def extras(kinds: Mapping[int, int], rest: int) -> dict[int, int]:
    """How many of each kind (cost -> number available) to take, so that their sum is as close to ``rest`` as possible.

    Never above ``rest``. Exact: all numbers are tried for all kinds but one, which fills the remainder; models have one
    to three kinds. Of equal sums, the one that takes the most even shares of the kinds.
    """
    last, *others = kinds
    best: tuple[int, Fraction, dict[int, int]] = (-1, Fraction(0), {})
    for numbers in itertools.product(*(range(kinds[unit] + 1) for unit in others)):
        taken = dict(zip(others, numbers, strict=True))
        left = rest - sum(unit * number for unit, number in taken.items())
        if left < 0:
            continue
        taken[last] = min(kinds[last], left // last)
        shares = [Fraction(number, kinds[unit]) for unit, number in taken.items()]
        total = sum(unit * number for unit, number in taken.items())
        best = max(best, (total, min(shares) - max(shares), taken), key=lambda candidate: candidate[:2])
    return best[2]


def spread(layers: Sequence[Sequence[str]], count: int) -> list[str]:
    """``count`` of the names, spread evenly over the layers; a layer starts with the role after the last one taken."""
    total = sum(map(len, layers))
    chosen: list[str] = []
    passed = 0
    for names in layers:
        passed += len(names)
        for _ in range(passed * count // total - len(chosen)):
            chosen.append(names[len(chosen) % len(names)])
    return chosen


def wider(sizes: Mapping[str, int]) -> int:
    """How many slots have more than the smallest size."""
    smallest = min(sizes.values())
    return sum(size > smallest for size in sizes.values())
