"""Full fine-tuning: trains every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adalora_repro.methods.base import BaseMethod, BaseOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site

Options = BaseOptions


class Method(BaseMethod):
    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        model.requires_grad_(True)
