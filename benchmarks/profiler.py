"""Where the time of an optimizer step goes, before and after each of our changes: self time by kind of operation.

    python -m benchmarks.profiler                        # MNLI's lengths, batch 32; --batches 4 --method lora
    python -m benchmarks.profiler --batching             # random batches whole and in parts, length-grouped ones

One thread, torch's profiler, the variants taking turns on the same batches. Each variant adds one change to the one
before: autocast, frozen weights kept in bf16, only the relative positions that occur. With ``--batching`` the model is
the one in bf16, and what changes is which examples go through it together. The profiler itself costs some microseconds
an operation, so that absolute times are those of ``benchmarks.step``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from adalora_repro.config.schema import TrainConfig
from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import TASKS, Tensors, lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, start, write

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16, autocast alone": {"bf16": True, "stored": False},
    "bf16, frozen weights stored": {"bf16": True},
    "… and cropped positions": {"bf16": True, "cropped": True},
}
#: how examples go through the model -> whether batches are length-grouped, ``pass_tokens`` of their parts
BATCHING: dict[str, tuple[bool, int | None]] = {
    "random batches, whole": (False, None),
    "random batches, in parts": (False, TrainConfig.pass_tokens),
    "length-grouped batches": (True, None),
}
#: kind of operation -> beginnings of the names of torch's operations; the first that fits counts
KINDS = {
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
        "mkldnn::",
        "onednn::",
    ),
    "copies and casts": (
        "aten::copy_",
        "aten::_to_copy",
        "aten::clone",
        "aten::contiguous",
        "aten::cat",
        "aten::stack",
    ),
    "picking positions": ("aten::gather", "aten::scatter_add", "aten::index", "aten::repeat"),
    "dropout": ("aten::bernoulli", "aten::native_dropout", "aten::dropout"),
    "softmax, norms, gelu": ("aten::_softmax", "aten::native_layer_norm", "aten::gelu", "aten::_softmax_backward"),
    "clipping and AdamW": ("aten::_fused_adam", "aten::_foreach"),
}
OTHER = "other element-wise"


def kind_of(name: str) -> str:
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), OTHER)


Steps = dict[str, tuple[Contender, list[list[Tensors]]]]  # name -> who makes these steps, each of micro-batches


def by_computation(args: argparse.Namespace) -> Steps:
    batches = sampled_epoch(lengths_of(args.task), args.batch, args.batches)
    made: Steps = {}
    for name, options in VARIANTS.items():
        if can_crop(args.shape) or not options.get("cropped"):
            contender = Contender("ours", args.method, shape=args.shape, delta_t=100, **options)
            made[name] = contender, [[contender.batch(lengths, i)] for i, lengths in enumerate(batches)]
    return made


def by_batching(args: argparse.Namespace) -> Steps:
    contender = Contender("ours", args.method, shape=args.shape, delta_t=100, bf16=True)
    made: Steps = {}
    for name, (grouped, pass_tokens) in BATCHING.items():
        batches = sampled_epoch(lengths_of(args.task), args.batch, args.batches, grouped)
        made[name] = contender, [contender.parts(lengths, i, pass_tokens) for i, lengths in enumerate(batches)]
    return made


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--task", choices=TASKS, default="mnli")
    arguments.add_argument("--method", choices=("lora", "adalora"), default="adalora")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--batches", type=int, default=3)
    arguments.add_argument("--batching", action="store_true", help="compare ways to make batches instead")
    args = start(arguments)
    compared = by_batching(args) if args.batching else by_computation(args)
    for contender, steps in compared.values():
        for _ in range(2):
            contender.step(*steps[0])
    times: dict[str, Counter[str]] = {name: Counter() for name in compared}
    for number in range(args.batches):
        for name, (contender, steps) in compared.items():
            with profile(activities=[ProfilerActivity.CPU]) as measured:
                contender.step(*steps[number])
            for event in measured.key_averages():
                times[name][kind_of(event.key)] += event.self_cpu_time_total / 1e6 / args.batches
    kinds = [*KINDS, OTHER]
    write(args, f"profiler_{args.task}_{args.method}" + "_batching" * args.batching, {"self_s_per_step": times})
    rows = [
        [name, f"{count.total():.2f}", *(f"{count[kind]:.2f} ({count[kind] / count.total():.0%})" for kind in kinds)]
        for name, count in times.items()
    ]
    print_table(["variant", "s / step", *kinds], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
