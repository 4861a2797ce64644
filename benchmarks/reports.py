"""Time of the reports against the number of records, 100 to 50,000.

    python -m benchmarks.reports               # --counts 100,1000,5000

The records are made as training writes them: eight GLUE tasks, four methods, three budgets, eight rates, seeds.
CPU seconds of a new process each time, so that nothing is cached but the files, and in brackets those of waiting.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adalora_repro.records import run_record
from benchmarks.results import FOLDER, parser, print_table, start, write

ROOT = FOLDER.parents[1]
BUDGETS, RATES = ("0.3M", "0.6M", "1.2M"), (8e-5, 5e-5, 3e-5, 1e-4, 3e-4, 5e-4, 8e-4, 1e-3)
REPORTS = (["table1"], ["status"], ["table1", "--format", "csv"])


def fill(results: Path, count: int) -> None:
    """So many records, each a changed copy of one that the repository holds."""
    source = next((ROOT / "results" / "runs" / "minilm" / "cola" / "adalora").rglob(run_record.RECORD_NAME))
    whole = run_record.read(source)
    primary = {"mnli": "accuracy_m", "cola": "matthews_correlation", "stsb": "corr"}
    metrics = {"mnli": ("accuracy_m", "accuracy_mm"), "cola": ("matthews_correlation",), "stsb": ("corr",)}
    metrics |= {"qqp": ("accuracy", "f1"), "mrpc": ("accuracy", "f1")}
    tasks = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")
    cells = itertools.product(range(10**6), RATES, BUDGETS, ("lora", "adalora", "houlsby", "pfeiffer"), tasks)
    for number, (seed, lr, budget, method, task) in enumerate(itertools.islice(cells, count)):
        scores = dict.fromkeys(metrics.get(task, ("accuracy",)), 0.5 + (number * 37 % 1000) / 2500)
        key = whole.key | {"task": task, "method": method, "budget": budget, "lr": lr, "seed": seed}
        key |= {"backbone": "deberta-v3-base", "data": "hub", "hash": f"{number:010x}", "variant": "v"}
        name = primary.get(task, "accuracy")
        end = {"metrics": scores, "step": key["total_steps"]}
        record = dataclasses.replace(whole, key=key, primary_metric=name, final=end, best=end)
        folder = run_record.run_folder(results, key)
        folder.mkdir(parents=True)
        run_record.write(record, folder)


def seconds_of(words: list[str], folder: Path) -> tuple[float, float]:
    """Of CPU, and of waiting."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "adalora_repro.cli.report", *words], cwd=folder, check=True, capture_output=True
    )
    after, waited = os.times(), time.perf_counter() - began
    return after.children_user + after.children_system - before.children_user - before.children_system, waited


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--counts", default="100,500,1000,5000,20000,50000")
    arguments.add_argument("--repeat", type=int, default=3, help="times, of which the median counts (%(default)s)")
    args = start(arguments)
    rows: list[list[str]] = []
    cpu: dict[int, dict[str, float]] = {}
    wall: dict[int, dict[str, float]] = {}
    for count in map(int, args.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder) / "results", count)
            times = {" ".join(w): [seconds_of(w, Path(folder)) for _ in range(args.repeat)] for w in REPORTS}
        cpu[count], wall[count] = (
            {name: statistics.median(pair[which] for pair in pairs) for name, pairs in times.items()}
            for which in range(2)
        )
        rows.append([f"{count:,}", *(f"{cpu[count][name]:.2f} ({wall[count][name]:.2f})" for name in times)])
        print(f"{count:,} records: done", file=sys.stderr, flush=True)
    write(args, "reports", {"cpu_s": cpu, "wall_s": wall})
    print_table(["records", *(f"{' '.join(words)}, CPU s (s)" for words in REPORTS)], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
