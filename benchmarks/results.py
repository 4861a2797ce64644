"""Common to all benchmarks: options, a table on the terminal, and a JSON file with the figures and the environment."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adalora_repro.records import provenance, run_record
from adalora_repro.training.cost import interval, median_of_ratios, ratio_text

FOLDER = Path(__file__).parents[1] / "results" / "benchmarks"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON (default: results/benchmarks)")
    options.add_argument("--threads", type=int, default=1, help="torch's threads on a CPU (default: %(default)s)")
    options.add_argument("--shape", default="deberta-v3-base", help="a file of conf/backbone (default: %(default)s)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return options


def start(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options; sets torch's threads in this process and its children."""
    args = arguments.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        arguments.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    return args


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float | None]:
    """Median of the ratios of pairs measured side by side, with a 95% bootstrap interval (none of a single pair)."""
    return interval(np.array(above), np.array(below), median_of_ratios)


def write(args: argparse.Namespace, name: str, figures: dict[str, Any]) -> None:
    """``NAME.json`` in ``--out``; a file of a run with other options stays, and this one gets a longer name."""
    environment = provenance.environment(torch.device(args.device))
    words = [word for word in sys.argv[1:] if not word.startswith("--out=")]
    if "--out" in words:  # not part of what was measured
        del words[(first := words.index("--out")) : first + 2]
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["command"] != command:
        path = path.with_name("_".join([name, *(re.sub(r"[^\w.]+", "-", word.strip("-")) for word in words)]) + ".json")
    content = {"command": command, "environment": environment, **figures}
    run_record.write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    print(f"written: {path}", file=sys.stderr)


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heading, ["---"] * len(heading), *rows):
        print(f"| {' | '.join(row)} |")


def print_goal(what: str, figure: float | Mapping[str, Any], goal: str) -> None:
    """A figure, or a ratio with its interval, beside a goal such as ``<= 1.03``; of a ratio the median decides."""
    value, text = (figure["value"], ratio_text(figure)) if isinstance(figure, Mapping) else (figure, f"{figure:.3g}")
    relation, bound = goal.split()
    met = value <= float(bound) if relation == "<=" else value >= float(bound)
    print(f"goal: {what}: {text}, goal {goal}: {'met' if met else 'missed'}")
