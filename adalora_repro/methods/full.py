"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adalora_repro.methods.base import BaseMethod, BaseOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.backbones import Site


@dataclass
class Options(BaseOptions):
    pass


class Method(BaseMethod):
    def __init__(self, options: Options, protocol: str) -> None:
        del options, protocol  # nothing to choose

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        model.requires_grad_(True)
