"""What makes a composed configuration wrong, beyond the types and ranges of the schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.catalog import base_files, choices_of, section
from adalora_repro.config.plan import measured
from adalora_repro.config.schema import TRACKERS, Config
from adalora_repro.errors import InputError, expanded, one_of
from adalora_repro.models import sites
from adalora_repro.settings import check, settings_of

#: how model types call the number of their layers
LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layers", "num_layers", "num_decoder_layers")
MOST_LAYERS = 1000
#: settings that are the name of a choice, by which a run is filed
NAMES = {"data.source": "data", "budget.label": "budget"} | {
    f"{group}.name": group for group in ("task", "method", "backbone", "protocol")
}
OPTIONAL = ("tuned", "tuned/lr", "script")  # groups of which Hydra passes over a file that is not there


def check_words(cfg: DictConfig, words: Sequence[str], choices: Mapping[str, Any]) -> None:
    """Refuses words and files that would file a run under the name of another, or would silently have no effect.

    Raises:
        InputError: the name of another choice, a part of a method's file, an unknown file.
        OmegaConfBaseException: an unknown setting; ``+key=value`` goes past Hydra's own check of names.
    """
    OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(cfg))
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if group in OPTIONAL and value not in ("null", *(valid := choices_of(group))):
            raise one_of(key, value, valid)
        if key in NAMES and value in choices_of(NAMES[key]) and value != choices.get(NAMES[key]):
            raise InputError(f"{word}: conf/{NAMES[key]} already has this name; choose it with {NAMES[key]}={value}")
        if key == "backbone.hub" and _model_type(base_files("backbone", str(choices.get("backbone")))):
            raise InputError(
                f"{word}: backbone '{choices['backbone']}' is a fixed model; for your own use backbone=auto {word}"
            )
        if key in ("method.module", "method.sizes"):
            raise InputError(f"{key} is set in a method's file, conf/method/NAME.yaml; choose it with method=NAME")
    for group in ("task", "method", "backbone"):
        name, choice = OmegaConf.select(cfg, f"{group}.name"), choices.get(group)
        if choice and name != choice and name in choices_of(group):
            raise InputError(
                f"{group}={choice}: its runs would be filed as those of {group}={name}; set {group}.name={choice} in "
                "its file"
            )


def check_own_name(name: str) -> None:
    """Refuses the name that a saved model would have by its folder, if it is that of another backbone.

    Raises:
        InputError: says how to name it.
    """
    if name in choices_of("backbone"):
        raise InputError(
            f"the folder would name the model '{name}', which conf/backbone already has; choose another name with "
            "backbone.name=NAME"
        )


def check_values(cfg: DictConfig) -> None:
    """Ranges of single settings, and what two settings together exclude.

    Raises:
        InputError: names the setting.
    """
    if OmegaConf.is_missing(cfg.task, "name"):
        raise InputError(f"choose a task: task=…; valid: {', '.join(choices_of('task'))}")
    for name in sorted(OmegaConf.missing_keys(cfg)):
        choices = settings_of(Config)[name].choices if name in settings_of(Config) else None
        raise InputError(f"{name} is not set" + (f"; valid: {', '.join(choices)}" if choices else ""))
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    check(Config, values)
    _check_numbers("", values)
    if short := [split for split, rows in cfg.task.rows.items() if rows < 1]:
        raise InputError(f"task.rows.{short[0]} must be positive, not {cfg.task.rows[short[0]]}")
    if unknown := [name for name in cfg.track if name not in TRACKERS]:
        raise one_of("track", unknown[0], TRACKERS)
    _check_backbone_settings(cfg.backbone)
    expanded(cfg.data.cache_dir)  # refuses the home folder of an unknown user
    train = cfg.train
    if cfg.measure == "score" and cfg.backbone.weights == "random":
        raise InputError("backbone.weights=random is only for measure=cost; a score with random weights means nothing")
    if train.grad_accumulation > train.batch_size:
        raise InputError(
            f"train.grad_accumulation={train.grad_accumulation} exceeds train.batch_size={train.batch_size}: "
            "every micro-batch needs an example"
        )
    if train.group_by_length and train.padding == "max_length":
        raise InputError("train.group_by_length=true saves padding, train.padding=max_length pads all; leave one out")
    if cfg.task.primary_metric not in measured(cfg):
        raise one_of("task.primary_metric", cfg.task.primary_metric, measured(cfg))


def _check_numbers(name: str, value: Any) -> None:
    """Raises InputError for a number that nothing can compute with: infinite, not a number, or beyond 64 bits."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else ((None, each) for each in value):
            _check_numbers(".".join(filter(None, (name, key))), each)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{name}: whole numbers must be below 2^63 = {2**63}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, not {value}")


def _check_backbone_settings(backbone: DictConfig) -> None:
    if backbone.architecture.get("model_type") is None:
        raise InputError(
            f"backbone '{backbone.name}': backbone.architecture.model_type is not set; "
            f"valid: {', '.join(sites.model_types())}"
        )
    for name in LAYERS:  # the plan builds every layer
        layers = backbone.architecture.get(name)
        if layers is not None and not (isinstance(layers, int) and 1 <= layers <= MOST_LAYERS):
            raise InputError(f"backbone.architecture.{name} must be from 1 to {MOST_LAYERS}, not {layers}")
    where = "package" if backbone.source == "package" else "hub"
    nowhere = backbone[where] is None and backbone.path is None
    if nowhere and (backbone.source, backbone.tokenizer) != ("random", "bytes"):
        raise InputError(
            f"backbone.source={backbone.source} with backbone.tokenizer={backbone.tokenizer} needs backbone.{where}, "
            "or backbone.path=DIR"
        )


def check_backbone(cfg: DictConfig, needed: Sequence[str]) -> None:
    """Summarization needs an encoder-decoder, question answering an encoder, classification one of encoder and decoder.

    Raises:
        InputError: names the backbones of the kind that the task needs; or their model type has no file in sites/.
    """
    model_type = cfg.backbone.architecture.model_type
    if model_type not in sites.model_types():
        from adalora_repro.models import own_backbone

        raise own_backbone.unknown_type(cfg)
    actual = sites.architecture(model_type).kind
    if actual in needed:
        return
    types = {name: _model_type(base_files("backbone", name)) for name in choices_of("backbone")}
    fitting = [name for name, each in types.items() if each and sites.architecture(each).kind in needed]
    raise InputError(
        f"task={cfg.task.name} needs {' or '.join(map(_a, needed))}, backbone '{cfg.backbone.name}' is {_a(actual)}; "
        f"valid: {', '.join(fitting)}"
    )


def _a(kind: str) -> str:
    return f"a{'n' if kind.startswith('e') else ''} {kind}"


def _model_type(files: Sequence[Path]) -> str | None:
    """What a backbone's file states; None for one of a saved model, or that cannot be used."""
    for path in files:
        architecture = section(path, "architecture")
        if "model_type" in architecture:
            return str(architecture["model_type"]) if architecture["model_type"] in sites.model_types() else None
    return None


def kept_form(save: str, everything: bool, mergeable: bool) -> str:
    """``adapter``, ``merged`` or ``none``: what ``save`` means for a method, which may train ``everything``.

    ``auto`` keeps what is small: nothing where the whole backbone is trained.

    Raises:
        InputError: the method has no such form.
    """
    if save == "adapter" and everything:
        raise InputError("save=adapter: this method trains the whole backbone; save=merged keeps all of it")
    if save == "merged" and not mergeable:
        raise InputError("save=merged: adapters cannot be merged into the backbone's weights; save=adapter keeps them")
    if save == "auto":
        return "none" if everything else "adapter"
    return save
