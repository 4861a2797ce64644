"""Replaces modules; chooses and counts the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from adalora_repro.models.sites import head_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site


def replace(
    model: nn.Module, sites: Sequence[Site], make: Callable[[Site, nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Replaces each site's module by ``make(site, module)``; returns site name -> new module."""
    made = {}
    for site in sites:
        parent, _, attribute = site.path.rpartition(".")
        old = model.get_submodule(site.path)
        new = make(site, old).train(old.training)
        setattr(model.get_submodule(parent), attribute, new)
        made[site.name] = new
    return made


def freeze_backbone(model: PreTrainedModel) -> None:
    """Leaves only the task head trainable."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def count_trained(model: PreTrainedModel) -> dict[str, int]:
    """The numbers of trainable parameters of the method and of the task head."""
    total = count(trained(model).values())
    head = count(p for p in head_parameters(model).values() if p.requires_grad)
    return {"method": total - head, "head": head}
