"""The modules of a model that a method may replace, by role; one file of conf/sites/ for each model type.

``find_sites`` looks up every path in the model: a renamed module is an error, never a method applied to fewer modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from adalora_repro.errors import InputError, one_line, one_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

#: the paper's weight matrices Wq Wk Wv Wo Wf1 Wf2, and those of a decoder's cross-attention; then one matrix that holds
#: Wq Wk Wv, and the gate of a gated feed-forward, alone or in one matrix with Wf1
MATRIX_ROLES = (
    *("q", "k", "v", "attn_out", "ffn_in", "ffn_out", "cross_q", "cross_k", "cross_v", "cross_out"),
    *("qkv", "ffn_gate", "ffn_in_gate"),
)
ADAPTER_ROLES = ("after_attn", "after_ffn", "ffn_norm")
PACKAGE = Path(__file__).parents[1]
#: inside the package in a wheel, beside it in a checkout
FOLDER = next((root / "conf" / "sites" for root in (PACKAGE, PACKAGE.parent) if (root / "conf").is_dir()), PACKAGE)
_added: list[Path] = []


@dataclass(frozen=True)
class Site:
    """A module that a method may replace: its role, its layer (from 0) and its path from the root of the model."""

    role: str
    stack: str
    layer: int
    path: str
    model_type: str = field(default="", compare=False)

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
        classifier_dropout: the configuration's name for the dropout before the classifier; None: there is no such.
        stacks: stack (encoder, decoder) -> the configuration's name for the number of its layers.
        head_inside: modules inside the base model that belong to the task head.
        absent: role -> why the model has no module for it.
        gated: a setting of the configuration, and the roles that are other modules where it is true.
        special_tokens: which its tokenizer must have.
        padding_positions: whether the first positions belong to padding, as in RoBERTa.
        plain_masks: whether an attention mask of one row a text says all: attention is neither causal nor local.
    """

    roles: dict[str, str | list[str]]
    classifier_dropout: str | None
    stacks: dict[str, str]
    head_inside: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    gated: dict[str, dict[str, str | list[str]]] = field(default_factory=dict)
    special_tokens: tuple[str, ...] = ("pad", "cls", "sep")
    padding_positions: bool = False
    plain_masks: bool = True

    @property
    def kind(self) -> str:
        """``encoder``, ``decoder`` or ``encoder-decoder``."""
        return "-".join(self.stacks)

    def roles_of(self, config: Any) -> dict[str, str | list[str]]:
        """The roles of a model with this configuration of transformers."""
        roles = dict(self.roles)
        for setting, others in self.gated.items():
            if getattr(config, setting, False):
                roles |= others
        return roles

    def paths(self, templates: str | list[str], stack: str, layer: int) -> list[str]:
        """Modules of a role in one layer; none where the role belongs to another stack."""
        listed = [templates] if isinstance(templates, str) else templates
        return [
            template.format(stack=stack, layer=layer)
            for template in listed
            if len(self.stacks) == 1 or template.partition(".")[0] in ("{stack}", stack)
        ]


def add_folder(folder: Path | None) -> None:
    """Stores a folder with more files like those of conf/sites/, and forgets an earlier one."""
    _added[:] = [] if folder is None else [folder]
    architecture.cache_clear()


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (*_added, FOLDER) for path in folder.glob("*.yaml")}


def added_files() -> list[Path]:
    """The files of the folder that was added."""
    return [path for folder in _added for path in sorted(folder.glob("*.yaml"))]


def added_content(model_type: str) -> dict[str, Any]:
    """What the added folder's file for a model type says, merged with what it is ``like``; empty without such a file.

    Raises:
        InputError: it is not such a file.
    """
    architecture(model_type)
    return {} if _files()[model_type].parent == FOLDER else _content(model_type)


def model_types() -> list[str]:
    """The model types that have a file in conf/sites/."""
    return sorted(_files())


