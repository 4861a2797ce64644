"""What every benchmark does with its figures: a table on the terminal, JSON with the environment beside it."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adalora_repro import provenance, records

FOLDER = Path(__file__).parents[1] / "results" / "benchmarks"


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of pairs measured side by side, with a 95% bootstrap interval."""
    ratios = np.array(above) / np.array(below)
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": statistics.median(ratios.tolist()), "low": float(low), "high": float(high)}


def ratio_text(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def write(name: str, figures: dict[str, Any], device: str = "cpu") -> None:
    """results/benchmarks/NAME.json; the figures of an earlier run are replaced, git has them."""
    environment = provenance.environment(torch.device(device))
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {"command": command, "environment": environment, **figures}
    records.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: results/benchmarks/{path.name}", file=sys.stderr)


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heading, ["---"] * len(heading), *rows):
        print(f"| {' | '.join(row)} |")
