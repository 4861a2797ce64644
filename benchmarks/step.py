"""Time of an optimizer step, side by side: LoRA and AdaLoRA, ours and PEFT's, fp32 and bf16.

    python -m benchmarks.step                                   # this machine, MNLI's lengths, batch 32
    python -m benchmarks.step --task qqp --rounds 20 --only ours

All contenders are in one process and step on the same batches, whose lengths are spread over an epoch of grouped ones
(train.group_by_length=true, so that a step is one pass); the order turns from batch to batch. Ratios are medians over
batches of the ratio of two steps on one batch, with a bootstrap interval: what else the machine does hits both. A mask
at every step is AdaLoRA's costliest case (--delta-t 100: the paper's). Between rounds bare matrix products of the
model's shapes are timed; ``matrix rate`` is the share of their rate that a step reaches, counting the model's and the
method's products. On a GPU ``peak rate`` is the share of the rate of a product of two 8,192 x 8,192 matrices in
the same precision; fp32 means without TF32, unless torch is configured otherwise. Tokens are counted without padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adalora_repro.lowrank.layers import LowRankLinear
from adalora_repro.training.cost import wait_for
from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import TASKS, Tensors, lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, ratio, ratio_text, start, write

METHODS = ("lora", "adalora")
SQUARE = 8192
PRODUCTS = {"cpu": 1, "cuda": 50}  # of one kind in a row: one alone would be the time of its launch


def contenders(args: argparse.Namespace) -> list[Contender]:
    made = []
    common = {"delta_t": args.delta_t, "device": args.device, "shape": args.shape}
    ways: list[dict[str, Any]] = [{}, *([{"cropped": True}] if can_crop(args.shape) else [])]
    ways += [{**ways[-1], "compiler": "inductor"}] if args.compile else []
    for bf16 in {"fp32": [False], "bf16": [True], "both": [False, True]}[args.precision]:
        for way in ways:
            made += [Contender("ours", name, bf16, **way, **common) for name in METHODS]
        if args.only != "ours":
            made += [Contender("peft", name, bf16, **common) for name in METHODS]
    return made


def matrix_rate(shapes: Iterable[tuple[int, int]], tokens: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the bare products x Wᵀ, one for each (d_out, d_in), x with so many rows; the best of three times."""
    flop, seconds = 0, 0.0
    for d_out, d_in in shapes:
        x, weight = (torch.randn(rows, d_in, device=device).to(dtype) for rows in (tokens, d_out))
        times = []
        for _ in range(3):
            wait_for(torch.device(device))
            began = time.perf_counter()
            for _ in range(PRODUCTS[device]):
                torch.nn.functional.linear(x, weight)
            wait_for(torch.device(device))
            times.append((time.perf_counter() - began) / PRODUCTS[device])
        flop += 2 * tokens * d_out * d_in
        seconds += min(times)
    return flop / seconds


def flop_of(contender: Contender, batch: Tensors) -> int:
    """Floating-point operations of the matrix products of a step, uncompiled (a compiled one does the same)."""
    forward, contender.forward = contender.forward, contender.model
    with FlopCounterMode(display=False) as counter:
        contender.step(batch)
    contender.forward = forward
    return counter.get_total_flops()


