"""LoRA (Hu et al., 2022) on every weight matrix of the backbone, eq. (2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from adalora_repro.budgets import Place, fill, wider
from adalora_repro.inject import freeze_backbone, replace
from adalora_repro.lowrank import LoRALinear
from adalora_repro.methods.base import BaseMethod, LowRankOptions, require_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.backbones import Site


@dataclass
class Options(LowRankOptions):
    """``r``: rank of every matrix, from the budget; or ``params``: ranks, 0 among them, that fill so many."""

    r: int = 0
    params: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size(self, self.params, "r")


class Method(BaseMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        del protocol  # one LoRA
        self.options = options
        self.ranks: dict[str, int] = {}

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        options = self.options

        def make(site: Site, old: nn.Module) -> nn.Module:
            return LoRALinear(cast(nn.Linear, old), self.ranks[site.name], options.alpha, options.init_std)

        matrices = options.matrices(sites)
        self.ranks = self._choose(model, matrices)
        replace(model, [site for site in matrices if self.ranks[site.name]], make)

    def _choose(self, model: PreTrainedModel, matrices: Sequence[Site]) -> dict[str, int]:
        """The rank of every matrix; each triplet of B and A costs d_in + d_out parameters."""
        if self.options.params is None:
            return {site.name: self.options.r for site in matrices}
        places = []
        for site in matrices:
            linear = cast(nn.Linear, model.get_submodule(site.path))
            places.append(Place(site.name, (site.stack, site.layer), linear.in_features + linear.out_features))
        return fill(places, self.options.params)

    def plan(self, total_steps: int) -> dict[str, Any]:
        r, alpha = min(self.ranks.values()), self.options.alpha
        plan = {"n": len(self.ranks), "r": r, "alpha": alpha, "alpha_over_r": alpha / max(r, 1)}
        return plan if self.options.params is None else plan | {"wider": wider(self.ranks)}

    def summary(self) -> dict[str, Any]:
        return {"rank_pattern": self.ranks}
