"""SVD adaptation with its regularizer, eqs. (3) and (4): what AdaLoRA and SVD-LoRA share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from adalora_repro.lowrank import SVDLinear, orthogonality_penalty
from adalora_repro.lowrank.layers import LowRankLinear, share_left_factors
from adalora_repro.lowrank.orthogonality import Form, orthogonality_errors
from adalora_repro.methods.base import BaseMethod, LowRankOptions
from adalora_repro.models.inject import freeze_backbone, replace
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site


@dataclass
class SVDOptions(LowRankOptions):
    """Options of the methods with the regularizer R."""

    gamma: float = setting(0.1, minimum=0)
    "Weight of the orthogonality penalty R, eq. (4)."

    def rank(self, costs: Sequence[int]) -> int:
        """Of every matrix at the start; ``costs`` are parameters of a triplet of each matrix."""
        raise NotImplementedError


class SVDMethod(BaseMethod):
    """P Λ Q of one rank in every adapted matrix, and R: the sum of squared norms with ``protocol=paper``, the mean norm
    with ``released``."""

    options: SVDOptions

    def __init__(self, options: SVDOptions, protocol: str) -> None:
        super().__init__(options, protocol)
        self.layers: dict[str, LowRankLinear] = {}

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        matrices = self.options.matrices(sites)
        self.costs = [self.triplet(cast(nn.Linear, model.get_submodule(site.path))) for site in matrices]
        self.rank = self.options.rank(self.costs)

        def make(site: Site, old: nn.Module) -> nn.Module:
            return self.increment(cast(nn.Linear, old))

        self.layers = cast(dict[str, LowRankLinear], replace(model, matrices, make))

    def triplet(self, base: nn.Linear) -> int:
        """Parameters of one triplet: a column of P, a λ, a row of Q."""
        return base.out_features + 1 + base.in_features

    def increment(self, base: nn.Linear) -> LowRankLinear:
        return SVDLinear(base, self.rank, self.options.alpha, self.options.init_std)

    def svd_layers(self) -> list[SVDLinear]:
        return [layer for layer in self.layers.values() if isinstance(layer, SVDLinear)]

    def share(self) -> None:
        """Computes products for the next forward passes, after every change of a parameter; a compiler does so, too."""
        if not self.compiled:
            share_left_factors(self.svd_layers())

    def on_train_start(self, total_steps: int) -> None:
        self.share()

    def regularizer(self) -> Tensor | None:
        if self.options.gamma == 0:
            return None
        form: Form = "sum_squared" if self.protocol == "paper" else "mean_norm"
        return self.options.gamma * orthogonality_penalty(self.layers.values(), form)

    def after_update(self, t: int) -> None:
        self.share()

    def curve(self, t: int) -> dict[str, Any]:
        """For every matrix the two errors of Figure 4 (in the order of ``rank_pattern``)."""
        left, right = orthogonality_errors(self.layers.values())
        return {
            "orthogonality_P": [float(f"{error:.4g}") for error in left],
            "orthogonality_Q": [float(f"{error:.4g}") for error in right],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.share()
