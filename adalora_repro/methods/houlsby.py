"""Houlsby adapters (Houlsby et al., 2019): after attention and after the FFN, before residual and LayerNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adalora_repro.methods._adapter import AdapterMethod, Bottleneck
from adalora_repro.methods._adapter import Options as Options


class Adapter(Bottleneck):
    """y = z + f(z) for the module's output z (…, width)."""

    def forward(self, z: Tensor) -> Tensor:
        return z + super().forward(z)


class Method(AdapterMethod):
    roles = ("after_attn", "after_ffn")
    activation = staticmethod(F.silu)  # swish, as in the released code (docs/deviations.md, row 26)
    bottleneck = Adapter

    def adapted(self, old: nn.Module, adapter: Bottleneck) -> nn.Module:
        return nn.Sequential(old, adapter)
