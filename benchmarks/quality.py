"""Whether the fast way harms the metric: the same runs padded in fp32 and length-grouped in bf16, seed by seed.

    python -m benchmarks.quality data=local data.dir=DIR       # CoLA and RTE with MiniLM, LoRA, three seeds each way

The first way is the paper's scripts' (every batch padded to the task's maximum length, fp32), the second this runner's
(``train.padding=longest train.precision=bf16``). Words go to adalora-run; runs that are finished are not made again.
Their records are kept in results/benchmarks/quality.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

from adalora_repro import records
from benchmarks.results import parser, print_table, start, write

WAYS = {"padded, fp32": ("max_length", "fp32"), "grouped, bf16": ("longest", "bf16")}
LORA = ["method=lora", "budget=1.2M", "optim.lr=1e-3", "method.schedule=scaled"]
RUNS = {
    "cola": [*LORA, "train.epochs=1"],
    "rte": [*LORA, "train.epochs=1.5", "task.max_length=128"],
}


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--tasks", default=",".join(RUNS))
    arguments.add_argument("words", nargs="*", help="of adalora-run")
    args = start(arguments)
    results, tasks = args.out / "quality", args.tasks.split(",")
    for task in tasks:
        for padding, precision in WAYS.values():
            setting = [f"train.padding={padding}", f"train.precision={precision}", f"seed={args.seeds}"]
            words = [
                "-m",
                f"task={task}",
                "backbone=minilm",
                *RUNS[task],
                *setting,
                f"results.dir={results}",
                *args.words,
            ]
            environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
            subprocess.run([sys.executable, "-m", "adalora_repro.run", *words], check=True, env=environment)
    found: dict[str, dict[str, dict[int, float]]] = {task: {way: {} for way in WAYS} for task in tasks}
    seconds: dict[str, dict[str, list[float]]] = {task: {way: [] for way in WAYS} for task in tasks}
    for path in records.find(results):
        record = records.read(path)
        used = (record.settings["train.padding"], record.settings["train.precision"])
        way = next(name for name, setting in WAYS.items() if setting == used)
        if record.final is not None and record.key["task"] in tasks:
            found[record.key["task"]][way][record.key["seed"]] = record.final["metrics"][record.primary_metric]
            seconds[record.key["task"]][way].append(record.time["s_per_step"])
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for task, ways in found.items():
        padded, grouped = ways.values()
        differences = [100 * (grouped[seed] - padded[seed]) for seed in sorted(padded)]
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        for way, scores in ways.items():
            values = [f"{100 * score:.2f}" for _, score in sorted(scores.items())]
            average = 100 * statistics.fmean(scores.values())
            rows.append(
                [task, way, ", ".join(values), f"{average:.2f}", f"{statistics.median(seconds[task][way]):.2f}"]
            )
        rows.append(
            [task, "difference", ", ".join(f"{d:+.2f}" for d in differences), f"{mean:+.2f} (s.e. {error:.2f})", ""]
        )
        figures[task] = {"scores": ways, "s_per_step": seconds[task], "mean_difference": mean, "standard_error": error}
    write(args, "quality", {"tasks": figures})
    print_table(["task", "way", "metric of each seed, %", "mean", "s / step"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
