"""The bottleneck both adapter methods insert, and its widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adalora_repro.methods.base import LARGEST, BaseMethod, BaseOptions, require_size
from adalora_repro.methods.equal_counts import Place, fill, wider
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from adalora_repro.models.backbones import Site


@dataclass
class AdapterOptions(BaseOptions):
    """Options of the methods that insert bottlenecks."""

    d: int = setting(0, minimum=1, maximum=LARGEST)
    "Width of the bottleneck; left out, the budget sets it."
    params: int | None = None
    "With budget.match=params: the parameters that the widths fill."
    init_std: float = setting(0.02, above=0)
    "Standard deviation of both projections' initial weights; biases start at 0 (fidelity F26)."

    def __post_init__(self) -> None:
        require_size(self, self.params, "d")


class Bottleneck(nn.Module):
    """f(x) = W_up φ(W_down x + b_down) + b_up for x (…, width), 2 width d + d + width parameters.

    Args:
        width: of the hidden states, the last dimension of x.
        d: bottleneck width.
        activation: φ.
        init_std: W ~ N(0, init_std²); biases 0.
        device: where the weights are made; a plan's are on the meta device.
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
    """What both methods share: the width of the bottleneck at every site."""

    options: AdapterOptions
    widths: dict[str, int]

    def choose_widths(self, sites: Sequence[Site], width: int) -> list[Site]:
        """Sets ``widths``, site path -> d; a ``Bottleneck`` costs (2 width + 1) d + width parameters.

        Returns:
            The sites that have an adapter: all, unless ``params`` is too few for d = 1 everywhere.
        """
        if self.options.params is None:
            self.widths = {site.path: self.options.d for site in sites}
        else:
            places = [Place(site.path, (site.stack, site.layer), 2 * width + 1, width) for site in sites]
            self.widths = fill(places, self.options.params)
        return [site for site in sites if self.widths[site.path]]

    def plan(self, total_steps: int) -> dict[str, Any]:
        if self.options.params is None:
            return {}
        return {"d": min(self.widths.values()), "wider": wider(self.widths), "widths": self.widths}
