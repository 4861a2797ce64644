"""Start-up: what a user waits for before anything happens. Best wall time and CPU time of some repetitions.

    python -m benchmarks.startup                # --repeat 5

The wall time is the machine's at that moment (the best of the repetitions is the least disturbed), CPU time is the
work. ``ten steps`` is a whole run on generated text with MiniLM, an evaluation of 8 examples included; the reports are
those of a folder without records (``benchmarks.reports`` has the others).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.results import parser, print_table, start, write

RUN, REPORT = "adalora_repro.run", "adalora_repro.report"
ONE_STEP = ["task=sst2", "method=adalora", "budget=0.3M", "backbone=minilm", "data=sample", "method.schedule=scaled"]
ONE_STEP += ["train.max_steps=10", "eval.max_examples=8", "force=true"]
CASES: dict[str, list[str]] = {
    "adalora-run --help": [RUN, "--help"],
    "adalora-run … dry_run=true": [RUN, "task=mnli", "method=adalora", "budget=0.3M", "dry_run=true"],
    "ten steps on sample data, MiniLM": [RUN, *ONE_STEP],
    "adalora-report --help": [REPORT, "--help"],
    "adalora-report table1": [REPORT, "table1"],
    "adalora-report status": [REPORT, "status"],
}


def once(words: list[str], folder: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--repeat", type=int, default=5)
    args = start(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeat):
            for name, words in CASES.items():
                found.setdefault(name, []).append(once(words, folder))
    best = {name: {"wall_s": min(w for w, _ in t), "cpu_s": min(c for _, c in t)} for name, t in found.items()}
    write(args, "startup", {"best": best, "repeat": args.repeat})
    rows = [[name, f"{seconds['wall_s']:.2f}", f"{seconds['cpu_s']:.2f}"] for name, seconds in best.items()]
    print_table(["command", "wall s", "CPU s"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
