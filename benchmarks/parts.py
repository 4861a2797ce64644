"""Into how many parts a CPU should cut a batch: a step's time against what a pass through the model is taken to cost.

    python -m benchmarks.parts                                  # MNLI's lengths; --shape minilm --task cola

Random batches, each whole and cut by ``batches.by_length`` for several ``pass_tokens``, in turn; AdaLoRA. What a pass
costs in truth is the fit of all steps' times to a x tokens with padding + b x passes: b / a, in tokens.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from adalora_repro.config.schema import TrainConfig
from benchmarks.contenders import Contender
from benchmarks.lengths import TASKS, lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, ratio, ratio_text, start, write

CHOICES = (TrainConfig.pass_tokens, 8, 32, 64, 256, 512, None)  # None: one pass


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--task", choices=TASKS, default="mnli")
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=8, help="batches (%(default)s)")
    args = start(arguments)
    bf16 = args.precision == "bf16"
    contender = Contender("ours", "adalora", bf16=bf16, shape=args.shape, delta_t=100, device=args.device)
    batches = sampled_epoch(lengths_of(args.task), args.batch, args.rounds, grouped=False)
    contender.warm_up([contender.parts(lengths, 0, choice) for lengths in batches for choice in CHOICES])
    times: dict[int | None, list[float]] = {choice: [] for choice in CHOICES}
    sizes: dict[int | None, list[tuple[int, int]]] = {choice: [] for choice in CHOICES}  # tokens with padding, passes
    for number, lengths in enumerate(batches):
        for choice in CHOICES if number % 2 else CHOICES[::-1]:
            parts = contender.parts(lengths, number, choice)
            times[choice].append(contender.timed(*parts))
            sizes[choice].append((sum(part["input_ids"].numel() for part in parts), len(parts)))
        print(f"batch {number + 1}/{args.rounds}", file=sys.stderr, flush=True)
    measured = np.array([pair for choice in CHOICES for pair in sizes[choice]], float)
    (per_token, per_pass), *_ = np.linalg.lstsq(measured, np.concatenate([times[c] for c in CHOICES]))
    figures: dict[str, Any] = {"pass_costs_tokens": per_pass / per_token, "cut": {}}
    rows = []
    for choice in sorted(CHOICES, key=lambda choice: choice or sys.maxsize):
        tokens, passes = np.mean(sizes[choice], axis=0)
        against = ratio(times[choice], times[TrainConfig.pass_tokens])
        name = "one pass" if choice is None else str(choice)
        figures["cut"][name] = {"seconds": times[choice], "passes": passes, "tokens": tokens, "ratio": against}
        mean = np.mean(times[choice])
        rows.append([name, f"{passes:.1f}", f"{tokens / args.batch:.1f}", f"{mean:.2f}", ratio_text(against)])
    write(args, f"parts_{args.task}_{args.shape}", figures)
    print_table(
        ["a pass is taken to cost", "passes", "tokens an example", "s / step", f"x {TrainConfig.pass_tokens} [95%]"],
        rows,
    )
    print(f"\nmeasured: a pass costs {per_pass / per_token:.0f} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
