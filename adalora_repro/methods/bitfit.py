"""BitFit (Ben Zaken et al., 2022): trains every bias of the backbone, LayerNorm's and the embeddings' among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adalora_repro.errors import InputError
from adalora_repro.methods.base import BaseMethod, BaseOptions
from adalora_repro.models.inject import freeze_backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site

Options = BaseOptions


class Method(BaseMethod):
    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        biases = 0
        for name, parameter in model.base_model.named_parameters():
            if name.endswith("bias"):  # DeBERTa V1 has q_bias and v_bias
                parameter.requires_grad_(True)
                biases += 1
        if not biases:
            raise InputError(f"BitFit trains biases, and this {model.config.model_type} backbone has none")
