"""LoRA (Hu et al., 2022) on every weight matrix of the backbone, eq. (2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from adalora_repro.errors import InputError
from adalora_repro.lowrank import LoRALinear
from adalora_repro.methods.base import LARGEST, BaseMethod, InitOption, LowRankOptions, RankOptions, require_size
from adalora_repro.methods.equal_counts import Slot, fill, given_ranks, initial_rank, require_at_least, wider
from adalora_repro.models.inject import freeze_backbone, replace
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site


@dataclass
class Options(InitOption, RankOptions, LowRankOptions):
    """The ranks: one for all matrices, ranks that fill a number of parameters, or a given rank for each matrix."""

    r: int = setting(0, minimum=1, maximum=LARGEST)
    "Rank of every matrix; left out, the budget sets it."
    params: int | None = None
    "With budget.match=params: the number of parameters that the matrices may use; a rank may be 0."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_pattern is None:
            require_size(self, self.params, "r")
        elif self.r:
            raise InputError("method.r and method.rank_pattern both set the ranks; give one of them")

    def ranks(self, matrices: Mapping[Site, nn.Linear]) -> dict[str, int]:
        """Matrix -> rank; a doublet of B and A costs d_out + d_in parameters.

        Raises:
            InputError: ``rank_pattern`` is of other matrices, or ``params`` are too few.
        """
        names = [site.name for site in matrices]
        if self.params is not None and self.initial_rank:
            costs = [linear.out_features + 1 + linear.in_features for linear in matrices.values()]
            require_at_least(max(costs), self.params)
            return dict.fromkeys(names, initial_rank(self.params, costs))
        if self.params is not None:
            slots = [
                Slot(site.name, (site.stack, site.layer), linear.in_features + linear.out_features)
                for site, linear in matrices.items()
            ]
            return fill(slots, self.params)
        if self.rank_pattern is None:
            return dict.fromkeys(names, self.r)
        return given_ranks(self.rank_pattern, names)


class Method(BaseMethod):
    options: Options

    def __init__(self, options: Options, protocol: str) -> None:
        super().__init__(options, protocol)
        self.ranks: dict[str, int] = {}
        self.layers: dict[str, LoRALinear] = {}

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        options = self.options
        matrices = options.matrices(sites)
        self.ranks = options.ranks({site: cast(nn.Linear, model.get_submodule(site.path)) for site in matrices})

        def make(site: Site, old: nn.Module) -> nn.Module:
            r = self.ranks[site.name]
            # LoRALinear divides alpha by r; all matrices are to be scaled by alpha over the mean rank
            alpha = options.alpha * (r / self.mean_rank)
            return LoRALinear(cast(nn.Linear, old), r, alpha, options.init_std, options.init)  # type: ignore[arg-type]

        adapted = [site for site in matrices if self.ranks[site.name]]
        self.layers = cast(dict[str, LoRALinear], replace(model, adapted, make))

    @property
    def mean_rank(self) -> float:
        return sum(self.ranks.values()) / len(self.ranks)

    def plan(self, total_steps: int) -> dict[str, Any]:
        options, alpha = self.options, self.options.alpha
        size: dict[str, Any] = {"r": options.r}
        if options.params is not None:
            size = {"r": min(self.ranks.values()), "wider": wider(self.ranks)}
        elif options.rank_pattern is not None:
            size = {"b_T": sum(self.ranks.values())}
        return {"n": len(self.ranks), **size, "alpha": alpha, "alpha_over_r": alpha / self.mean_rank}

    def summary(self) -> dict[str, Any]:
        return {"rank_pattern": self.ranks}
