"""How optimistic the rule that chooses a learning rate makes a table, on simulated cells, now and before.

    python -m benchmarks.selection_rule                    # --cells 500

It simulates the two steps of ``+sweep=stages``: every rate of the grid on one seed, then four more seeds at the best.
``before`` is the old rule, which compared rates by their mean whatever their number of seeds; ``selection.select`` is
the present one.

A cell is like RTE's: 277 reported examples, ten rates. A run with rate l and seed s predicts example i correctly if

    theta_l + u_i + v_il + w_s + e_ils > 0,    u ~ N(0, 4²), v ~ N(0, rate²), w ~ N(0, seed²), e ~ N(0, 1)

u is how easy the example is, v the effect of a rate on it, w the quality of a run as a whole; theta_l falls off on both
sides of the best rate. The worth of a rate is its accuracy over all examples and seeds, Phi(theta_l / sd of the sum).
Optimism is the score shown minus the worth of the rate shown, in points: for the best rate on its one seed, for a cell
by the old and the new rule, and for a cell whose rate was chosen on as many held-out examples as are reported. What
remains there is the luck of the chosen rate's first run, a fifth of which enters the mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import Run, select
from benchmarks.results import parser, print_table, start, write

EXAMPLES, RATES, SEEDS = 277, 10, 5
EASE = 4.0  # sd of u
#: name -> (accuracy of the best rate, points lost one rate from the best, sd of v, sd of w)
GRIDS: dict[str, tuple[float, float, float, float]] = {
    "peaked": (0.86, 1.5, 0.5, 0.1),
    "RTE-like": (0.86, 0.3, 0.5, 0.1),
    "RTE-like, noisy seeds": (0.86, 0.3, 0.5, 0.3),
    "flat": (0.86, 0.0, 0.5, 0.1),
}
HEADING = ("grid", "sd over seeds", "old rule shows one seed", "new rule", "grid's winner", "old", "new", "held-out")
METRIC = "accuracy"


def before(by_lr: Mapping[float, Sequence[Run]]) -> float:
    """The old rule: the best mean, whatever the number of seeds; ties: more seeds, then the smaller rate."""
    return max(by_lr, key=lambda lr: (mean(by_lr[lr]), len(by_lr[lr]), -lr))


def mean(runs: Sequence[Run]) -> float:
    return statistics.fmean(run.scores[METRIC] for run in runs)


def simulate(grid: str, cells: int, seed: int = 0) -> dict[str, float]:
    """Shares of cells and points of optimism, by name."""
    rng = np.random.default_rng(seed)
    accuracy, lost, rate_sd, seed_sd = GRIDS[grid]
    normal = statistics.NormalDist(0.0, (EASE**2 + rate_sd**2 + seed_sd**2 + 1.0) ** 0.5)
    rates = range(RATES)
    figures: dict[str, list[float]] = {name: [] for name in ("sd", "old_one_seed", "new_one_seed")}
    optimism: dict[str, list[float]] = {name: [] for name in ("winner", "old", "new", "held_out")}
    for _ in range(cells):
        best = rng.integers(RATES)
        worth = [accuracy - lost / 100 * abs(int(lr) - int(best)) ** 1.5 for lr in rates]
        theta = np.array([normal.inv_cdf(value) for value in worth])
        w = rng.normal(0.0, seed_sd, (RATES, SEEDS))  # of a run, the same on both splits
        reported, held_out = (scores(rng, theta, rate_sd, w) for _ in range(2))
        runs = {(lr, s): run(lr, s, reported[lr, s], held_out[lr, s]) for lr in rates for s in range(SEEDS)}
        figures["sd"].append(float(reported.std(axis=1, ddof=1).mean()))
        first = [runs[lr, 0] for lr in rates]
        winner = int(select(first).lr)
        optimism["winner"].append(mean(select(first).runs) - worth_of(worth, winner))
        done = [*first, *(runs[winner, s] for s in range(1, SEEDS))]
        chosen = select(done)
        old = before(chosen.by_lr)
        figures["old_one_seed"].append(len(chosen.by_lr[old]) == 1)
        figures["new_one_seed"].append(len(chosen.runs) == 1)
        optimism["old"].append(mean(chosen.by_lr[old]) - worth_of(worth, old))
        optimism["new"].append(mean(chosen.runs) - worth_of(worth, chosen.lr))
        aside = [with_held_out(one) for one in first]
        lr = int(select(aside).lr)
        optimism["held_out"].append(mean([runs[lr, s] for s in range(SEEDS)]) - worth_of(worth, lr))
    return {name: statistics.fmean(values) for name, values in (figures | optimism).items()}


def scores(rng: np.random.Generator, theta: np.ndarray, rate_sd: float, w: np.ndarray) -> np.ndarray:
    """Accuracy in percent of each rate and seed on new examples, (RATES, SEEDS)."""
    u = rng.normal(0.0, EASE, EXAMPLES)
    v = rng.normal(0.0, rate_sd, (RATES, EXAMPLES))
    e = rng.normal(0.0, 1.0, (RATES, SEEDS, EXAMPLES))
    right = theta[:, None, None] + u + v[:, None] + w[:, :, None] + e > 0
    return 100.0 * right.mean(axis=2)


def run(lr: int, seed: int, score: float, held_out: float) -> Run:
    key = {"lr": lr, "seed": seed, "max_examples": None, "total_steps": 1, "variant": "v", "held_out": held_out}
    return Run(Path(f"{lr}-{seed}"), RunRecord(key, METRIC), {METRIC: float(score)})


def with_held_out(one: Run) -> Run:
    return Run(one.path, one.record, one.scores, {METRIC: float(one.key["held_out"])})


def worth_of(worth: Sequence[float], lr: float) -> float:
    return 100.0 * worth[int(lr)]


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--cells", type=int, default=2000, help="simulated for each grid (default: %(default)s)")
    args = start(arguments)
    found = {grid: simulate(grid, args.cells) for grid in GRIDS}
    rows = [
        [
            grid,
            f"{one['sd']:.2f}",
            *(f"{one[name]:.0%}" for name in ("old_one_seed", "new_one_seed")),
            *(f"{one[name]:+.2f}" for name in ("winner", "old", "new", "held_out")),
        ]
        for grid, one in found.items()
    ]
    print_table(HEADING, rows)
    write(args, "selection_rule", {"cells": args.cells, "grids": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
