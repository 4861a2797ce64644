"""A saved model that no file of conf/backbone/ describes: its architecture is that of its config.json.

For a model type without a file in conf/sites/ there is a draft of one, made of the model's repeated blocks.
"""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from adalora_repro.errors import InputError, expanded, one_of
from adalora_repro.models import backbones
from adalora_repro.models.sites import MATRIX_ROLES, architecture, model_types

if TYPE_CHECKING:
    from torch import nn

#: settings of transformers' configurations that say nothing about the architecture
OTHER = {
    *("architectures", "dtype", "finetuning_task", "id2label", "label2id", "num_labels", "output_attentions"),
    *("output_hidden_states", "problem_type", "return_dict", "task_specific_params", "tie_encoder_decoder"),
    *("tokenizer_class", "torch_dtype", "transformers_version", "use_cache"),
}
DROPOUTS = ("classifier_dropout", "cls_dropout", "seq_classif_dropout")


def described(cfg: DictConfig) -> DictConfig:
    """A copy with name, architecture and revision of a saved model; ``cfg`` itself if its backbone's file states them.

    Raises:
        InputError: no model is given, or its config.json cannot be read or downloaded.
    """
    backbone = cfg.backbone
    if backbone.architecture.get("model_type") is not None:
        return cfg
    nameless = OmegaConf.is_missing(backbone, "name")
    if backbone.path is None and backbone.hub is None:
        if nameless:
            raise InputError("backbone=auto needs a model: backbone.path=DIR or backbone.hub=ORG/NAME")
        return cfg
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    backbone = cfg.backbone
    if nameless:
        folder = backbone.path and os.path.abspath(expanded(backbone.path))
        backbone.name = Path(folder).name if folder else backbone.hub.replace("/", "--")
    config = backbones.config_of(cfg)
    values = {name: value for name, value in config.to_dict().items() if name not in OTHER and name[0] != "_"}
    if "${" in str(values):
        raise InputError(f"backbone '{backbone.name}': its config.json has a value with '${{', which is not allowed")
    typed = backbone.architecture  # compared with the saved model's when that is loaded
    backbone.architecture = {**values, "model_type": config.model_type, **typed}
    if backbone.path is None:
        backbone.revision = backbones.commit(cfg) or backbone.revision
    return cfg


# -- a draft for a new model type ------------------------------------------------------------------------------------


def unknown_type(cfg: DictConfig) -> InputError:
    """The error for a model type without a file in sites/, with a draft of one if transformers can build the model."""
    import torch
    import transformers
    from transformers.utils import logging

    from adalora_repro.models.meta_models import Unfilled

    logging.set_verbosity_error()
    options: dict[str, Any] = OmegaConf.to_container(cfg.backbone.architecture)  # type: ignore[assignment]
    model_type = options.pop("model_type")
    problem = str(one_of("model type", model_type, model_types()))
    try:
        with Unfilled(), torch.device("meta"):
            model = getattr(transformers, cfg.task.auto_model).from_config(
                transformers.AutoConfig.for_model(model_type, **options)
            )
    except Exception:  # transformers does not know it either, or not for this task
        return InputError(problem)
    text = draft(model)
    if "{layer}" not in text:
        return InputError(f"{problem}; {type(model).__name__} has no blocks with linear layers (torch's nn.Linear)")
    where = f"sites/{model_type}.yaml in the folder of --config-dir"
    return InputError(f"{problem}; a draft of {where} is on standard output", text)


def draft(model: Any) -> str:
    """A file of sites/ for a model: the linear layers of its repeated blocks, with roles where the names imply them."""
    import yaml
    from torch import nn
    from transformers.models.auto import modeling_auto as auto

    config, model_type = model.config, model.config.model_type
    causal = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    causal = causal and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.base_model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and _linear(module[0] if len(module) else module):
            lists[name] = module
    stacks: dict[str, str] = {}
    roles: dict[str, list[str]] = {}
    for name, blocks in lists.items():
        stack = "decoder" if causal or name.startswith("decoder") else "encoder"
        counts = [key for key, value in config.to_dict().items() if "layer" in key and value == len(blocks)]
        stacks[stack] = next((key for key in counts if stack in key), counts[0] if counts else "TODO")
        for path in _linear(blocks[0]):
            role = _role(path) or f"TODO_{path.replace('.', '_')}"
            roles.setdefault(role, []).append(f"{name}.{{layer}}.{path}")
    for after, before in (("after_attn", ("attn_out", "cross_out")), ("after_ffn", ("ffn_out",))):
        roles[after] = [path for role in before for path in roles.get(role, ())]
    content = {
        "classifier_dropout": next((name for name in DROPOUTS if hasattr(config, name)), None),
        "stacks": stacks,
        **({"special_tokens": ["eos"]} if causal else {}),
        "plain_masks": False,
        "roles": {role: paths[0] if len(paths) == 1 else paths for role, paths in roles.items() if paths},
    }
    return (
        f"# {model_type}: a draft from {type(model).__name__}; check it against the files of conf/sites/\n"
        f"# Roles of matrices: {' '.join(MATRIX_ROLES)}\n"
        "# Adapters sit behind after_attn and after_ffn, Pfeiffer's at ffn_norm: the LayerNorm behind the residual of\n"
        "# the feed-forward. If they apply: head_inside: [pooler]; padding_positions: true (as in RoBERTa);\n"
        "# plain_masks: true (every token attends to every other).\n"
        + yaml.safe_dump(content, sort_keys=False, width=120).rstrip()
    )


def _linear(block: nn.Module) -> list[str]:
    from torch import nn

    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _role(path: str) -> str | None:
    """The role of the path in shipped files that shares most components at the end; None if two roles share as many."""
    backwards = ["{layer}", *path.split(".")][::-1]
    best: dict[int, set[str]] = {0: set()}
    for model_type in model_types():
        for role, templates in architecture(model_type).roles.items():
            for template in [templates] if isinstance(templates, str) else templates:
                inside = ["{layer}", *template.partition("{layer}.")[2].split(".")][::-1]
                shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(backwards, inside, strict=False))])
                if role in MATRIX_ROLES and shared:
                    best.setdefault(shared, set()).add(role)
    roles = best[max(best)]
    return roles.pop() if len(roles) == 1 else None
