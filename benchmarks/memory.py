"""Memory of an optimizer step: bytes allocated between steps, and the peak during a step.

    python -m benchmarks.memory                     # --tokens 48,128,256

Bytes of tensors, without the reserves of the allocator and the operating system: a property of the code and the shapes.
The vocabulary has its true size. On a CPU nothing is computed: tensors have shapes and no values, so the figures do not
depend on the machine; PEFT, which copies modules with their values, is left out. On a GPU they are its allocator's.
"""

from __future__ import annotations

import gc
import sys
import weakref
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.contenders import Contender, can_crop
from benchmarks.results import parser, print_goal, print_table, start, write

WAYS: dict[str, dict[str, bool]] = {
    f"{precision}{' eager' * eager}": {"bf16": precision == "bf16", "eager": eager}
    for precision in ("fp32", "bf16")
    for eager in (False, True)
}


class CountBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def measure(batch: int, lengths: list[int], device: str, who: str, name: str, **options: Any) -> dict[str, int]:
    """``between_steps``, and length -> the peak during a step, in bytes."""
    with ExitStack() as stack:
        counted = None
        if device == "cpu":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            # tensors without values cannot be moved
            stack.enter_context(patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module))
            counted = stack.enter_context(CountBytes())
        contender = Contender(who, name, vocabulary=None, device=device, **options)
        for seed in range(2):  # the first step creates the optimizer's state
            contender.step(contender.batch([8] * batch, seed))
        gc.collect()
        figures = {"between_steps": counted.now if counted else torch.cuda.memory_allocated()}
        for tokens in lengths:
            inputs = contender.batch([tokens] * batch, 0)
            if counted:
                counted.peak = counted.now
            else:
                torch.cuda.reset_peak_memory_stats()
            contender.timed(inputs)
            figures[str(tokens)] = counted.peak if counted else torch.cuda.max_memory_allocated()
            del inputs
    return figures


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--tokens", default="48,128", help="padded lengths of the batches (default: %(default)s)")
    args = start(arguments)
    lengths = [int(tokens) for tokens in args.tokens.split(",")]
    contestants = ("ours",) if args.device == "cpu" else ("ours", "peft")
    kinds = [(who, name) for who in contestants for name in ("lora", "adalora")]
    measured: dict[str, dict[str, Any]] = {}
    for way, options in WAYS.items():
        for who, name in kinds:
            if options["eager"] and (who == "peft" or not can_crop(args.shape)):
                continue
            figures = measure(args.batch, lengths, args.device, who, name, shape=args.shape, **options)
            measured[f"{who} {name} {way}"] = figures
            print(f"{who} {name} {way}: done", file=sys.stderr, flush=True)
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
