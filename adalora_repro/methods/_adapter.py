"""What both adapter methods share: the bottleneck that they insert, and its width at every site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adalora_repro.methods.base import LARGEST, BaseMethod, BaseOptions, require_size
from adalora_repro.methods.equal_counts import Slot, fill, wider
from adalora_repro.models.inject import freeze_backbone, replace
from adalora_repro.models.sites import matching
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site


@dataclass
class Options(BaseOptions):
    """Options of the methods that insert bottlenecks."""

    d: int = setting(0, minimum=1, maximum=LARGEST)
    "Width of the bottleneck; left out, the budget sets it."
    params: int | None = None
    "With budget.match=params: the number of parameters that the adapters may use."
    init_std: float = setting(0.02, above=0)
    "Standard deviation of both projections' initial weights; biases start at 0 (docs/deviations.md, row 26)."

    def __post_init__(self) -> None:
        require_size(self, self.params, "d")


class Bottleneck(nn.Module):
    """f(x) = W_up φ(W_down x + b_down) + b_up for x (…, width), 2 width d + d + width parameters.

    Args:
        width: of the hidden states, the last dimension of x.
        d: bottleneck width.
        activation: φ.
        init_std: W ~ N(0, init_std²); biases 0.
        device: of the weights; the meta device for a plan.
    """

    def __init__(
        self, width: int, d: int, activation: Callable[[Tensor], Tensor], init_std: float, device: torch.device
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, d, device=device), nn.Linear(d, width, device=device)
        self.activation = activation
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.activation(self.down(x)))
        return out


class AdapterMethod(BaseMethod):
    """An adapter at every site of ``roles``, of the width that the budget sets.

    ``protocol`` changes nothing: paper and released code agree.
    """

    mergeable = False
    options: Options
    roles: tuple[str, ...]
    activation: Callable[[Tensor], Tensor]
    bottleneck: type[Bottleneck] = Bottleneck

    def adapted(self, old: nn.Module, adapter: Bottleneck) -> nn.Module:
        """The module that replaces ``old``."""
        raise NotImplementedError

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        width, options = model.config.hidden_size, self.options
        chosen = matching(sites, self.roles)
        self.widths = {site.path: options.d for site in chosen}
        if options.params is not None:
            slots = [Slot(site.path, (site.stack, site.layer), 2 * width + 1, width) for site in chosen]
            self.widths = fill(slots, options.params)

        def make(site: Site, old: nn.Module) -> nn.Module:
            size = self.widths[site.path]
            return self.adapted(old, self.bottleneck(width, size, self.activation, options.init_std, model.device))

        # where ``params`` is too few for d = 1 everywhere, some sites have no adapter
        replace(model, [site for site in chosen if self.widths[site.path]], make)

    def plan(self, total_steps: int) -> dict[str, Any]:
        if self.options.params is None:
            return {}
        return {"d": min(self.widths.values()), "wider": wider(self.widths), "widths": self.widths}
