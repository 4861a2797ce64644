r"""A trained model in a form that others load: HF PEFT's LoRA, or a plain checkpoint of transformers.

An SVD increment has no form of its own in PEFT: with the kept triplets (λ_i ≠ 0)

    Δ = (alpha / r) P Λ Q = B A,   B = (alpha / r) P Λ (d_out, r'),   A = Q (r', d_in),   scaling 1

and a matrix of rank r' = 0 is left out. The task head is one of PEFT's ``modules_to_save``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_repro.errors import InputError, expanded
from adalora_repro.lowrank import LoRALinear, SVDLinear
from adalora_repro.lowrank.layers import LowRankLinear
from adalora_repro.models.backbones import package_folder
from adalora_repro.models.inject import trained
from adalora_repro.models.sites import head_parameters

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: names that PEFT and transformers look for
PEFT_CONFIG, PEFT_WEIGHTS, MERGED_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "model.safetensors"
OWN_WEIGHTS = "trained.safetensors"
PREFIX = "base_model.model."  # of every tensor in PEFT's file
TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}


# --- to the disk ------------------------------------------------------------------------------------------------------


def expressible(model: nn.Module) -> bool:
    """Whether PEFT's LoRA can say what was trained: some increment of low rank that is not zero, and the head alone."""
    layers = low_rank_layers(model)
    own = {f"{path}.lora_{name}" for path in layers for name in "ABE"} | head_parameters(model).keys()
    return trained(model).keys() <= own and any(len(factors(layer)[0]) for layer in layers.values())


def write_peft(model: PreTrainedModel, cfg: DictConfig, folder: Path) -> None:
    """The low-rank increments and the head of a model at its budget."""
    tensors, config = peft_form(model, cfg)
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, folder / PEFT_WEIGHTS)


def write_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A plain model with its tokenizer, as the Auto classes of transformers load them.

    Raises:
        InputError: the method has modules of its own; transformers would draw random weights for those they replaced.
    """
    with torch.device("meta"):
        plain = type(model)(model.config)
    if foreign := sorted(model.state_dict().keys() - plain.state_dict().keys()):
        raise InputError(f"the trained model is not a plain {type(model).__name__}: it has a weight '{foreign[0]}'")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As fp32, contiguous, on the host."""
    save_file(
        {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in tensors.items()},
        path,
        {"format": "pt"},
    )


# --- PEFT's format ----------------------------------------------------------------------------------------------------


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Path of the module -> low-rank layer; not of subclasses, which may compute something else."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    return {name: layer for name, layer in layers.items() if type(layer) in (LoRALinear, SVDLinear)}


def factors(layer: LowRankLinear) -> tuple[Tensor, Tensor, float]:
    """A (r', d_in), B (d_out, r') and s with Δ = s B A; components that are exactly zero are left out."""
    up, scaling = layer.lora_B.detach(), layer.scaling
    if isinstance(layer, SVDLinear):
        up, scaling = up * (layer.scaling * layer.lora_E.detach()).t(), 1.0
    kept = (up != 0).any(0)
    return layer.lora_A.detach()[kept], up[:, kept], scaling


def peft_form(model: PreTrainedModel, cfg: DictConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of ``adapter_model.safetensors`` and the content of ``adapter_config.json``; see ``expressible``."""
    made = {name: factors(layer) for name, layer in low_rank_layers(model).items()}
    made = {name: (down, up, scaling) for name, (down, up, scaling) in made.items() if len(down)}
    ranks = {name: len(down) for name, (down, _, _) in made.items()}
    alphas = {name: scaling * ranks[name] for name, (_, _, scaling) in made.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    tensors = {f"{PREFIX}{name}.lora_A.weight": down for name, (down, _, _) in made.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": up for name, (_, up, _) in made.items()}
    head = head_parameters(model)
    tensors |= {f"{PREFIX}{name}": parameter for name, parameter in head.items() if parameter.requires_grad}
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(cfg.task.auto_model),
        "base_model_name_or_path": base_name(cfg),
        "revision": cfg.backbone.revision if cfg.backbone.path is None else None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(made),
        "modules_to_save": head_modules(model) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return tensors, config


def base_name(cfg: DictConfig) -> str:
    """What others load the backbone by: its folder, that of the package that carries it, or its name on the hub."""
    backbone = cfg.backbone
    if backbone.path is not None:
        return str(expanded(backbone.path).resolve())
    if backbone.source == "package":
        return str(package_folder(backbone.package))
    return str(backbone.hub or backbone.name)


def head_modules(model: PreTrainedModel) -> list[str]:
    """The largest modules that consist of trained parameters of the task head alone."""
    head = {name for name, parameter in head_parameters(model).items() if parameter.requires_grad}
    chosen: list[str] = []
    for path, module in model.named_modules():
        names = {f"{path}.{name}" for name, _ in module.named_parameters()}
        inside = any(path.startswith(f"{other}.") for other in chosen)
        if path and names and names <= head and not inside:
            chosen.append(path)
    return chosen


# --- from the disk ----------------------------------------------------------------------------------------------------


def merge(model: PreTrainedModel) -> None:
    """Puts plain layers, W + Δ, in the place of low-rank ones."""
    for path, layer in low_rank_layers(model).items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.merge())


@torch.no_grad()
def add_peft(model: PreTrainedModel, folder: Path) -> None:
    """Adds the increments of PEFT's file to the weights of a plain model, W + s B A, and takes the head.

    Raises:
        InputError: the model is of another backbone.
    """
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    tensors = {name.removeprefix(PREFIX): value for name, value in load_file(folder / PEFT_WEIGHTS).items()}
    modules = dict(model.named_modules())
    for name in config["target_modules"]:
        down, up = tensors.pop(f"{name}.lora_A.weight"), tensors.pop(f"{name}.lora_B.weight")
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear) or linear.weight.shape != (len(up), down.shape[1]):
            raise InputError(
                f"{folder}: the backbone is another one: no matrix '{name}' of {len(up)} x {down.shape[1]}"
            )
        linear.weight += config["alpha_pattern"].get(name, config["lora_alpha"]) / len(down) * up @ down
    take(model, tensors, folder)


def take(model: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Loads parameters by name.

    Raises:
        InputError: the model has none of this name and shape: it is of another backbone.
    """
    own = dict(model.named_parameters())
    foreign = sorted(name for name, value in tensors.items() if name not in own or own[name].shape != value.shape)
    if foreign:
        raise InputError(f"{folder}: the backbone is another one: no weight '{foreign[0]}' of this shape")
    model.load_state_dict(dict(tensors), strict=False)
