"""Pfeiffer adapters (Pfeiffer et al., 2020): one per layer, around the LayerNorm that follows the FFN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from adalora_repro.methods._adapter import AdapterMethod, AdapterOptions, Bottleneck
from adalora_repro.models.backbones import matching
from adalora_repro.models.inject import freeze_backbone, replace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.backbones import Site


@dataclass
class Options(AdapterOptions):
    pass


class NormWithAdapter(nn.Module):
    """LN(u + f(LN(u))) for u = x + z (…, width), x the residual input, z the FFN's output after dropout.

    LN is the layer's own LayerNorm, used twice with the same frozen weights; the adapter's residual is z, not LN(u).
    With f = 0 this is LN(u), the layer as it was (fidelity F26).
    """

    def __init__(self, norm: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.norm, self.adapter = norm, adapter

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.norm(u + self.adapter(self.norm(u)))
        return out


class Method(AdapterMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        del protocol  # the paper and the released code agree
        self.options = options

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        width = model.config.hidden_size
        places = self.choose_widths(matching(sites, ["ffn_norm"]), width)

        def around(site: Site, norm: nn.Module) -> nn.Module:
            adapter = Bottleneck(width, self.widths[site.path], F.relu, self.options.init_std, model.device)
            return NormWithAdapter(norm, adapter)

        replace(model, places, around)
