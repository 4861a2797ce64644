"""Whether the fast ways harm the metric: the same runs padded in fp32 and each fast way in bf16, seed by seed.

    python -m benchmarks.quality data=local data.dir=DIR       # CoLA and RTE with MiniLM, three seeds each way

The first way is the paper's scripts' (every batch padded to the task's maximum length, fp32). The second has the same
batches, padded to the longest (``train.precision=bf16`` alone), the third other ones, of similar length
(``train.group_by_length=true``). Beside the metric of the last step, the mean training loss of the second half of the
run. Words go to adalora-run; runs that are finished are not made again. Their records are kept in
results/benchmarks/quality.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora_repro.records import run_record
from adalora_repro.reports.curves import losses
from benchmarks.results import parser, print_table, start, write
from benchmarks.runs import planned

WAYS = {
    "padded, fp32": ["train.padding=max_length", "train.precision=fp32"],
    "to the longest, bf16": ["train.precision=bf16"],
    "grouped, bf16": ["train.group_by_length=true", "train.precision=bf16"],
}
COLA = ["method=lora", "budget=1.2M", "optim.lr=1e-3", "method.schedule=scaled", "train.epochs=2"]
COLA += ["method.alpha=16", "method.init=normal"]  # the settings of the stored records
# what LoRA learns of RTE in as short a run is near chance
RTE = ["method=full", "optim.lr=1e-4", "optim.warmup_steps=20", "train.epochs=3", "task.max_length=128"]
RUNS = {"cola": COLA, "rte": RTE}


def figures_of(folder: Path) -> dict[str, float]:
    """What is compared, of a finished run."""
    record = run_record.read(folder / run_record.RECORD_NAME)
    assert record.final is not None  # the run has ended
    half = record.key["total_steps"] / 2
    return {
        "score": 100 * record.final["metrics"][record.primary_metric],
        "loss": statistics.fmean(point.value for point in losses(folder, most=sys.maxsize) if point.step > half),
        "s_per_step": record.time["s_per_step"],
    }


def difference(ways: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of two ways, seed by seed: the second's figures less the first's."""
    each = [b - a for a, b in zip(*ways, strict=True)]
    return {"each": each, "mean": statistics.fmean(each), "standard_error": statistics.stdev(each) / len(each) ** 0.5}


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
        found: dict[str, dict[str, list[float]]] = {}
        for way, its_words in WAYS.items():
            words = [f"task={task}", "backbone=minilm", *RUNS[task], *its_words]
            words += [f"results.dir={args.out / 'quality'}", *args.words]
            runs = [sys.executable, "-m", "adalora_repro.cli.run", "-m", *words, f"seed={args.seeds}"]
            subprocess.run(runs, check=True)
            each = [figures_of(planned([*words, f"seed={seed}"]).folder) for seed in seeds]
            found[way] = {name: [run[name] for run in each] for name in each[0]}
            scores, loss, seconds = found[way].values()
            listed = ", ".join(f"{score:.2f}" for score in scores)
            means = [f"{statistics.fmean(scores):.2f}", f"{statistics.fmean(loss):.4f}"]
            rows.append([task, way, listed, *means, f"{statistics.median(seconds):.2f}"])
        first, *others = found
        differences = {
            way: {name: difference([found[first][name], found[way][name]]) for name in ("score", "loss")}
            for way in others
        }
        for way, of_way in differences.items():
            listed = ", ".join(f"{each:+.2f}" for each in of_way["score"]["each"])
            means = [
                f"{value['mean']:+.{digits}f} (s.e. {value['standard_error']:.{digits}f})"
                for value, digits in zip(of_way.values(), (2, 4), strict=True)
            ]
            rows.append([task, f"{way} - {first}", listed, *means, ""])
        figures[task] = {"ways": found, "differences": differences}
    write(args, "quality", {"seeds": seeds, "tasks": figures})
    print_table(["task", "way", "metric of each seed, %", "mean", "training loss", "s / step"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
