"""Prune LoRA (Table 4): LoRA from which whole doublets are pruned, by AdaLoRA's score and schedule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adalora_repro.errors import InputError
from adalora_repro.lowrank import LoRALinear
from adalora_repro.methods import adalora
from adalora_repro.methods.base import InitOption


@dataclass
class Options(InitOption, adalora.Options):
    """AdaLoRA's, and the initial values of A."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score == "magnitude":
            raise InputError("method.score=magnitude is |λ|, and LoRA's doublets have no λ")


class Method(adalora.Method):
    """``RankAllocator`` defines how a doublet is scored and pruned. With gamma > 0, R is that of B and A."""

    options: Options

    def increment(self, base: nn.Linear) -> LoRALinear:
        options = self.options
        return LoRALinear(base, self.rank, options.alpha, options.init_std, options.init)  # type: ignore[arg-type]

    def triplet(self, base: nn.Linear) -> int:
        """Parameters of a doublet: a column of B, a row of A."""
        return base.out_features + base.in_features
