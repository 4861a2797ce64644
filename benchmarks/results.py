"""What every benchmark does alike: its options, a table on the terminal, JSON with the environment beside it."""

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
from adalora_repro.training.cost import interval, median_of_ratios

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
    """The parsed options, with torch set accordingly, here and in processes that are started."""
    args = arguments.parse_intermixed_args()
    if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        arguments.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    return args


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float | None]:
    """Median of the ratios of pairs measured side by side, with a 95% bootstrap interval (none of a single pair)."""
    found = interval(np.array(above), np.array(below), median_of_ratios)
    return {"median": found["value"], "low": found["low"], "high": found["high"]}


def ratio_text(found: Mapping[str, float | None]) -> str:
    middle, low, high = found.values()
    return f"{middle:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def write(args: argparse.Namespace, name: str, figures: dict[str, Any]) -> None:
    """``NAME.json`` in ``--out``: in the place of an earlier run with the same words, beside one with others."""
    environment = provenance.environment(torch.device(getattr(args, "device", "cpu")))
    words = [word for word in sys.argv[1:] if not word.startswith("--out=")]
    if "--out" in words:  # where it was written is of no use elsewhere
        del words[(place := words.index("--out")) : place + 2]
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
