"""Pfeiffer adapters (Pfeiffer et al., 2020): one per layer, after the FFN's residual and LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from adalora_repro.backbones import matching
from adalora_repro.inject import freeze_backbone, replace
from adalora_repro.methods._adapter import Adapter, AdapterMethod, AdapterOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.backbones import Site


@dataclass
class Options(AdapterOptions):
    pass


class Method(AdapterMethod):
    """``protocol=released`` applies the layer's own LayerNorm a second time, behind the adapter (fidelity F26)."""

    def __init__(self, options: Options, protocol: str) -> None:
        self.options, self.norm_twice = options, protocol == "released"

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        width = model.config.hidden_size
        places = self.choose_widths(matching(sites, ["ffn_norm"]), width)

        def behind(site: Site, norm: nn.Module) -> nn.Module:
            adapter = Adapter(width, self.widths[site.path], F.relu, self.options.init_std, model.device)
            return nn.Sequential(norm, adapter, norm) if self.norm_twice else nn.Sequential(norm, adapter)

        replace(model, places, behind)
