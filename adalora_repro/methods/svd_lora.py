"""SVD-LoRA (Table 5): AdaLoRA without allocation, every matrix P Λ Q of the same rank throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adalora_repro.methods._svd import SVDMethod, SVDOptions
from adalora_repro.methods.base import require_size


@dataclass
class Options(SVDOptions):
    """``r``: rank of every matrix, from the budget."""

    r: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size(self, None, "r")


class Method(SVDMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        super().__init__(options, options.r, protocol)

    def plan(self, total_steps: int) -> dict[str, Any]:
        r, alpha = self.rank, self.svd.alpha
        return {"n": len(self.layers), "r": r, "alpha": alpha, "alpha_over_r": alpha / r, "gamma": self.svd.gamma}

    def summary(self) -> dict[str, Any]:
        return {"rank_pattern": dict.fromkeys(self.layers, self.rank)}
