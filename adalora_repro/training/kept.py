"""What a finished run keeps of its model in ``RUN/model/``, and how it is put together again.

``adapter``: HF PEFT's LoRA format for low-rank methods, otherwise the trained parameters under their own names;
``merged``: a plain checkpoint of transformers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from adalora_repro import methods
from adalora_repro.config import catalog
from adalora_repro.config.resolve import changed
from adalora_repro.config.words import command_line
from adalora_repro.errors import InputError, errno_of, expanded, first_line
from adalora_repro.models import backbone_files, backbone_tokenizer, backbones, export, sites
from adalora_repro.models.export import OWN_WEIGHTS
from adalora_repro.records.run_record import RECORD_NAME

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adalora_repro.methods.base import BaseMethod
    from adalora_repro.records.run_record import RunRecord

FOLDER = "model"
CONFIG = "run.yaml"  # the run's whole configuration, with the sizes that its budget gave
CARD, RECORD = "README.md", "record.json"
SITES = "sites"  # the user's files of model types, if there are any


# --- to the disk ------------------------------------------------------------------------------------------------------


def keep(model: PreTrainedModel, cfg: DictConfig, folder: Path, form: str, method: BaseMethod | None = None) -> None:
    """Writes ``folder``, whole or not at all. The model must be at its budget (inside ``method.masked()``).

    Frozen weights may be rounded (``train.precision=bf16``): a merged model is made of the backbone's own. ``method``
    is the one that was injected; most can do without.
    """
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_configuration(cfg, part)
    for path in sites.added_files():
        (part / SITES).mkdir(exist_ok=True)
        shutil.copy(path, part / SITES)
    (method or methods.load(cfg)).write(model, cfg, part)
    if form == "merged":
        export.write_merged(*load(part), part)
        for name in (export.PEFT_CONFIG, export.PEFT_WEIGHTS, OWN_WEIGHTS):
            (part / name).unlink(missing_ok=True)
    for path in part.glob("*.safetensors"):  # which its library makes for their owner's eyes alone
        path.chmod((part / CONFIG).stat().st_mode)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _write_configuration(cfg: DictConfig, folder: Path) -> None:
    from omegaconf import OmegaConf

    if cfg.backbone.path is not None:  # typed relative to the folder of the command
        cfg = changed(cfg, {"backbone.path": export.base_name(cfg)})
    (folder / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")


# --- together again ---------------------------------------------------------------------------------------------------


def load(run: str | Path, backbone: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished run's model, in fp32, on the CPU, in evaluation mode, and its tokenizer.

    Low-rank increments are added to the weights: the model is a plain one of transformers. Adapters stay modules.

    Args:
        run: the run's folder, its ``model/``, or a folder that ``adalora-model export`` wrote.
        backbone: a folder with the backbone, where it is no longer where the run had it.

    Raises:
        InputError: the run kept no model, a file of it is damaged, or its backbone cannot be loaded.
    """
    import transformers

    folder = folder_of(run)
    cfg = configuration(folder, backbone)
    transformers.utils.logging.disable_progress_bar()
    if (folder / export.MERGED_WEIGHTS).exists():
        with readable(folder):
            merged = getattr(transformers, cfg.task.auto_model).from_pretrained(folder, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            backbone_tokenizer.restore_character_map(tokenizer, folder)
            return merged.eval(), tokenizer
    _require_own_backbone(folder, cfg)
    tokenizer = backbones.load_tokenizer(cfg)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.default_generator.manual_seed(cfg.seed)  # random weights are drawn as for the run
        model = backbones.load_model(cfg)
        with readable(folder):
            model = methods.load(cfg).read(model, sites.find_sites(model), folder)
    if names := list(cfg.task.class_names):
        model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    return model.requires_grad_(False).eval(), tokenizer


def _require_own_backbone(folder: Path, cfg: DictConfig) -> None:
    """Raises InputError if the files of the backbone are not those that the run had: its answers would be wrong."""
    if cfg.backbone.path is None or not (folder / RECORD).exists():
        return
    with readable(folder):
        trained = json.loads((folder / RECORD).read_bytes())["settings"].get("backbone.path")
    path = expanded(cfg.backbone.path)
    if trained and trained != backbone_files.fingerprint(path):
        raise InputError(f"{path} is not the backbone of this run: its files have changed, or are another model's")


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Inside, what the libraries raise for a missing or damaged file becomes an ``InputError``."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{folder}: the model cannot be read, a file is missing or damaged ({problem})") from None


