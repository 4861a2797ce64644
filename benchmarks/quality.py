"""Whether the fast way harms the metric: the same runs padded in fp32 and length-grouped in bf16, seed by seed.

    python -m benchmarks.quality data=local data.dir=DIR       # CoLA and RTE with MiniLM, three seeds each way

The first way is the paper's scripts' (every batch padded to the task's maximum length, fp32), the second this runner's
(``train.padding=longest train.precision=bf16``). Beside the metric of the last step, the mean training loss of the
second half of the run, which is far less a matter of chance. Words go to adalora-run; runs that are finished are not
made again. Their records are kept in results/benchmarks/quality.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora_repro import records
from adalora_repro.tables.curves import losses
from benchmarks.results import parser, print_table, start, write
from benchmarks.runs import planned

WAYS = {"padded, fp32": ("max_length", "fp32"), "grouped, bf16": ("longest", "bf16")}
COLA = ["method=lora", "budget=1.2M", "optim.lr=1e-3", "method.schedule=scaled", "train.epochs=2"]
# what LoRA learns of RTE in as short a run is near chance
RTE = ["method=full", "optim.lr=1e-4", "optim.warmup_steps=20", "train.epochs=3", "task.max_length=128"]
RUNS = {"cola": COLA, "rte": RTE}


def figures_of(folder: Path) -> dict[str, float]:
    """What is compared, of a finished run."""
    record = records.read(folder / records.RECORD_NAME)
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
        for way, (padding, precision) in WAYS.items():
            words = [f"task={task}", "backbone=minilm", *RUNS[task]]
            words += [f"train.padding={padding}", f"train.precision={precision}"]
            words += [f"results.dir={args.out / 'quality'}", *args.words]
            runs = [sys.executable, "-m", "adalora_repro.run", "-m", *words, f"seed={args.seeds}"]
            subprocess.run(runs, check=True)
            each = [figures_of(planned([*words, f"seed={seed}"]).folder) for seed in seeds]
            found[way] = {name: [run[name] for run in each] for name in each[0]}
            scores, loss, seconds = found[way].values()
            listed = ", ".join(f"{score:.2f}" for score in scores)
            means = [f"{statistics.fmean(scores):.2f}", f"{statistics.fmean(loss):.4f}"]
            rows.append([task, way, listed, *means, f"{statistics.median(seconds):.2f}"])
        differences = {name: difference([of_way[name] for of_way in found.values()]) for name in ("score", "loss")}
        listed = ", ".join(f"{each:+.2f}" for each in differences["score"]["each"])
        means = [
            f"{value['mean']:+.{digits}f} (s.e. {value['standard_error']:.{digits}f})"
            for value, digits in zip(differences.values(), (2, 4), strict=True)
        ]
        rows.append([task, "difference", listed, *means, ""])
        figures[task] = {"ways": found, "differences": differences}
    write(args, "quality", {"seeds": seeds, "tasks": figures})
    print_table(["task", "way", "metric of each seed, %", "mean", "training loss", "s / step"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
