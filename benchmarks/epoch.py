"""Time of an epoch: the way the paper's scripts run against this runner's, same batch size, same examples.

    python -m benchmarks.epoch                 # MNLI and QQP, this machine; --only mnli --threads 2

Theirs: every batch padded to the task's maximum length, fp32, PEFT's AdaLoRA or a plain loop (here: our own AdaLoRA,
which dispatches a quarter of PEFT's operations). Ours: length-grouped batches padded to their longest, bf16, with
transformers' attention and with train.attention=cropped. A step is timed on batches spread evenly over the epoch, the
ways taking turns; seconds per epoch are their mean times the steps of an epoch of the paper's data. Padded batches are
all alike, so that few are enough; their step is of micro-batches (32 x 256 tokens in fp32 need more than 20 GB).
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from adalora_repro.cost import interval, ratio_of_means
from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, ratio_text, start, write
from benchmarks.runs import composed

TASKS = ("mnli", "qqp")
BATCH = 32


@dataclass
class Way:
    """A contender and how it is fed."""

    name: str
    contender: Contender
    padded: bool


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--padded-steps", type=int, default=4)
    arguments.add_argument("--grouped-steps", type=int, default=8)
    arguments.add_argument("--part", type=int, default=8, help="examples of a padded micro-batch (%(default)s)")
    arguments.add_argument("--only", choices=TASKS)
    args = start(arguments)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for task in [args.only] if args.only else TASKS:
        about = composed([f"task={task}", "method=adalora"]).task
        longest, examples = about.max_length, about.rows["train"]
        common: dict[str, Any] = {"delta_t": 100, "shape": args.shape, "device": args.device}
        ways = [
            Way("PEFT AdaLoRA, padded, fp32", Contender("peft", "adalora", **common), True),
            Way("our AdaLoRA, padded, fp32", Contender("ours", "adalora", **common), True),
            Way("our AdaLoRA, grouped, bf16", Contender("ours", "adalora", bf16=True, **common), False),
        ]
        if can_crop(args.shape):
            ways.append(Way("… and cropped", Contender("ours", "adalora", bf16=True, cropped=True, **common), False))
        lengths = lengths_of(task)
        batches = sampled_epoch(lengths, BATCH, args.grouped_steps)
        for way in ways:
            # on the shapes that are timed
            padded = (batches[0][: args.part], 0, longest)
            way.contender.step(way.contender.batch(*padded if way.padded else (batches[-1], 0)))
        every = max(1, args.grouped_steps // args.padded_steps)
        for number, batch in enumerate(batches):
            for way in ways if number % 2 else ways[::-1]:
                if way.padded and number % every:
                    continue
                if way.padded:
                    starts = range(0, BATCH, args.part)
                    parts = [way.contender.batch(batch[i : i + args.part], number + i, longest) for i in starts]
                else:
                    parts = [way.contender.batch(batch, number)]
                way.contender.times.append(way.contender.timed(*parts))
            print(f"{task}: batch {number + 1}/{len(batches)}", file=sys.stderr, flush=True)
        theirs, plain = ways[0].contender.times, ways[1].contender.times
        figures[task] = {}
        for way in ways:
            times = way.contender.times
            per_epoch = statistics.fmean(times) * examples / BATCH
            against_peft = statistics.fmean(theirs) / statistics.fmean(times)
            against_plain = interval(np.array(plain), np.array(times), ratio_of_means, paired=False)
            figures[task][way.name] = {
                "seconds": times,
                "s_per_epoch": per_epoch,
                "faster_than_peft_padded": against_peft,
                "faster_than_plain_padded": against_plain,
            }
            hours = f"{per_epoch / 3600:.1f}"
            row = [task, way.name, f"{statistics.fmean(times):.2f}", hours, f"{against_peft:.2f}"]
            rows.append([*row, ratio_text(against_plain)])
    write(args, "epoch", {"batch": BATCH, "ways": figures})
    print_table(["task", "way", "s / step", "h / epoch", "x PEFT padded", "x plain padded [95%]"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
