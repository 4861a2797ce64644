"""Tensor operations dispatched per optimizer step, views left out: AdaLoRA against LoRA, ours and PEFT's.

    python -m benchmarks.operations                # --device cuda: copies from the host count among the waits too

Setting: a 12-layer DeBERTaV3-base shape (small vocabulary, which changes no count), batch 4 x 32 tokens, rank 12, a
mask at every step; and BART-large's. A step is forward, backward, regularizer, clipping, AdamW, importance and mask.
The count is a property of the code, not of the machine; it is what an accelerator's launch queue sees. ``waits`` are
operations of which the host needs a value or a size before it can go on, and copies from one device to another: on an
accelerator each one empties that queue. What a CPU cannot show of these, tests count on torch's device ``meta``.
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
#: the host reads a value (item, a tensor's truth) or needs the size of a result
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten::equal")
#: those that need a size if one of their indices is of this type: picking by a mask
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
        found = func(*args, **(kwargs or {}))
        self.waits += func.name() in COPIES and args[-1 if func.name() == "aten::copy_" else 0].device != found.device
        return found


def picks_by_mask(args: Any) -> bool:
    """Whether an index among the arguments of an indexing operation is a mask."""
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
    arguments = parser(__doc__, devices=True)
    args = start(arguments)
    device = {"device": args.device}
    counts = {("ours", name, args.shape): count("ours", name, args.shape, **device) for name in METHODS}
    try:
        counts |= {("peft", name, args.shape): count("peft", name, args.shape, **device) for name in METHODS}
    except ImportError:
        print("peft is not installed: its rows are left out (pip install 'adalora-repro[bench]')", file=sys.stderr)
    if args.shape == "deberta-v3-base":
        counts |= {("ours", name, "bart-large"): count("ours", name, "bart-large", **device) for name in METHODS}
    rows, figures = [], {}
    for (who, name, shape), found in counts.items():
        base, total = counts["ours", "lora", shape].counts.total(), found.counts.total()
        figures[f"{who} {name} {shape}"] = {"operations": total, "waits": found.waits}
        rows.append([shape, who, name, f"{total:,}", f"{total / base:.3f}", str(found.waits)])
    write(args, "operations", {"per_step": figures})
    print_table(["shape", "", "method", "operations", "x our LoRA", "waits"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
