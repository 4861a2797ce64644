"""Size on disk of a checkpoint and of a finished run's record against the rank, 1 to 64.

    python -m benchmarks.sizes                     # MiniLM on generated text; bytes, no times

Runs of ten steps in a temporary folder: the checkpoint is of the first step (a finished run has none).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from adalora_repro.records import run_record
from adalora_repro.training import checkpoint, runner
from adalora_repro.training import loop as training_loop
from benchmarks.results import parser, print_table, start, write
from benchmarks.runs import planned

SIZES = {"lora": "method.r={r}", "adalora": "method.init_r={r} method.target_r={half}"}
WORDS = ["task=sst2", "data=sample", "data.sample_rows=64", "data.sample_validation_rows=8", "train.device=cpu"]
WORDS += ["method.schedule=scaled", "train.max_steps=10", "force=true"]


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--backbone", default="minilm")
    arguments.add_argument("--ranks", default="1,2,4,8,16,32,64")
    args = start(arguments)
    found: dict[str, dict[int, dict[str, int]]] = {method: {} for method in SIZES}
    for method, size in SIZES.items():
        for r in map(int, args.ranks.split(",")):
            with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
                folder = Path(name)
                ranks = size.format(r=r, half=max(1, r // 2)).split()
                plan = planned([*WORDS, f"backbone={args.backbone}", f"method={method}", *ranks, f"results.dir={name}"])
                loop = runner.build(plan)
                training_loop.step(loop, next(training_loop.training_batches(loop)))
                checkpoint.save(folder, loop.state_dict())
                if code := runner.execute(plan):
                    return code
                (record,) = run_record.find(folder)
                found[method][r] = {
                    "parameters": plan.params["at_init"] + plan.params["head"],
                    "checkpoint": (folder / checkpoint.NAMES[0]).stat().st_size,
                    "record": record.stat().st_size,
                }
    write(args, "sizes", {"bytes": found})
    rows = [
        [
            *(method, str(r), f"{sizes['parameters']:,}", f"{sizes['checkpoint'] / 1e3:,.1f}"),
            *(f"{sizes['checkpoint'] / sizes['parameters']:.1f}", f"{sizes['record'] / 1e3:,.1f}"),
        ]
        for method, ranks in found.items()
        for r, sizes in ranks.items()
    ]
    heading = ["method", "r", "trained parameters", "checkpoint, kB", "bytes / parameter", "record, kB"]
    print_table(heading, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
