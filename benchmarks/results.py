"""What every benchmark does alike: its options, a table on the terminal, JSON with the environment beside it."""

from __future__ import annotations

import argparse
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


def parser(doc: str | None, model: bool = True, devices: bool = False) -> argparse.ArgumentParser:
    """The options that all benchmarks have, or all that run a ``model``, or on other devices than a CPU too."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON (default: results/benchmarks)")
    made.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default: %(default)s)")
    if model:
        made.add_argument("--shape", default="deberta-v3-base", help="a file of conf/backbone (default: %(default)s)")
    if devices:
        made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return made


def start(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options, with torch set accordingly."""
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    return args


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of pairs measured side by side, with a 95% bootstrap interval."""
    ratios = np.array(above) / np.array(below)
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": statistics.median(ratios.tolist()), "low": float(low), "high": float(high)}


def ratio_text(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def write(args: argparse.Namespace, name: str, figures: dict[str, Any]) -> None:
    """``NAME.json`` in ``--out``; the figures of an earlier run are replaced, git has them."""
    environment = provenance.environment(torch.device(getattr(args, "device", "cpu")))
    words = [f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    if "--out" in words:  # where it was written is of no use elsewhere
        del words[(place := words.index("--out")) : place + 2]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.json"
    content = {"command": f"python -m {' '.join(words)}", "environment": environment, **figures}
    records.write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: {path}", file=sys.stderr)


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heading, ["---"] * len(heading), *rows):
        print(f"| {' | '.join(row)} |")
