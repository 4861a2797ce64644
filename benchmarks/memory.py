"""Memory of an optimizer step: bytes allocated between steps, and the peak during a step.

    python -m benchmarks.memory                     # --tokens 48,128,256

Bytes of tensors as the allocator counts them (on a CPU: from its events in torch's profiler), without the reserves of
the allocator and the operating system: a property of the code and the shapes. The vocabulary has its true size.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import Tensors
from benchmarks.results import parser, print_goal, print_table, start, write

WAYS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": True}, "bf16 cropped": {"bf16": True, "cropped": True}}


def living() -> int:
    """Bytes of all tensors of this process, each storage once."""
    # exact types: subclasses, such as a compiler's fake tensors, hold no memory
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in tensors}.values())


def added(contender: Contender, batch: Tensors) -> int:
    """Peak of the bytes allocated during a step, beyond those allocated before it."""
    if contender.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.timed(batch)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        contender.step(batch)
    assert profiled.profiler is not None
    events: Any = profiled.profiler.kineto_results.events()
    now = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        now += size
        peak = max(peak, now)
    return peak


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--tokens", default="48,128", help="padded lengths of the batches (default: %(default)s)")
    arguments.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    arguments.add_argument("--only", choices=("ours",))
    args = start(arguments)
    lengths = [int(tokens) for tokens in args.tokens.split(",")]
    kinds = [(who, name) for who in ("ours", *([] if args.only else ["peft"])) for name in ("lora", "adalora")]
    measured: dict[str, dict[str, Any]] = {}
    for way, options in WAYS.items():
        if args.precision not in ("both", way.split()[0]):
            continue
        for who, name in kinds:
            if options.get("cropped") and (who == "peft" or not can_crop(args.shape)):
                continue
            contender = Contender(who, name, shape=args.shape, vocabulary=None, device=args.device, **options)
            for seed in range(2):  # the first step creates the optimizer's state
                contender.step(contender.batch([8] * args.batch, seed))
            gc.collect()
            figures: dict[str, Any] = {"between_steps": living()}
            for tokens in lengths:
                batch = contender.batch([tokens] * args.batch, 0)
                figures[str(tokens)] = figures["between_steps"] + added(contender, batch)
            measured[f"{who} {name} {way}"] = figures
            print(f"{who} {name} {way}: done", file=sys.stderr, flush=True)
            del contender
            gc.collect()
    write(args, "memory", {"bytes": measured})
    rows = []
    for name, figures in measured.items():
        base = measured[f"ours lora {name.split(' ', 2)[2]}"]
        cells = [f"{figures[column] / 1e9:.3f} ({figures[column] / base[column]:.3f})" for column in figures]
        rows.append([name, *cells])
    columns = [f"peak, {args.batch} x {tokens} tokens" for tokens in lengths]
    print_table(["contender", "between steps, GB (x our LoRA)", *columns], rows)
    for way in (name.removeprefix("ours lora ") for name in measured if name.startswith("ours lora ")):
        for tokens in lengths:
            share = measured[f"ours adalora {way}"][str(tokens)] / measured[f"ours lora {way}"][str(tokens)]
            print_goal(f"peak memory, ours, AdaLoRA / LoRA, {way}, {args.batch} x {tokens} tokens", share, "<= 1.01")
    return 0


if __name__ == "__main__":
    sys.exit(main())
