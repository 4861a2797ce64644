"""SVD-LoRA (Table 5): AdaLoRA without allocation, every matrix P Λ Q of the same rank throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adalora_repro.methods._svd import SVDMethod, SVDOptions
from adalora_repro.methods.base import LARGEST, require_size
from adalora_repro.methods.equal_counts import initial_rank, require_at_least
from adalora_repro.settings import setting


@dataclass
class Options(SVDOptions):
    """One rank for all matrices."""

    r: int = setting(0, minimum=1, maximum=LARGEST)
    "Rank of every matrix; left out, the budget sets it."
    params: int | None = None
    "With budget.match=params: the number of parameters that the rank may use."
    initial_rank: bool = setting(False, later=False)
    "With budget.match=params: every matrix has AdaLoRA's initial rank at that number, so there are more parameters."

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size(self, self.params, "r")

    def rank(self, costs: Sequence[int]) -> int:
        if self.params is None:
            return self.r
        require_at_least(max(costs) if self.initial_rank else sum(costs), self.params)
        return initial_rank(self.params, costs) if self.initial_rank else self.params // sum(costs)


class Method(SVDMethod):
    def plan(self, total_steps: int) -> dict[str, Any]:
        r, alpha, gamma = self.rank, self.options.alpha, self.options.gamma
        return {"n": len(self.layers), "r": r, "alpha": alpha, "alpha_over_r": alpha / r, "gamma": gamma}

    def summary(self) -> dict[str, Any]:
        return {"rank_pattern": {name: layer.r for name, layer in self.layers.items()}}
