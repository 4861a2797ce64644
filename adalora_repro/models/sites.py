"""The modules of a model that a method may replace, by role; one file of conf/sites/ for each model type.

``find_sites`` looks up every path in the model: a renamed module is an error, never a method applied to fewer modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from adalora_repro.errors import InputError, one_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

#: the paper's weight matrices Wq Wk Wv Wo Wf1 Wf2, and those of a decoder's cross-attention
MATRIX_ROLES = ("q", "k", "v", "attn_out", "ffn_in", "ffn_out", "cross_q", "cross_k", "cross_v", "cross_out")
PACKAGE = Path(__file__).parents[1]
#: inside the package in a wheel, beside it in a checkout
FOLDER = next((root / "conf" / "sites" for root in (PACKAGE, PACKAGE.parent) if (root / "conf").is_dir()), PACKAGE)


@dataclass(frozen=True)
class Site:
    """A module that a method may replace: its role, its layer (from 0) and its path from the root of the model."""

    role: str
    stack: str
    layer: int
    path: str

    @property
    def name(self) -> str:
        """The name in records, independent of the backbone: ``encoder.0.q``."""
        return f"{self.stack}.{self.layer}.{self.role}"


@dataclass(frozen=True)
class Architecture:
    """A model type, as its file in conf/sites/ describes it.

    Adapters go to the roles ``after_attn`` and ``after_ffn``, the last module before a sublayer's residual, and
    ``ffn_norm``, the LayerNorm after the residual of the feed-forward sublayer.

    Attributes:
        roles: role -> path or paths inside the base model, with ``{layer}`` and perhaps ``{stack}``.
        classifier_dropout: the configuration's name for the dropout before the classifier.
        stacks: stack -> the configuration's name for the number of its layers.
        head_inside: modules inside the base model that belong to the task head.
    """

    roles: dict[str, str | list[str]]
    classifier_dropout: str
    stacks: dict[str, str]
    head_inside: list[str]

    def paths(self, role: str, stack: str, layer: int) -> list[str]:
        """Modules of this role in one layer; none where the role belongs to another stack."""
        templates = self.roles[role]
        listed = [templates] if isinstance(templates, str) else templates
        return [
            template.format(stack=stack, layer=layer)
            for template in listed
            if template.partition(".")[0] in ("{stack}", stack)
        ]


def model_types() -> list[str]:
    """The model types that have a file in conf/sites/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def architecture(model_type: str) -> Architecture:
    """The file of conf/sites/ for a model type.

    Raises:
        InputError: there is none.
    """
    if model_type not in model_types():
        raise one_of("model type", model_type, model_types())
    return Architecture(**yaml.safe_load((FOLDER / f"{model_type}.yaml").read_text(encoding="utf-8")))


def find_sites(model: PreTrainedModel) -> list[Site]:
    """All sites of ``model``, stack by stack and layer by layer, the roles of a layer in the order of the file.

    Raises:
        InputError: there is no file for the model type, or the model lacks a module that it names.
    """
    arch = architecture(model.config.model_type)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    modules = dict(model.base_model.named_modules())
    sites = [
        Site(role, stack, layer, path)
        for stack, count in arch.stacks.items()
        for layer in range(getattr(model.config, count))
        for role in arch.roles
        for path in arch.paths(role, stack, layer)
    ]
    if missing := next((site for site in sites if site.path not in modules), None):
        raise InputError(
            f"{type(model).__name__} has no module '{missing.path}' for role '{missing.role}'; this version of "
            f"transformers may have renamed it (conf/sites/{model.config.model_type}.yaml)"
        )
    return [Site(site.role, site.stack, site.layer, prefix + site.path) for site in sites]


def matching(sites: Sequence[Site], roles: Sequence[str], layers: Sequence[int] | None = None) -> list[Site]:
    """The sites with one of ``roles``, in one of ``layers`` if given.

    Raises:
        InputError: a role or a layer that the backbone does not have.
    """
    valid_roles = list(dict.fromkeys(site.role for site in sites))
    valid_layers = sorted({site.layer for site in sites})
    for role in roles:
        if role not in valid_roles:
            raise one_of("role in method.targets", role, valid_roles)
    for layer in layers or ():
        if layer not in valid_layers:
            raise InputError(f"method.layers: no layer {layer}; valid: 0 to {valid_layers[-1]}")
    return [site for site in sites if site.role in roles and (layers is None or site.layer in layers)]


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters of the task head: outside the base model (by identity: tied weights are the backbone's), or listed."""
    inside = tuple(f"{name}." for name in architecture(model.config.model_type).head_inside)
    backbone = {
        id(parameter)
        for name, parameter in model.base_model.named_parameters()
        if not (inside and name.startswith(inside))
    }
    return {name: p for name, p in model.named_parameters() if id(p) not in backbone}
