"""Evaluation: its time against the size of its batches, longest first as the runner has them, and in no order.

    python -m benchmarks.evaluation                        # MNLI's lengths; --shape minilm --task cola

AdaLoRA at its budget, in inference mode, bf16. All ways evaluate the same examples, in turn; ``x`` is the median over
rounds of the ratio to the default's, ``eval.batch_size=64``, with a 95% bootstrap interval.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import torch

from adalora_repro.training.batches import evaluation_batches
from adalora_repro.training.cost import wait_for
from benchmarks.contenders import Contender
from benchmarks.lengths import TASKS, Tensors, lengths_of
from benchmarks.results import parser, print_table, ratio, ratio_text, start, write

SIZES, DEFAULT = (8, 16, 32, 64, 128, 256), 64  # of conf/task for classification


def seconds(contender: Contender, batches: list[Tensors]) -> float:
    device = torch.device(contender.device)
    wait_for(device)
    began = time.perf_counter()
    with contender.method.masked(), torch.inference_mode(), torch.autocast(contender.device, torch.bfloat16):
        for batch in batches:
            contender.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    wait_for(device)
    return time.perf_counter() - began


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--task", choices=TASKS, default="mnli")
    arguments.add_argument("--examples", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    args = start(arguments)
    contender = Contender("ours", "adalora", bf16=True, shape=args.shape, device=args.device)
    lengths = random.Random(0).sample(lengths_of(args.task), args.examples)
    split = {f"{size}, longest first": evaluation_batches(lengths, size) for size in SIZES}
    rows_of = range(len(lengths))
    split[f"{DEFAULT}, in no order"] = [list(rows_of[i : i + DEFAULT]) for i in rows_of[::DEFAULT]]
    ways = {name: [contender.batch([lengths[i] for i in rows], 0) for rows in found] for name, found in split.items()}
    contender.step(ways[f"{SIZES[0]}, longest first"][-1])  # makes a mask
    contender.model.eval()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            found = seconds(contender, ways[name])
            if number:  # the first is to get warm
                times[name].append(found)
        print(f"round {number}/{args.rounds}", file=sys.stderr, flush=True)
    default = times[f"{DEFAULT}, longest first"]
    rows, figures = [], {}
    for name, batches in ways.items():
        tokens = sum(batch["input_ids"].numel() for batch in batches) / len(lengths)
        per_second = len(lengths) / statistics.median(times[name])
        against = ratio(times[name], default)
        figures[name] = {"seconds": times[name], "tokens": tokens, "examples_per_s": per_second, "ratio": against}
        rows.append([name, f"{tokens:.1f}", f"{per_second:.0f}", ratio_text(against)])
    write(args, f"evaluation_{args.task}_{args.shape}", {"examples": len(lengths), "batches": figures})
    print_table(["eval.batch_size", "tokens an example", "examples / s", f"x {DEFAULT} [95%]"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
