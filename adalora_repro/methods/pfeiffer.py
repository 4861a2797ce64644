"""Pfeiffer adapters (Pfeiffer et al., 2020): one per layer, around the LayerNorm that follows the FFN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adalora_repro.methods._adapter import AdapterMethod, Bottleneck
from adalora_repro.methods._adapter import Options as Options


class NormWithAdapter(nn.Module):
    """LN(u + f(LN(u))) for u = x + z (…, width), x the residual input, z the FFN's output after dropout.

    LN is the layer's own LayerNorm, used twice with the same frozen weights; the adapter's residual is z, not LN(u).
    With f = 0 this is LN(u), the layer as it was (docs/deviations.md, row 26).
    """

    def __init__(self, norm: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.norm, self.adapter = norm, adapter

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.norm(u + self.adapter(self.norm(u)))
        return out


class Method(AdapterMethod):
    roles = ("ffn_norm",)
    activation = staticmethod(F.relu)

    def adapted(self, old: nn.Module, adapter: Bottleneck) -> nn.Module:
        return NormWithAdapter(old, adapter)
