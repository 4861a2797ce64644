"""Time of an epoch: the way the paper's scripts run against this runner's, same batch size, same examples.

    python -m benchmarks.epoch                 # MNLI and QQP, this machine; --only mnli --threads 2

Theirs: every batch padded to the task's maximum length, fp32, PEFT's AdaLoRA or a plain loop (here: our own AdaLoRA,
which dispatches a quarter of PEFT's operations). Ours, in bf16: batches drawn at random as theirs, padded to their
longest, on a CPU in parts of similar length (the default); and length-grouped ones (train.group_by_length); both with
transformers' attention and with train.attention=cropped. A step is timed on batches that stand for the epoch's, the
ways taking turns; seconds per epoch are their mean times the steps of an epoch of the paper's data. Padded batches are
all alike, so that few are enough; on a CPU their step is of micro-batches (32 x 256 tokens in fp32 need more than
20 GB).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adalora_repro.config.schema import TrainConfig
from adalora_repro.training.cost import interval, ratio_of_means
from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import Tensors, lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, ratio_text, start, write
from benchmarks.runs import composed

TASKS = ("mnli", "qqp")
BATCH = 32


@dataclass
class Way:
    """A contender and how it is fed."""

    name: str
    contender: Contender
    batches: str = "padded"  # | drawn | grouped

    def parts(self, lengths: Sequence[int], seed: int, size: int, longest: int) -> list[Tensors]:
        """A step's micro-batches: padded ones are of ``size`` examples and as long as ``longest``."""
        if self.batches == "padded":
            starts = range(0, len(lengths), size)
            return [self.contender.batch(lengths[i : i + size], seed + i, longest) for i in starts]
        cut = self.batches == "drawn" and self.contender.device == "cpu"
        return self.contender.parts(lengths, seed, TrainConfig.pass_tokens if cut else None)


def made(shape: str, device: str) -> list[Way]:
    common: dict[str, Any] = {"name": "adalora", "delta_t": 100, "shape": shape, "device": device}
    ways = [
        Way("PEFT AdaLoRA, padded, fp32", Contender("peft", **common)),
        Way("our AdaLoRA, padded, fp32", Contender("ours", **common)),
    ]
    for batches, told in (("drawn", "to the longest"), ("grouped", "grouped")):
        ways.append(Way(f"our AdaLoRA, {told}, bf16", Contender("ours", bf16=True, **common), batches))
        if can_crop(shape):
            cropped = Contender("ours", bf16=True, cropped=True, **common)
            ways.append(Way(f"our AdaLoRA, {told}, bf16, cropped", cropped, batches))
    return ways


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--padded-steps", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=8, help="of those that are not padded (%(default)s)")
    arguments.add_argument("--part", type=int, help="examples of a padded micro-batch (8 on a CPU, else the batch)")
    arguments.add_argument("--only", choices=TASKS)
    args = start(arguments)
    size = args.part or (8 if args.device == "cpu" else BATCH)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for task in [args.only] if args.only else TASKS:
        about = composed([f"task={task}", "method=adalora"]).task
        longest, examples = about.max_length, about.rows["train"]
        ways = made(args.shape, args.device)
        lengths = lengths_of(task)
        drawn, grouped = (sampled_epoch(lengths, BATCH, args.steps, grouped=group) for group in (False, True))
        batches = {"padded": drawn, "drawn": drawn, "grouped": grouped}
        for way in ways:
            way.contender.warm_up([way.parts(chosen, 0, size, longest) for chosen in batches[way.batches]])
        every = max(1, args.steps // args.padded_steps)
        for number in range(args.steps):
            for way in ways if number % 2 else ways[::-1]:
                if way.batches == "padded" and number % every:
                    continue
                parts = way.parts(batches[way.batches][number], number, size, longest)
                way.contender.times.append(way.contender.timed(*parts))
            print(f"{task}: batch {number + 1}/{args.steps}", file=sys.stderr, flush=True)
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
    write(args, "epoch", {"batch": BATCH, "padded_micro_batch": size, "ways": figures})
    print_table(["task", "way", "s / step", "h / epoch", "x PEFT padded", "x plain padded [95%]"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
