"""How the time of a step grows: with the batch, the length, the rank and the number of adapted matrices.

    python -m benchmarks.growth                    # --rounds 5 --precision fp32

Ours alone, LoRA and AdaLoRA (a mask at every step), positions cropped where they can be. All points of an axis are
measured in turn, round after round, so that what else the machine does meets all; medians. ``exponent`` is the slope
between the last two points in the logarithms: 1 is linear. ``benchmarks.curves`` draws it.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import RANK, Contender, can_crop
from benchmarks.lengths import Tensors
from benchmarks.results import parser, print_table, start, write

METHODS = ("lora", "adalora")
BATCH, TOKENS, PER_LAYER = 8, 32, 6  # where an axis does not change them; matrices of a layer
AXES = {
    "batch": (4, 8, 16, 32, 64),
    "tokens": (16, 32, 64, 128, 256),
    "rank": (1, 2, 4, 8, 16, 32, 64),
    "matrices": (18, 72, 192),
}


@dataclass
class Point:
    """A value on an axis, the model that is measured there and its batch."""

    value: int
    contender: Contender
    batch: Tensors
    times: list[float]


def points_of(axis: str, method: str, common: dict[str, Any]) -> Iterator[Point]:
    one = Contender("ours", method, **common) if axis in ("batch", "tokens") else None
    for value in AXES[axis]:
        batch, tokens = value if axis == "batch" else BATCH, value if axis == "tokens" else TOKENS
        rank, layers = value if axis == "rank" else RANK, value // PER_LAYER if axis == "matrices" else None
        contender = one or Contender("ours", method, rank=rank, layers=layers, **common)
        yield Point(value, contender, contender.batch([tokens] * batch, 0), [])


def exponent(points: list[Point]) -> float:
    (x1, y1), (x2, y2) = ((point.value, statistics.median(point.times)) for point in points[-2:])
    return math.log(y2 / y1) / math.log(x2 / x1)


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments.add_argument("--axes", default=",".join(AXES))
    args = start(arguments)
    common: dict[str, Any] = {"bf16": args.precision == "bf16", "shape": args.shape, "device": args.device}
    common["cropped"] = can_crop(args.shape)
    found: dict[str, dict[str, list[Point]]] = {}
    for axis in args.axes.split(","):
        found[axis] = {method: list(points_of(axis, method, common)) for method in METHODS}
        pairs = list(zip(*found[axis].values(), strict=True))
        for number in range(args.rounds + 1):
            for points in pairs:
                for point in points if number % 2 else points[::-1]:
                    seconds = point.contender.timed(point.batch)
                    if number:  # the first makes the optimizer's states
                        point.times.append(seconds)
        for point in (point for points in pairs for point in points):
            del point.contender  # the next axis needs the memory
        gc.collect()  # hooks refer to their model
        print(f"{axis}: done", file=sys.stderr, flush=True)
    figures = {
        axis: {method: {point.value: point.times for point in points} for method, points in methods.items()}
        for axis, methods in found.items()
    }
    write(args, "growth", {"seconds": figures, "elsewhere": {"batch": BATCH, "tokens": TOKENS, "rank": RANK}})
    for axis, methods in found.items():
        rows = [
            [method, *(f"{statistics.median(point.times):.3f}" for point in points), f"{exponent(points):.2f}"]
            for method, points in methods.items()
        ]
        print_table([f"{axis}: s / step", *map(str, AXES[axis]), "exponent at the end"], rows)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
