"""LoRA (Hu et al., 2022) on every weight matrix of the backbone, eq. (2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from adalora_repro.inject import freeze_backbone, replace
from adalora_repro.lowrank import LoRALinear
from adalora_repro.methods.base import BaseMethod, LowRankOptions, require_positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.backbones import Site


@dataclass
class Options(LowRankOptions):
    """``r``: rank of every matrix, from the budget."""

    r: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "r")


class Method(BaseMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        del protocol  # one LoRA
        self.options = options
        self.names: list[str] = []

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        options = self.options

        def make(site: Site, old: nn.Module) -> nn.Module:
            return LoRALinear(cast(nn.Linear, old), options.r, options.alpha, options.init_std)

        self.names = list(replace(model, options.matrices(sites), make))

    def plan(self, total_steps: int) -> dict[str, Any]:
        r, alpha = self.options.r, self.options.alpha
        return {"n": len(self.names), "r": r, "alpha": alpha, "alpha_over_r": alpha / r}

    def summary(self) -> dict[str, Any]:
        return {"rank_pattern": dict.fromkeys(self.names, self.options.r)}
