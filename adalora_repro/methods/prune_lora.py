"""Prune LoRA (Table 4): LoRA from which whole doublets are pruned, by AdaLoRA's score and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import nn

from adalora_repro.errors import InputError
from adalora_repro.lowrank import LoRALinear
from adalora_repro.lowrank.layers import Init
from adalora_repro.methods import adalora
from adalora_repro.methods.lora import check_init
from adalora_repro.settings import setting


@dataclass
class Options(adalora.Options):
    """AdaLoRA's, and the initial values of A."""

    init: str = setting("normal", later="normal", choices=get_args(Init))
    "Initial values of A. normal: N(0, init_std^2); kaiming: uniform, with standard deviation 1/sqrt(3 d_in)."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_init(self.init, self.init_std)
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
