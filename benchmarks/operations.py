"""Tensor operations dispatched per optimizer step, views left out: AdaLoRA against LoRA, ours and PEFT's.

    python -m benchmarks.operations

Setting: a 12-layer DeBERTaV3-base shape (small vocabulary, which changes no count), batch 4 x 32 tokens, rank 12, a
mask at every step. A step is forward, backward, regularizer, clipping, AdamW, importance and mask. The count is a
property of the code, not of the machine; it is what an accelerator's launch queue sees.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import Contender
from benchmarks.lengths import tensors

BATCH, TOKENS = 4, 32


class CountOperations(TorchDispatchMode):
    """Counts what reaches the dispatcher, except views (outputs that share memory with an input)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def count(who: str, name: str) -> Counter[str]:
    """The operations of the third step; two before it create the optimizer's state."""
    contender = Contender(who, name)
    torch.manual_seed(0)
    batch = tensors([TOKENS] * BATCH, seed=0)
    contender.step(batch)
    contender.step(batch)
    with CountOperations() as counted:
        contender.step(batch)
    return counted.counts


def main() -> int:
    counts = {("ours", name): count("ours", name).total() for name in ("lora", "adalora")}
    try:
        counts |= {("peft", name): count("peft", name).total() for name in ("lora", "adalora")}
    except ImportError:
        print("peft is not installed: its columns are left out (pip install peft)", file=sys.stderr)
    base = counts["ours", "lora"]
    print(f"{'':8}{'method':10}{'operations':>11}{'x our LoRA':>12}")
    for (who, name), total in counts.items():
        print(f"{who:8}{name:10}{total:>11,}{total / base:>12.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