def compared(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The pairs of contenders whose ratio answers a question."""
    known = set(labels)
    pairs = []
    for precision in ("fp32", "bf16"):
        for way in ("", " cropped", " cropped compiled", " compiled"):
            ours, peft = ([f"{who} {name}{way} {precision}" for name in METHODS] for who in ("ours", "peft"))
            pairs.append((ours[1], ours[0]))  # AdaLoRA at the cost of LoRA
            plain = [f"ours {name} {precision}" for name in METHODS]
            pairs += zip(plain, ours, strict=True) if way else []  # what the way saves
            pairs += [*zip(peft, ours, strict=True), (peft[0], ours[1])]
    pairs += [(f"ours {name}{way} fp32", f"ours {name}{way} bf16") for name in METHODS for way in ("", " cropped")]
    yield from (pair for pair in pairs if known.issuperset(pair))


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--task", choices=TASKS, default="mnli")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    arguments.add_argument("--delta-t", type=int, default=1)
    arguments.add_argument("--compile", action="store_true", help="train.compile=inductor too (minutes the first time)")
    arguments.add_argument("--only", choices=("ours",))
    args = start(arguments)

    # contenders share a limit, beyond which a step would quietly not be compiled
    if args.compile:
        torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = 64, True
    batches = sampled_epoch(lengths_of(args.task), args.batch, args.rounds)
    found = contenders(args)
    for contender in found:
        # two lengths, so that a compiler makes a program for any, and the longest, which cropped attention may not hold
        for number in (args.rounds // 2, 0, -1):
            contender.step(contender.batch(batches[number], number))
        contender.warm_up([[contender.batch(lengths, number)] for number, lengths in enumerate(batches)])
        print(f"{contender.label}: ready", file=sys.stderr, flush=True)
    precisions = {contender.bf16 for contender in found}
    rates: dict[bool, list[float]] = {bf16: [] for bf16 in precisions}
    layers = [module.base for module in found[0].model.modules() if isinstance(module, LowRankLinear)]
    shapes = sorted({(layer.out_features, layer.in_features) for layer in layers})
    order = list(range(len(found)))
    for number, lengths in enumerate(batches):
        batch = found[0].batch(lengths, number)
        turned = order[number % len(order) :] + order[: number % len(order)]
        for place in turned if number % 2 else turned[::-1]:
            found[place].times.append(found[place].timed(batch))
        for bf16, found_rates in rates.items():
            dtype = torch.bfloat16 if bf16 else torch.float32
            found_rates.append(matrix_rate(shapes, batch["input_ids"].numel(), dtype, args.device))
        print(f"batch {number + 1}/{len(batches)}: {batch['input_ids'].shape[1]} tokens", file=sys.stderr, flush=True)

    peaks: dict[bool, float] = {}
    if args.device == "cuda":
        types = {bf16: torch.bfloat16 if bf16 else torch.float32 for bf16 in precisions}
        peaks = {bf16: matrix_rate([(SQUARE, SQUARE)], SQUARE, dtype, args.device) for bf16, dtype in types.items()}
    sample = sorted({0, len(batches) // 2, len(batches) - 1})  # their operations are counted
    rows, figures = [], {}
    by_label = {contender.label: contender for contender in found}
    for contender in found:
        flop = {number: flop_of(contender, contender.batch(batches[number], number)) for number in sample}
        # at the bare rate that was measured beside each step
        needed = sum(flop[number] / rates[contender.bf16][number] for number in sample)
        spent = sum(contender.times[number] for number in sample)
        share = needed / spent
        of_peak = sum(flop.values()) / spent / peaks[contender.bf16] if peaks else None
        tokens = sum(map(sum, batches)) / sum(contender.times)
        against = ratio(contender.times, by_label[f"ours lora {'bf16' if contender.bf16 else 'fp32'}"].times)
        figures[contender.label] = {
            "seconds": contender.times,
            "ratio_to_our_lora": against,
            "matrix_rate_share": share,
            "peak_rate_share": of_peak,
            "flop": flop,
            "tokens_per_s": tokens,
        }
        median = f"{statistics.median(contender.times):.4g}"
        peak = "" if of_peak is None else f"{of_peak:.1%}"
        rows.append([contender.label, median, ratio_text(against), f"{share:.0%}", peak, f"{tokens:,.0f}"])
    ratios = {f"{a} / {b}": ratio(by_label[a].times, by_label[b].times) for a, b in compared(by_label)}
    rate = {("bf16" if bf16 else "fp32"): statistics.median(each) for bf16, each in rates.items()}
    setting = {name: value for name, value in vars(args).items() if name != "out"}
    setting["tf32"] = torch.get_float32_matmul_precision() != "highest"
    setting["padded_lengths"] = [max(lengths) for lengths in batches]
    content = {"setting": setting, "contenders": figures, "ratios": ratios, "matrix_products_per_s": rate}
    content["square_products_per_s"] = {("bf16" if bf16 else "fp32"): value for bf16, value in peaks.items()}
    write(args, f"step_{args.task}_{args.device}{'_compiled' * args.compile}", content)
    heading = ["contender", "s / step", "x our LoRA, same precision [95%]", "matrix rate", "peak rate", "tokens / s"]
    print_table(heading, rows)
    print()
    print_table(["ratio of step times", "median [95%]"], [[name, ratio_text(value)] for name, value in ratios.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