def folder_of(run: str | Path) -> Path:
    """The folder with the model: ``run`` itself or its ``model/``.

    Raises:
        InputError: there is none; says what to do.
    """
    run = Path(run)
    base = run.parent if run.is_file() else run
    for folder in (base, base / FOLDER):
        if (folder / CONFIG).is_file():
            return folder
    if not run.exists():
        raise InputError(f"no folder '{run}'")
    raise InputError(
        f"{base} keeps no model: the run is not finished, or it was trained with save=none (auto keeps no model whose "
        "whole backbone was trained); train it again with force=true and save=adapter or save=merged"
    )


def configuration(folder: Path, backbone: str | None = None) -> DictConfig:
    """The configuration that the model was trained with; what is newer than the run has its default.

    Raises:
        InputError: the file is damaged, or of a later version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from adalora_repro.config.schema import Config

    try:
        cfg: Any = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(folder / CONFIG))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read: {first_line(error)}") from None
    if missing := [group for group in ("task", "method", "backbone") if not cfg[group].get("name")]:
        raise InputError(f"{folder / CONFIG} is incomplete: it names no {missing[0]}")
    if backbone is not None:
        if not expanded(backbone).is_dir():
            raise InputError(f"backbone: no folder '{backbone}'")
        cfg.backbone.path = backbone
    if cfg.backbone.architecture.get("model_type") not in sites.model_types():
        sites.add_folder(folder / SITES)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def write_export(run: Path, to: Path, form: str, backbone: str | None = None) -> None:
    """Writes a finished run's model and its tokenizer to a new folder, whole or not at all: ``peft`` or ``merged``.

    Raises:
        InputError: ``to`` is not new or cannot be written; the model is damaged or has no such form.
    """
    folder = folder_of(run)
    if not to.name or (os.path.lexists(to) and not (to.is_dir() and not any(to.iterdir()))):  # "." has no name
        raise InputError(f"--to: '{to}' already exists; name a new folder")
    base = folder.parent if (folder.parent / RECORD_NAME).exists() else folder
    if to.resolve().is_relative_to(base.resolve()):
        raise InputError(f"--to: '{to}' is inside '{base}'; name a folder elsewhere")
    cfg = configuration(folder, backbone)
    if form == "peft" and not (folder / export.PEFT_CONFIG).exists():
        raise InputError(f"{folder} is not in PEFT's format, which low-rank methods have; --as merged")
    if form == "merged" and not methods.load(cfg).mergeable:
        raise InputError(f"{folder}: adapters cannot be merged into the backbone's weights")
    part = to.with_name(f"{to.name}.part")
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"--to: '{part}' exists, from an export under way or cut off; remove it first") from None
    except OSError as error:
        raise InputError(f"--to: cannot write '{to}': {error.strerror}") from None
    try:
        _write_configuration(cfg, part)
        for name in (CARD, RECORD):
            if (folder / name).exists():
                shutil.copy(folder / name, part / name)
        if form == "peft":
            _require_own_backbone(folder, cfg)
            with readable(folder), safe_open(folder / export.PEFT_WEIGHTS, "pt"):
                config = json.loads((folder / export.PEFT_CONFIG).read_text(encoding="utf-8"))
            if backbone is not None:
                config |= {"base_model_name_or_path": export.base_name(cfg), "revision": None}
            (part / export.PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            shutil.copy(folder / export.PEFT_WEIGHTS, part)
            backbones.load_tokenizer(cfg).save_pretrained(part)
        else:
            export.write_merged(*load(folder, backbone), part)
        if (part / CARD).exists():
            library, use = use_of(part, cfg)
            text = (part / CARD).read_text(encoding="utf-8")
            text = re.sub("^library_name: .*$", f"library_name: {library}", text, count=1, flags=re.MULTILINE)
            text = re.sub("```python.*?```", lambda _: f"```python\n{use}\n```", text, count=1, flags=re.DOTALL)
            if backbone is not None:
                line = f"base_model: {json.dumps(export.base_name(cfg))}"
                text = re.sub("^base_model: .*$", lambda _: line, text, count=1, flags=re.MULTILINE)
            (part / CARD).write_text(text, encoding="utf-8")
        if (folder / SITES).is_dir():
            shutil.copytree(folder / SITES, part / SITES)
        part.replace(to)  # an empty folder may be there
    except InputError:
        raise
    except Exception as error:
        if errno_of(error) is None:
            raise
        raise InputError(f"--to: cannot write '{to}': {first_line(error)}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- the model card ---------------------------------------------------------------------------------------------------


def write_card(folder: Path, record: RunRecord, cfg: DictConfig, words: Sequence[str]) -> None:
    """README.md: front matter as the hub reads it, metrics, counts, the command; and the record beside it."""
    import yaml

    (folder / RECORD).write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    assert record.final is not None
    command = command_line(words).removeprefix("# ")
    library, use = use_of(folder, cfg)
    front = {
        "base_model": export.base_name(cfg),
        "library_name": library,
        "license": "other",
        "license_name": "see-base-model-and-data",
        "datasets": [cfg.task.hub] if cfg.task.hub else [],
        "tags": ["adalora-repro", cfg.method.name, cfg.task.name],
    }
    key, params = record.key, record.params
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in record.final["metrics"].items())
    same = "Degenerate: the last evaluation gave every example the same prediction.\n\n" * record.degenerate
    ranks = f"Ranks of the adapted matrices: {ranks_text(record.rank_pattern)}.\n\n" if record.rank_pattern else ""
    text = f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {key["task"]}: {key["method"]} {key["budget"]} on {key["backbone"]}

{params["method"]:,} trained parameters of the method and {params["head"]:,} of the task head, on a backbone of
{params["backbone"]:,}; {key["total_steps"]:,} steps, learning rate {key["lr"]:g}, seed {key["seed"]}.

{ranks}{same}| metric (validation split, last step) | value |
|---|---|
{metrics}

```python
{use}
```

Trained with `{command}`; all settings are in `{CONFIG}`, the record of the run is `{RECORD}`.
The licences of the backbone and of the data apply.
"""
    (folder / CARD).write_text(text, encoding="utf-8")


