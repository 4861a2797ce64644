"""LoRA with the orthogonal regularizer of eq. (4) on B and A (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from adalora_repro.errors import InputError
from adalora_repro.lowrank import orthogonality_penalty
from adalora_repro.lowrank.orthogonality import Form
from adalora_repro.methods import lora
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site


@dataclass
class Options(lora.Options):
    """LoRA's, and the weight of R."""

    gamma: float = setting(0.1, minimum=0)
    "Weight of the orthogonality penalty R, eq. (4), on B and A."


class Method(lora.Method):
    """``protocol=released`` takes for R the mean |cos| of columns of B and rows of A (docs/deviations.md, row 56)."""

    options: Options

    def __init__(self, options: Options, protocol: str) -> None:
        super().__init__(options, protocol)
        self.form: Form = "sum_squared" if protocol == "paper" else "mean_cosine"

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        super().inject(model, sites)
        if self.options.gamma and self.form == "mean_cosine" and 1 in self.ranks.values():
            raise InputError(
                "protocol=released regularizes LoRA by the angles between the columns of B, and between the rows of A: "
                "a matrix of rank 1 (method.r=1) has none; a larger method.r or budget, or protocol=paper"
            )

    def regularizer(self) -> Tensor | None:
        gamma = self.options.gamma
        return gamma * orthogonality_penalty(self.layers.values(), self.form) if gamma else None
