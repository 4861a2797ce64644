"""Whether the fast way harms the metric: the same runs padded in fp32 and length-grouped in bf16, seed by seed.

    python -m benchmarks.quality data=local data.dir=DIR       # CoLA and RTE with MiniLM, LoRA, three seeds each way

The first way is the paper's scripts' (every batch padded to the task's maximum length, fp32), the second this runner's
(``train.padding=longest train.precision=bf16``). Words go to adalora-run; runs that are finished are not made again.
Their records are kept in results/benchmarks/quality.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from adalora_repro import records
from benchmarks.results import parser, print_table, start, write
from benchmarks.runs import planned

WAYS = {"padded, fp32": ("max_length", "fp32"), "grouped, bf16": ("longest", "bf16")}
LORA = ["backbone=minilm", "method=lora", "budget=1.2M", "optim.lr=1e-3", "method.schedule=scaled"]
RUNS = {
    "cola": [*LORA, "train.epochs=2"],
    "rte": [*LORA, "train.epochs=1.5", "task.max_length=128"],
}


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--tasks", default=",".join(RUNS))
    arguments.add_argument("words", nargs="*", help="of adalora-run")
    args = start(arguments)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if len(seeds) < 2:
        arguments.error("--seeds: a standard error takes two or more")
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for task in args.tasks.split(","):
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for way, (padding, precision) in WAYS.items():
            words = [f"task={task}", *RUNS[task], f"train.padding={padding}", f"train.precision={precision}"]
            words += [f"results.dir={args.out / 'quality'}", *args.words]
            runs = [sys.executable, "-m", "adalora_repro.run", "-m", *words, f"seed={args.seeds}"]
            subprocess.run(runs, check=True)
            found = [records.read(planned([*words, f"seed={seed}"]).folder / "metrics.json") for seed in seeds]
            scores[way] = [100 * record.final["metrics"][record.primary_metric] for record in found if record.final]
            seconds[way] = [record.time["s_per_step"] for record in found]
            values = ", ".join(f"{score:.2f}" for score in scores[way])
            each = f"{statistics.median(seconds[way]):.2f}"
            rows.append([task, way, values, f"{statistics.fmean(scores[way]):.2f}", each])
        padded, grouped = scores.values()
        differences = [b - a for a, b in zip(padded, grouped, strict=True)]
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        values = ", ".join(f"{difference:+.2f}" for difference in differences)
        rows.append([task, "difference", values, f"{mean:+.2f} (s.e. {error:.2f})", ""])
        figures[task] = {"scores": scores, "s_per_step": seconds, "mean_difference": mean, "standard_error": error}
    write(args, "quality", {"seeds": seeds, "tasks": figures})
    print_table(["task", "way", "metric of each seed, %", "mean", "s / step"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