@cache
def architecture(model_type: str) -> Architecture:
    """The file of conf/sites/ for a model type, over the file that it says it is ``like``.

    Raises:
        InputError: there is none, or it is not such a file.
    """
    try:
        made = Architecture(**_content(model_type))
        if isinstance(made.head_inside, str) or isinstance(made.special_tokens, str):
            raise TypeError("head_inside and special_tokens are lists")
        roles = [pair for group in (made.roles, *made.gated.values()) for pair in group.items()]
        for stack in dict(made.stacks):
            for _, templates in roles:
                made.paths(templates, stack, 0)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{_files()[model_type]}: {one_line(error)}") from None
    for role, _ in roles:
        if role not in MATRIX_ROLES + ADAPTER_ROLES:  # no method would adapt its modules
            raise one_of(f"role in {_files()[model_type]}", role, MATRIX_ROLES + ADAPTER_ROLES)
    return made


def _content(model_type: str) -> dict[str, Any]:
    files = _files()
    if model_type not in files:
        raise one_of("model type", model_type, files)
    own: dict[str, Any] = yaml.safe_load(files[model_type].read_text(encoding="utf-8"))
    if not isinstance(own, dict):
        raise InputError(f"{files[model_type]}: must hold settings, key: value")
    base = _content(own.pop("like")) if "like" in own else {}
    roles = {**base.get("roles", {}), **own.get("roles", {})}
    content = base | own
    return content | {"roles": {role: path for role, path in roles.items() if role not in content.get("absent", {})}}


def find_sites(model: PreTrainedModel) -> list[Site]:
    """All sites of ``model``, stack by stack and layer by layer, the roles of a layer in the order of the file.

    Raises:
        InputError: there is no file for the model type, or the model lacks a module that it names.
    """
    arch = architecture(model.config.model_type)
    if unset := [count for count in arch.stacks.values() if not hasattr(model.config, count)]:
        raise InputError(f"sites/{model.config.model_type}.yaml: the model's configuration has no setting '{unset[0]}'")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    modules = dict(model.base_model.named_modules())
    sites = [
        Site(role, stack, layer, path)
        for stack, count in arch.stacks.items()
        for layer in range(getattr(model.config, count))
        for role, templates in arch.roles_of(model.config).items()
        for path in arch.paths(templates, stack, layer)
    ]
    if missing := next((site for site in sites if site.path not in modules), None):
        raise InputError(
            f"{type(model).__name__} has no module '{missing.path}' for role '{missing.role}'; this version of "
            f"transformers may have renamed it (conf/sites/{model.config.model_type}.yaml)"
        )
    model_type = model.config.model_type
    return [Site(site.role, site.stack, site.layer, prefix + site.path, model_type) for site in sites]


def matching(sites: Sequence[Site], roles: Sequence[str], layers: Sequence[int] | None = None) -> list[Site]:
    """The sites with one of ``roles``, in one of ``layers`` if given.

    Raises:
        InputError: a role or a layer that the backbone does not have.
    """
    valid_roles = list(dict.fromkeys(site.role for site in sites))
    valid_layers = sorted({site.layer for site in sites})
    for role in roles:
        if role not in valid_roles:
            raise _without(role, sites, valid_roles)
    for layer in layers or ():
        if layer not in valid_layers:
            raise InputError(f"method.layers: no layer {layer}; valid: 0 to {valid_layers[-1]}")
    return [site for site in sites if site.role in roles and (layers is None or site.layer in layers)]


def _without(role: str, sites: Sequence[Site], valid_roles: Sequence[str]) -> InputError:
    """The error for a role that the model does not have: why not, if its file says so."""
    model_type = sites[0].model_type if sites else ""
    if reason := architecture(model_type).absent.get(role) if model_type else None:
        return InputError(f"{model_type} has no module for role '{role}': {reason}")
    if role in MATRIX_ROLES:
        return one_of("role in method.targets", role, valid_roles)
    return InputError(f"this method needs a module for role '{role}', and sites/{model_type}.yaml names none")


def has_relative_positions(architecture: Mapping[str, Any]) -> bool:
    """Whether a model of this architecture, as in ``conf/backbone``, has DeBERTa's relative positions."""
    return architecture["model_type"] == "deberta-v2" and bool(architecture.get("relative_attention"))


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters of the task head: outside the base model (by identity: tied weights are the backbone's), or listed."""
    inside = tuple(f"{name}." for name in architecture(model.config.model_type).head_inside)
    backbone = {
        id(parameter)
        for name, parameter in model.base_model.named_parameters()
        if not (inside and name.startswith(inside))
    }
    return {name: p for name, p in model.named_parameters() if id(p) not in backbone}
