"""Houlsby adapters (Houlsby et al., 2019): after attention and after the FFN, before residual and LayerNorm."""

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


class Adapter(Bottleneck):
    """y = z + f(z)."""

    def forward(self, z: Tensor) -> Tensor:
        return z + super().forward(z)


class Method(AdapterMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        del protocol  # paper and released code agree
        self.options = options

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        width = model.config.hidden_size
        places = self.choose_widths(matching(sites, ["after_attn", "after_ffn"]), width)

        def behind(site: Site, old: nn.Module) -> nn.Module:
            # swish, as in the released code (fidelity F26)
            adapter = Adapter(width, self.widths[site.path], F.silu, self.options.init_std, model.device)
            return nn.Sequential(old, adapter)

        replace(model, places, behind)
