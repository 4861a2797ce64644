"""Sizes that fill a number of parameters N: as near to it as possible, never above (``budget.match=params``).

What a method adds to a place (a weight matrix, a sublayer) of size s, a rank or a width, costs ``fixed + unit * s``
parameters; nothing is added where s = 0. One size for all places seldom fills N, so places may differ by one: s or
s + 1. Standard library only.
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
class Place:
    """Where a size is needed: its name, the layer it is in, and what size 1 and each further one cost."""

    name: str
    layer: tuple[str, int]
    unit: int
    fixed: int = 0


def matched(cfg: DictConfig) -> bool:
    """Whether the method's size is to fill a number of parameters; a method of one size has no choice."""
    return bool(cfg.budget.match == "params" and cfg.method.get("sizes") is not None)


def label_params(label: str, backbone: int) -> int:
    """N that a label stands for: 0.3M is 300,000; 0.08% that share of the ``backbone``'s parameters, rounded down.

    Raises:
        InputError: the label says no number.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[M%]", label):
        raise InputError(f"budget '{label}' says no number like 0.3M or 0.08%; give budget.params")
    share = Fraction(label[:-1])
    return math.floor(share * (1_000_000 if label.endswith("M") else Fraction(backbone, 100)))


def require_at_least(minimum: int, params: int) -> None:
    """Raises InputError where N is below the least that the method can add."""
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


def fill(places: Sequence[Place], params: int) -> dict[str, int]:
    """Name -> size, s or s + 1, so that the sum of costs is the largest that does not exceed ``params``.

    s is the largest size that all places can have. Which of them then have s + 1: ``extras`` says how many of each
    kind, ``spread`` which. No sizes that differ by one at most come nearer: below s, even s everywhere costs more.

    Raises:
        InputError: ``params`` is less than size 1 costs at the cheapest place.
    """
    require_at_least(min(place.fixed + place.unit for place in places), params)
    fixed, unit = sum(place.fixed for place in places), sum(place.unit for place in places)
    size, rest = divmod(params - fixed, unit) if params >= fixed + unit else (0, params)
    kinds: dict[int, dict[tuple[str, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        kinds[place.unit if size else place.fixed + place.unit][place.layer].append(place.name)
    more: set[str] = set()
    counts = extras({unit: sum(map(len, layers.values())) for unit, layers in kinds.items()}, rest)
    for unit, count in counts.items():
        more.update(spread(list(kinds[unit].values()), count))
    return {place.name: size + (place.name in more) for place in places}


def extras(kinds: Mapping[int, int], rest: int) -> dict[int, int]:
    """How many of each kind (cost -> number there are) to take, so that their sum is nearest to, not above, rest.

    Exact: all numbers are tried for all kinds but one, which takes what is left; models have one to three kinds. Of
    equal sums the one that takes the most even shares of the kinds.
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
        best = max(best, (total, min(shares) - max(shares), taken), key=lambda found: found[:2])
    return best[2]


def spread(layers: Sequence[Sequence[str]], count: int) -> list[str]:
    """``count`` of the names, spread evenly over the layers; the next layer goes on with the role after the last."""
    total = sum(map(len, layers))
    chosen: list[str] = []
    passed = 0
    for names in layers:
        passed += len(names)
        for _ in range(passed * count // total - len(chosen)):
            chosen.append(names[len(chosen) % len(names)])
    return chosen


def wider(sizes: Mapping[str, int]) -> int:
    """How many places have more than the smallest size."""
    smallest = min(sizes.values())
    return sum(size > smallest for size in sizes.values())