def use_of(folder: Path, cfg: DictConfig) -> tuple[str, str]:
    """The library that loads a kept model, and the code."""
    peft = (folder / export.PEFT_CONFIG).exists()
    merged = (folder / export.MERGED_WEIGHTS).exists()
    library = "peft" if peft else "transformers" if merged else "adalora-repro"
    # a decoder's classifier pools the last token that is not padding
    decoder = sites.architecture(cfg.backbone.architecture.model_type).kind == "decoder"
    tokenizer = "tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)\n" * decoder
    return library, {
        "peft": f"{tokenizer}model = transformers.{cfg.task.auto_model}.from_pretrained({export.base_name(cfg)!r}"
        f"{f', num_labels={cfg.task.num_labels}' if 'Classification' in cfg.task.auto_model else ''}"
        f"{', pad_token_id=tokenizer.pad_token_id' * decoder}"
        # a model of one's own may come with a head for other classes; PEFT loads the trained one
        f"{'' if cfg.backbone.name in catalog.choices_of('backbone') else ', ignore_mismatched_sizes=True'}, "
        "dtype='float32')\n"  # transformers would take the precision of the backbone's file
        "model = peft.PeftModel.from_pretrained(model, FOLDER).eval()",
        "transformers": f"model = transformers.{cfg.task.auto_model}.from_pretrained(FOLDER).eval()",
        "adalora-repro": "model, tokenizer = adalora_repro.load(FOLDER)",
    }[library]


def ranks_text(ranks: Mapping[str, int]) -> str:
    return f"{min(ranks.values())} to {max(ranks.values())}, {sum(ranks.values()):,} in {len(ranks)} matrices"
