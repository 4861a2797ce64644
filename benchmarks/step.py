"""Time of an optimizer step, side by side: LoRA and AdaLoRA, ours and PEFT's, fp32 and bf16.

    python -m benchmarks.step                                   # this machine, MNLI's lengths, batch 32
    python -m benchmarks.step --task qqp --rounds 20 --only ours

All contenders are in one process and step on the same batches, whose lengths are spread over an epoch as training forms
it (length-grouped, padded to the longest); the order turns from batch to batch. Ratios are medians over batches of the
ratio of two steps on one batch, with a bootstrap interval: what else the machine does hits both. A mask at every step
is AdaLoRA's costliest case (--delta-t 100: the paper's). Between rounds bare matrix products of the model's shapes are
timed; ``matrix rate`` is the share of their rate that a step reaches, counting the model's own products alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contender, wait
from benchmarks.lengths import TASKS, Tensors, lengths_of, sampled_epoch, tensors
from benchmarks.results import print_table, ratio, ratio_text, write

WARM_UP = 2  # steps that create optimizer states and fill caches
SHAPES = ((768, 768), (3072, 768), (768, 3072))  # of the frozen matrices, (d_out, d_in)


def contenders(args: argparse.Namespace) -> list[Contender]:
    made = []
    for bf16 in {"fp32": [False], "bf16": [True], "both": [False, True]}[args.precision]:
        for cropped in (False, True):
            for name in ("lora", "adalora"):
                made.append(Contender("ours", name, bf16, cropped, delta_t=args.delta_t, device=args.device))
        if args.only != "ours":
            made += [Contender("peft", n, bf16, delta_t=args.delta_t, device=args.device) for n in ("lora", "adalora")]
    return made


def matrix_rate(tokens: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the bare products x Wᵀ of the model's shapes, x with so many rows; the best of three each."""
    flop, seconds = 0, 0.0
    for d_out, d_in in SHAPES:
        x, weight = (torch.randn(rows, d_in, device=device).to(dtype) for rows in (tokens, d_out))
        times = []
        for _ in range(3):
            wait(device)
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            wait(device)
            times.append(time.perf_counter() - began)
        flop += 2 * tokens * d_out * d_in
        seconds += min(times)
    return flop / seconds


def flop_of(contender: Contender, batch: Tensors) -> int:
    """Floating-point operations of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        contender.step({name: value.to(contender.device) for name, value in batch.items()})
    return counter.get_total_flops()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="mnli")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--delta-t", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("ours",))
    args = parser.parse_args()

    batches = sampled_epoch(lengths_of(args.task, 256), args.batch, args.rounds)
    found = contenders(args)
    for contender in found:
        for seed in range(WARM_UP):
            contender.step({k: v.to(args.device) for k, v in tensors(batches[args.rounds // 2], 1000, seed).items()})
    flop: dict[str, int] = dict.fromkeys((c.label for c in found), 0)
    rates: dict[bool, list[float]] = {bf16: [] for bf16 in {c.bf16 for c in found}}
    order = list(range(len(found)))
    for number, lengths in enumerate(batches):
        batch = tensors(lengths, 1000, number)
        for place in order[number % len(order) :] + order[: number % len(order)]:
            found[place].times.append(found[place].timed(batch))
        for bf16, measured in rates.items():
            dtype = torch.bfloat16 if bf16 else torch.float32
            measured.append(matrix_rate(batch["input_ids"].numel(), dtype, args.device))
        print(f"batch {number + 1}/{len(batches)}: {batch['input_ids'].shape[1]} tokens", file=sys.stderr, flush=True)
    for contender in found:
        for number in (0, len(batches) // 2, len(batches) - 1):
            flop[contender.label] += flop_of(contender, tensors(batches[number], 1000, number))

    by_label = {contender.label: contender for contender in found}
    rows, figures = [], {}
    for contender in found:
        base = by_label[f"ours lora{' bf16' if contender.bf16 else ' fp32'}"]
        against = ratio(contender.times, base.times)
        sample = [contender.times[number] for number in (0, len(batches) // 2, len(batches) - 1)]
        rate = statistics.median(rates[contender.bf16])
        share = flop[contender.label] / sum(sample) / rate
        figures[contender.label] = {
            "seconds": contender.times,
            "ratio_to_our_lora": against,
            "matrix_rate_share": share,
        }
        median = f"{statistics.median(contender.times):.2f}"
        rows.append([contender.label, median, ratio_text(against), f"{share:.0%}"])
    print_table(["contender", "s / step", "x our LoRA, same precision [95%]", "matrix rate"], rows)
    comparisons = {}
    pairs = [("ours lora fp32", "ours lora bf16"), ("ours adalora fp32", "ours adalora bf16")]
    pairs += [(f"ours adalora{c} {p}", f"ours lora{c} {p}") for c in ("", " cropped") for p in ("fp32", "bf16")]
    pairs += [(f"peft {n} {p}", f"ours {n} {p}") for n in ("lora", "adalora") for p in ("fp32", "bf16")]
    pairs += [(f"ours {n} {p}", f"ours {n} cropped {p}") for n in ("lora", "adalora") for p in ("fp32", "bf16")]
    for above, below in pairs:
        if above in by_label and below in by_label:
            comparisons[f"{above} / {below}"] = ratio(by_label[above].times, by_label[below].times)
    print()
    print_table(["ratio of step times", "median [95%]"], [[k, ratio_text(v)] for k, v in comparisons.items()])
    tokens = [max(lengths) for lengths in batches]
    setting = {**vars(args), "padded_lengths": tokens}
    rate = {("bf16" if k else "fp32"): statistics.median(v) for k, v in rates.items()}
    write(
        f"step_{args.task}_{args.device}",
        {"setting": setting, "contenders": figures, "ratios": comparisons, "matrix_products_per_s": rate},
        args.device,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
