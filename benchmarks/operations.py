"""Tensor operations dispatched per optimizer step, without views: AdaLoRA and LoRA, ours and PEFT's.

    python -m benchmarks.operations                # --device cuda: copies from the host count among the waits too

DeBERTaV3-base with a small vocabulary (which changes no count), batch size 4, 32 tokens, rank 12, a mask at every
step; and BART-large. The count is a property of the code, not of the machine: the number of operations that the host
has to launch on an accelerator. ``waits`` are operations whose value or size the host needs before it can go on, and
copies between devices: each one makes the host wait for the accelerator.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import Contender
from benchmarks.results import parser, print_table, start, write

BATCH, TOKENS = 4, 32
METHODS = ("lora", "adalora")
#: the host reads a value (item, bool) or needs the size of a result
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten::equal")
#: operations that need a size if an index is a boolean mask
INDEXING, MASKS = ("aten::index", "aten::index_put", "aten::_index_put_impl"), (torch.bool, torch.uint8)
COPIES = ("aten::_to_copy", "aten::copy_")


class CountOperations(TorchDispatchMode):
    """Counts what reaches the dispatcher, except views (outputs that share memory with an input)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            name = func.name()
            self.counts[name] += 1
            self.waits += any(wait in name for wait in WAITS) or (name.startswith(INDEXING) and picks_by_mask(args))
        result = func(*args, **(kwargs or {}))
        self.waits += func.name() in COPIES and args[-1 if func.name() == "aten::copy_" else 0].device != result.device
        return result


def picks_by_mask(args: Any) -> bool:
    """Whether an indexing operation has a boolean mask among its indices."""
    indices = args[1] if len(args) > 1 else None
    return isinstance(indices, list | tuple) and any(index is not None and index.dtype in MASKS for index in indices)


def count(who: str, name: str, shape: str = "deberta-v3-base", **options: Any) -> CountOperations:
    """The operations of the third step; two before it create the optimizer's state."""
    contender = Contender(who, name, shape=shape, as_on_device=True, **options)
    torch.manual_seed(0)
    batch = contender.batch([TOKENS] * BATCH, seed=0)
    contender.step(batch)
    contender.step(batch)
    with CountOperations() as counted:
        contender.step(batch)
    return counted


def main() -> int:
    args = start(parser(__doc__))
    device = {"device": args.device}
    counts = {("ours", name, args.shape): count("ours", name, args.shape, **device) for name in METHODS}
    try:
        counts |= {("peft", name, args.shape): count("peft", name, args.shape, **device) for name in METHODS}
    except ImportError:
        print("peft is not installed: its rows are left out (pip install 'adalora-repro[bench]')", file=sys.stderr)
    if args.shape == "deberta-v3-base":
        counts |= {("ours", name, "bart-large"): count("ours", name, "bart-large", **device) for name in METHODS}
    rows, figures = [], {}
    for (who, name, shape), counted in counts.items():
        base, total = counts["ours", "lora", shape].counts.total(), counted.counts.total()
        figures[f"{who} {name} {shape}"] = {"operations": total, "waits": counted.waits}
        rows.append([shape, who, name, f"{total:,}", f"{total / base:.3f}", str(counted.waits)])
    write(args, "operations", {"per_step": figures})
    print_table(["shape", "", "method", "operations", "x our LoRA", "waits"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
