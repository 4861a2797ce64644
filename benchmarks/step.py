"""Time of an optimizer step, side by side: LoRA and AdaLoRA, ours and PEFT's, fp32 and bf16.

    python -m benchmarks.step                                   # this machine, lengths of MNLI, batch size 32
    python -m benchmarks.step --task qqp --rounds 20 --only ours

All contenders live in one process and step on the same length-grouped batches, which represent an epoch; the order of
the contenders changes from batch to batch. A ratio is the median over batches of the ratio of two steps on one batch,
with a bootstrap interval, so that other load on the machine affects both sides. A mask at every step is the most
expensive case of AdaLoRA (--delta-t 100: the paper's). ``matrix rate``: a step's rate of floating-point operations in
matrix products, as a share of that of bare matrix products of the same shapes, timed between the rounds. ``peak rate``
(GPU): the same, as a share of the rate of a product of two 8,192 x 8,192 matrices in the same precision. fp32 means
without TF32 unless torch is configured otherwise. Tokens are counted without padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from itertools import combinations

import torch
from torch.utils.flop_counter import FlopCounterMode

from adalora_repro.lowrank.layers import LowRankLinear
from adalora_repro.training.cost import ratio_text, wait_for
from benchmarks.contenders import Contender, can_crop, in_turn
from benchmarks.lengths import TASKS, Tensors, lengths_of, sampled_epoch
from benchmarks.results import parser, print_goal, print_table, ratio, start, write

METHODS = ("lora", "adalora")
GOALS = {
    "ours adalora / ours lora": "<= 1.03",
    "ours adalora eager / ours lora eager": "<= 1.03",
    "peft adalora / ours adalora": ">= 1.3",
    "peft adalora / ours adalora eager": ">= 1.3",
    "peft lora / ours lora": ">= 1",
    "peft lora / ours lora eager": ">= 1",
}
SQUARE = 8192
REPEATS = {"cpu": 1, "cuda": 50}  # a single product would measure its launch
PRECISIONS = {"fp32": [False], "bf16": [True], "both": [False, True]}


def make_contenders(args: argparse.Namespace) -> list[Contender]:
    common = {"delta_t": args.delta_t, "device": args.device, "shape": args.shape}
    ways = [("ours", False), *[("ours", True)] * can_crop(args.shape), *[("peft", False)] * (args.only != "ours")]
    return [
        Contender(who, name, bf16, eager, **common)
        for bf16 in PRECISIONS[args.precision]
        for who, eager in ways
        for name in METHODS
    ]


def matrix_rate(shapes: Iterable[tuple[int, int]], tokens: int, bf16: bool, device: str) -> float:
    """FLOP/s of x W^T, one product for each (d_out, d_in) and x of ``tokens`` rows; the best of three times."""
    flop, seconds = 0, 0.0
    for d_out, d_in in shapes:
        x, weight = (
            torch.randn(rows, d_in, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
            for rows in (tokens, d_out)
        )
        times = []
        for _ in range(3):
            wait_for(torch.device(device))
            began = time.perf_counter()
            for _ in range(REPEATS[device]):
                torch.nn.functional.linear(x, weight)
            wait_for(torch.device(device))
            times.append((time.perf_counter() - began) / REPEATS[device])
        flop += 2 * tokens * d_out * d_in
        seconds += min(times)
    return flop / seconds


def flop_of(contender: Contender, batch: Tensors) -> int:
    """Floating-point operations in the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        contender.step(batch)
    return counter.get_total_flops()


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--task", choices=TASKS, default="mnli")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--precision", choices=tuple(PRECISIONS), default="both")
    arguments.add_argument("--delta-t", type=int, default=1)
    arguments.add_argument("--only", choices=("ours",))
    args = start(arguments)

    # -- warm-up: the shortest and the longest batch; on an accelerator every length
    batches = sampled_epoch(lengths_of(args.task), args.batch, args.rounds)
    contenders = make_contenders(args)
    for contender in contenders:
        for number in (0, args.rounds - 1) if args.device == "cpu" else range(args.rounds):
            contender.step(contender.batch(batches[number], number))
        print(f"{contender.label}: ready", file=sys.stderr, flush=True)

    # -- the rounds
    precisions = PRECISIONS[args.precision]
    rates: dict[bool, list[float]] = {bf16: [] for bf16 in precisions}
    layers = [module.base for module in contenders[0].model.modules() if isinstance(module, LowRankLinear)]
    shapes = sorted({(layer.out_features, layer.in_features) for layer in layers})
    for number, lengths in enumerate(batches):
        batch = contenders[0].batch(lengths, number)
        for contender in in_turn(contenders, number):
            contender.times.append(contender.timed(batch))
        for bf16 in precisions:
            rates[bf16].append(matrix_rate(shapes, batch["input_ids"].numel(), bf16, args.device))
        print(f"batch {number + 1}/{len(batches)}: {batch['input_ids'].shape[1]} tokens", file=sys.stderr, flush=True)
    peaks: dict[bool, float] = {}
    if args.device == "cuda":
        peaks = {bf16: matrix_rate([(SQUARE, SQUARE)], SQUARE, bf16, args.device) for bf16 in precisions}

    # -- figures
    sample = sorted({0, len(batches) // 2, len(batches) - 1})  # the batches whose operations are counted
    by_label = {contender.label: contender for contender in contenders}
    rows, figures = [], {}
    for label, contender in by_label.items():
        flop = {number: flop_of(contender, contender.batch(batches[number], number)) for number in sample}
        spent = sum(contender.times[number] for number in sample)
        share = sum(flop[number] / rates[contender.bf16][number] for number in sample) / spent
        peak_share = sum(flop.values()) / spent / peaks[contender.bf16] if peaks else None
        tokens_per_s = sum(map(sum, batches)) / sum(contender.times)
        figures[label] = {
            "seconds": contender.times,
            "matrix_rate_share": share,
            "peak_rate_share": peak_share,
            "flop": flop,
            "tokens_per_s": tokens_per_s,
        }
        to_lora = ratio(contender.times, by_label[f"ours lora {label.split()[-1]}"].times)
        shares = [f"{share:.0%}", "" if peak_share is None else f"{peak_share:.1%}"]
        median = f"{statistics.median(contender.times):.4g}"
        rows.append([label, median, ratio_text(to_lora), *shares, f"{tokens_per_s:,.0f}"])
    ratios = {
        f"{b.label} / {a.label}": ratio(b.times, a.times) for a, b in combinations(contenders, 2) if a.bf16 == b.bf16
    }
    setting = {name: value for name, value in vars(args).items() if name != "out"}
    setting["tf32"] = torch.get_float32_matmul_precision() != "highest"
    setting["padded_lengths"] = [max(lengths) for lengths in batches]
    names = {False: "fp32", True: "bf16"}
    content = {"setting": setting, "contenders": figures, "ratios": ratios}
    content["matrix_products_per_s"] = {names[bf16]: statistics.median(each) for bf16, each in rates.items()}
    content["square_products_per_s"] = {names[bf16]: value for bf16, value in peaks.items()}
    write(args, f"step_{args.task}_{args.device}", content)
    print_table(
        ["contender", "s / step", "x our LoRA, same precision [95%]", "matrix rate", "peak rate", "tokens / s"], rows
    )
    for bf16, rate in peaks.items():
        print(f"peak rate, {names[bf16]}: {rate / 1e12:.0f} TFLOP/s, measured: {SQUARE} x {SQUARE} matrices")
    for name, value in ratios.items():
        if goal := GOALS.get(name.replace(" fp32", "").replace(" bf16", "")):
            print_goal(f"{args.shape}, {args.task}, step, {name}", value, goal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
