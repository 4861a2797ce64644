"""Replacing modules, choosing what trains, counting it."""

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
    """Puts ``make(site, old module)`` in the place of each site's module; returns site name -> new module."""
    made = {}
    for site in sites:
        parent, _, attribute = site.path.rpartition(".")
        old = model.get_submodule(site.path)
        new = make(site, old).train(old.training)
        setattr(model.get_submodule(parent), attribute, new)
        made[site.name] = new
    return made


def freeze_backbone(model: PreTrainedModel) -> None:
    """Only the task head trains."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def count_trained(model: PreTrainedModel) -> dict[str, int]:
    """Trained parameters, the method's and the head's apart."""
    total = count(trained(model).values())
    head = count(p for p in head_parameters(model).values() if p.requires_grad)
    return {"method": total - head, "head": head}
