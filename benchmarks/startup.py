"""Start-up: what a user waits for before anything happens. Best wall time and CPU time of some repetitions.

    python -m benchmarks.startup                # --repeat 5

The wall time is the machine's at that moment (the best of the repetitions is the least disturbed), CPU time is the
work. ``first step`` is the time to the log line of the first optimizer step, on generated text with MiniLM; its CPU
time is of the whole run: ten steps and an evaluation of 8 examples. The reports are those of a folder without records
(``benchmarks.reports`` has the others).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from subprocess import PIPE, STDOUT
from typing import Any

from benchmarks.results import parser, print_table, start, write

RUN, REPORT = "adalora_repro.cli.run", "adalora_repro.cli.report"
TEN = 10
TEN_STEPS = ["task=sst2", "method=adalora", "budget=0.3M", "backbone=minilm", "data=sample", "method.schedule=scaled"]
TEN_STEPS += [f"train.max_steps={TEN}", "train.log_steps=1", "eval.max_examples=8", "force=true"]
FIRST = "… to the first step, MiniLM, sample data"
CASES: dict[str, list[str]] = {
    "adalora-run --help": [RUN, "--help"],
    "… dry_run=true": [RUN, "task=mnli", "method=adalora", "budget=0.3M", "dry_run=true"],
    FIRST: [RUN, *TEN_STEPS],
    "adalora-report --help": [REPORT, "--help"],
    "adalora-report table1": [REPORT, "table1"],
    "adalora-report status": [REPORT, "status"],
}


def once(words: list[str], folder: str, until: str | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of one call; wall seconds to the first line that begins with ``until``, if there is one."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    before, began = os.times(), time.perf_counter()
    command, wall = [sys.executable, "-m", *words], None
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=PIPE, stderr=STDOUT, text=True, encoding="utf-8"
    ) as process:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if until is not None and wall is None and line.startswith(until):
                wall = time.perf_counter() - began
    if until is None:
        wall = time.perf_counter() - began
    if process.returncode or wall is None:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{''.join(said)}")
    after = os.times()
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
                until = f"step 1/{TEN}" if name == FIRST else None
                found.setdefault(name, []).append(once(words, folder, until))
    best = {name: {"wall_s": min(w for w, _ in t), "cpu_s": min(c for _, c in t)} for name, t in found.items()}
    write(args, "startup", {"best": best, "repeat": args.repeat})
    rows = [[name, f"{seconds['wall_s']:.2f}", f"{seconds['cpu_s']:.2f}"] for name, seconds in best.items()]
    print_table(["command", "wall s", "CPU s"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
