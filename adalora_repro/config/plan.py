"""Everything knowable before training: T, phases, exact parameter counts, memory, the run's folder; the dry run.

``resolve`` needs no torch: it checks the composed configuration, fills in what follows from others (sizes from the
budget, step counts from T) and names the run, so that a finished run is recognized at once. ``count`` builds the model
on the meta device: no weights, no network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from adalora_repro.config.catalog import GROUPS, base_files, budget_families, choices_of, resource
from adalora_repro.config.schema import LAUNCHES
from adalora_repro.errors import InputError, one_of
from adalora_repro.methods import equal_counts
from adalora_repro.models import backbone_files, backbones
from adalora_repro.models.backbones import MATRIX_ROLES
from adalora_repro.records import cost_record, revisions, run_record
from adalora_repro.tasks import held_out, load_family, sources

#: settings that change where, how fast or how observed, but not what is measured: left out of the run's identity
NOT_RESULT = [
    "dry_run",
    "force",
    "launch",
    "results.dir",
    "data.dir",
    "data.cache_dir",
    "data.num_proc",
    "train.save_steps",
    "train.log_steps",
    "train.num_workers",
    "train.device",
    "method.sizes",
    "method.label",
    "method.role",
    "recipe",
    "backbone.lora_init",
    "task.rows",
    "task.more_budgets",
    "task.auto_model",
    "task.head",
    "eval.untrained",
    "measure",
    "cost.steps",
    "cost.warmup_steps",
    "cost.against",
]
#: settings that came after the first records: at these values, which are what was done before and not always the
#: default, they leave a run's identity, and its folder, as it was
LATER: dict[str, Any] = {
    "backbone.weights": "pretrained",
    "data.holdout": None,
    "data.skip_invalid": False,
    "method.allocation": "global",
    "method.init": "normal",
    "method.initial_rank": False,
    "method.rank_pattern": None,
    "train.attention": "eager",
    "train.compile": "none",
    "train.group_by_length": True,
    "task.n_best": None,
    "task.max_answer_length": None,
    "task.null_threshold": None,
    "task.length_penalty": None,
    "task.min_target_length": None,
    "task.no_repeat_ngram_size": None,
    "task.early_stopping": None,
    "budget.match": "label",
    "budget.params": None,
}


MOST_STEPS = 2**40  # ten thousand years of them
MOST_LAYERS = 1000
MOST_WIDTH = 2**31 - 1  # of any other integer of an architecture
PLACES = {"targets", "layers"}  # the settings of a method that say which matrices it adapts
Stamp = tuple[tuple[str, int, int], ...]


@dataclass
class Plan:
    """One run before it starts.

    Attributes:
        cfg: the configuration with sizes and step counts filled in.
        key, settings: as in ``records.RunRecord``.
        folder: results/runs/…, the same for the same configuration.
        total_steps: T; ``steps_per_epoch`` likewise in optimizer steps.
        train_rows: rows of the train split to train on, without those that ``data.holdout`` holds out.
        provisional: the examples are known only when they are tokenized: a row may give several windows, bad rows are
            left out. Until ``settle``, T and ``steps_per_epoch`` take one example for each row.
        asked: the settings as asked for, of which the run's hash is made; where provisional, with the step counts
            before they were scaled by T.
        choices, overrides: group -> chosen file, and the words of the command line: what ``origins`` follow from.
        scaled: setting -> how ``method.schedule=scaled`` made it.
        method: what the method says of itself (``BaseMethod.plan``), after ``count``.
        params: ``method`` (at the final budget), ``at_init``, ``head``, ``total``, ``backbone``; after ``count``.
        memory: bytes of weights, of gradients and of AdamW's two averages of what trains; after ``count``.
    """

    cfg: DictConfig
    key: dict[str, Any]
    settings: dict[str, Any]
    folder: Path
    total_steps: int
    steps_per_epoch: int
    train_rows: int = 0
    provisional: bool = False
    asked: dict[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    scaled: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    method: dict[str, Any] = field(default_factory=dict)
    params: dict[str, int] = field(default_factory=dict)
    memory: int = 0

    @property
    def measured(self) -> list[str]:
        return measured(self.cfg)

    @property
    def eval_steps(self) -> int:
        """Optimizer steps from one evaluation to the next; the last step is evaluated too."""
        asked: int | None = self.cfg.train.eval_steps
        return asked or self.steps_per_epoch

    @property
    def unscaled(self) -> dict[str, Any]:
        """The step counts as they were asked for."""
        return {name: self.asked[name] for name in SCALED if name in self.asked}

    @property
    def origins(self) -> dict[str, str]:
        """Setting -> where its value comes from, for the settings shown: reads YAML, so only when asked."""
        found = {key: _origin(key, self.choices, self.overrides) for key in _shown(self.cfg)}
        return found | {key: f"{how}; {found.get(key, '')}".rstrip("; ") for key, how in self.scaled.items()}


def measured(cfg: DictConfig) -> list[str]:
    """Names of the metrics that the task is about; a record may hold more."""
    return [f"{metric}{suffix}" for suffix in cfg.task.validation for metric in cfg.task.metrics]


# -- checking and completing a configuration -----------------------------------------------------------------------


def resolve(cfg: DictConfig, choices: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Composed configuration -> plan without counts.

    Args:
        cfg: as Hydra composed it; not changed.
        choices: group -> chosen file, and ``overrides`` as typed: only for the origins shown.

    Raises:
        InputError: a value out of range, a budget of another task family, missing data.
    """
    _check_words(overrides, choices or {})
    if OmegaConf.is_missing(cfg.task, "name"):
        raise InputError(f"choose a task: task=…; valid: {', '.join(choices_of('task'))}")
    _check_values(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[assignment]
    label = _apply_budget(cfg, any(word.startswith("budget=") for word in overrides))
    task = load_family(cfg)
    _check_backbone(cfg, task.architecture)
    model_type = cfg.backbone.architecture.model_type
    if cfg.train.attention == "cropped" and model_type != "deberta-v2":
        raise InputError(f"train.attention=cropped is for deberta-v2, backbone '{cfg.backbone.name}' is {model_type}")
    sources.check(cfg, task)
    rows = sources.train_rows(cfg)
    if cfg.data.holdout is not None:
        cfg.data.holdout = held_out.size(cfg.data.holdout, rows)  # a fraction and its number of rows are the same run
        rows -= cfg.data.holdout
    total_steps, steps_per_epoch = _steps(cfg, rows)
    scaled: dict[str, str] = {}
    provisional = cfg.task.stride is not None or cfg.data.skip_invalid
    if not provisional:
        _scale_steps(cfg, total_steps, scaled)
    asked = result_settings(cfg)
    if provisional:  # T is no part of the run's identity then, but follows from it: nor are the counts scaled by it
        _scale_steps(cfg, total_steps, scaled)
    notes = []
    if cfg.budget.match == "params" and not equal_counts.matched(cfg):
        notes.append(f"budget.match=params has no effect: method '{cfg.method.name}' has one size")
    if provisional and cfg.train.max_steps is None:
        why = "contexts longer than a window give several examples" if cfg.task.stride is not None else "bad rows go"
        notes.append(
            f"T = {total_steps:,} counts one example for each row; {why}, so that the run itself settles T when the "
            f"data are tokenized (paper: about {cfg.task.total_steps:,})"
        )
    if cfg.optim.warmup_steps >= total_steps:
        notes.append(
            f"warm-up takes {cfg.optim.warmup_steps} of T = {total_steps} steps, so the learning rate never reaches "
            "optim.lr; method.schedule=scaled keeps the paper's fraction"
        )

    for name, value in asked.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be finite, not {value}")
    asked |= revisions.present(cfg.method.module)
    asked["data.fingerprint"] = sources.fingerprint(cfg)
    if cfg.backbone.path is not None:
        asked["backbone.path"] = weights_fingerprint(Path(cfg.backbone.path).expanduser())
    if label != cfg.budget.label:  # a size that is not the budget's: every budget is the same run
        said = _matched_by(cfg)
        asked = {name: value for name, value in asked.items() if name in said or not name.startswith("budget.")}
    key = {
        "backbone": cfg.backbone.name,
        "task": cfg.task.name,
        "method": cfg.method.name,
        "budget": label,
        "protocol": cfg.protocol.name,
        "data": cfg.data.source,
        "lr": None,
        "seed": None,
        "total_steps": total_steps,
        "max_examples": cfg.eval.max_examples,
        "variant": _variant(asked),
        "hash": None,
    }
    if cfg.data.source == "local":
        before = asked | {"data.fingerprint": sources.byte_fingerprint(cfg)}
        if _has_variant(cfg, key, variant := _variant(before)):
            asked, key["variant"] = before, variant
    chosen = dict(choices or {})
    settings = asked | _counts(cfg, asked)
    unnamed = Plan(
        cfg,
        key,
        settings,
        Path(),
        total_steps,
        steps_per_epoch,
        train_rows=rows,
        provisional=provisional,
        asked=asked,
        choices=chosen,
        overrides=overrides,
        scaled=scaled,
        notes=notes,
    )
    return named(unnamed, cfg)


def _variant(asked: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in asked.items() if name not in ("optim.lr", "seed")})


def _has_variant(cfg: DictConfig, key: Mapping[str, Any], variant: str) -> bool:
    """Whether the cell of ``key`` has a record of this variant.

    Local data used to be identified by the bytes of their files. If there are records from then, runs on the same bytes
    keep that identity: finished runs are recognised, and new seeds join the same setting.
    """
    parts = [str(key[name]) for name in ("backbone", "task", "method", "budget")]
    with suppress(run_record.RecordError, OSError):
        cell = run_record.folder_below(Path(cfg.results.dir).expanduser(), "runs", parts)
        for path in cell.glob(f"*/{run_record.RECORD_NAME}"):
            with suppress(run_record.RecordError, OSError):  # of one that cannot be read, reports say so
                if f'"{variant}"'.encode() in run_record.content_of(path):
                    return True
    return False


def named(plan: Plan, cfg: DictConfig) -> Plan:
    """The plan with the learning rate and the seed of ``cfg`` in its key, settings and folder.

    All else is taken from ``plan``, its ``cfg`` too: for a run that differs in these two alone it says whether that run
    is finished, at a hundredth of the time of ``resolve``.

    Raises:
        InputError: the value of one of the two is wrong.
    """
    _check_numbers(cfg, ("optim.lr",), ("seed",))
    own = {"optim.lr": cfg.optim.lr, "seed": cfg.seed}
    asked, settings = plan.asked | own, plan.settings | own
    key = plan.key | {"lr": float(cfg.optim.lr), "seed": cfg.seed, "hash": digest(asked)}
    results = Path(plan.cfg.results.dir).expanduser()
    try:
        if plan.cfg.measure == "cost":
            folder = cost_record.folder(results, cost_key(plan.cfg, key))
        else:
            folder = run_record.run_folder(results, key)
    except run_record.RecordError as error:
        raise InputError(str(error)) from None
    return replace(plan, key=key, asked=asked, settings=settings, folder=folder)


def reference(cfg: DictConfig) -> str | None:
    """The method that ``measure=cost`` measures beside the chosen one; None where that is alone."""
    return None if cfg.cost.against == cfg.method.name else cfg.cost.against


def cost_key(cfg: DictConfig, key: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a measurement of cost before it is made, as in ``cost_record.KEY_FIELDS``.

    ``padding`` is ``max_length``, ``longest`` with grouped batches, ``drawn`` with those that are not.
    """
    drawn = cfg.train.padding == "longest" and not cfg.train.group_by_length
    return {name: key[name] for name in ("backbone", "task", "budget", "method", "protocol", "data")} | {
        "against": reference(cfg),
        "precision": cfg.train.precision,
        "padding": "drawn" if drawn else cfg.train.padding,
        "weights": "random" if cfg.backbone.source == "random" else cfg.backbone.weights,
        "batch_size": cfg.train.batch_size,
    }


def _stamp(folder: Path) -> Stamp:
    """Names, times and sizes of the files of a folder: a sweep of hundreds of runs hashes them once."""
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


def _steps(cfg: DictConfig, examples: int) -> tuple[int, int]:
    """T and the optimizer steps of one epoch."""
    steps_per_epoch = math.ceil(examples / cfg.train.batch_size)
    total_steps = cfg.train.max_steps or math.ceil(cfg.train.epochs * steps_per_epoch)
    if total_steps >= MOST_STEPS:
        raise InputError(f"train.max_steps or train.epochs: T={total_steps} steps are 2^40 or more")
    return total_steps, steps_per_epoch


def settle(plan: Plan, examples: int) -> Plan:
    """The plan, counted, for the number of training examples that tokenization gave.

    Raises:
        InputError: it is not what T was made from; T is too short for the method's schedule.
    """
    total_steps, steps_per_epoch = _steps(plan.cfg, examples)
    if (total_steps, steps_per_epoch) == (plan.total_steps, plan.steps_per_epoch):
        return plan
    if not plan.provisional:
        raise InputError(f"the train split has {examples:,} rows, which is not what the plan's T was made from")
    cfg = plan.cfg.copy()
    for name, value in plan.unscaled.items():
        OmegaConf.update(cfg, name, value)
    _scale_steps(cfg, total_steps, {})
    settled = replace(plan, cfg=cfg, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    settled.key = plan.key | {"total_steps": total_steps}
    settled.settings = plan.settings | _counts(cfg, plan.asked)
    return count(settled)


def _check_backbone(cfg: DictConfig, needed: str) -> None:
    """An encoder does not write summaries, and what the paper does with encoder-decoders is that."""

    def kind(model_type: str) -> str:
        return "encoder-decoder" if "decoder" in backbones.architecture(model_type).stacks else "encoder"

    found = kind(cfg.backbone.architecture.model_type)
    if found == needed:
        return
    shipped = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((resource("conf") / "backbone").glob("*.yaml"))
    }
    fitting = [name for name, backbone in shipped.items() if kind(backbone["architecture"]["model_type"]) == needed]
    raise InputError(
        f"task={cfg.task.name} needs an {needed}, backbone '{cfg.backbone.name}' is an {found}; "
        f"valid: {', '.join(fitting)}"
    )


#: settings that are the name of a choice, by which a run is filed
NAMES = {"data.source": "data", "budget.label": "budget"} | {
    f"{group}.name": group for group in ("task", "method", "backbone", "protocol")
}
OPTIONAL = ("tuned", "tuned/lr", "script")  # groups of which Hydra passes over a file that is not there


def _check_words(words: Sequence[str], choices: Mapping[str, Any]) -> None:
    """What would be filed under the name of something else, or have no effect without a word.

    Raises:
        InputError: the name of another choice, a part of a method's file, an unknown file, a node taken away.
    """
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if word.startswith("~") and not word.startswith(tuple(f"~{name}" for name in OPTIONAL)):
            raise InputError(f"'{word}': settings are given other values, not taken away")
        if group in OPTIONAL and value not in ("null", *(valid := choices_of(group))):
            raise one_of(key, value, valid)
        if key in NAMES and value in choices_of(NAMES[key]) and value != choices.get(NAMES[key]):
            raise InputError(f"{word}: that name belongs to a file of conf/{NAMES[key]}: {NAMES[key]}={value}")
        if key in ("method.module", "method.sizes"):
            raise InputError(f"{key} belongs to the file of a method: conf/method/NAME.yaml, chosen with method=NAME")


def _check_values(cfg: DictConfig) -> None:
    positive = [
        "train.epochs",
        "train.max_steps",
        "train.batch_size",
        "train.grad_accumulation",
        "train.eval_steps",
        "train.save_steps",
        "train.log_steps",
        "optim.lr",
        "optim.max_grad_norm",
        "optim.eps",
        "eval.batch_size",
        "eval.max_examples",
        "task.max_length",
        "task.num_labels",
        "task.total_steps",
        "data.sample_rows",
        "data.sample_validation_rows",
        "data.num_proc",
        "task.max_target_length",
        "task.n_best",
        "task.max_answer_length",
        "task.num_beams",
        "budget.params",
        "cost.steps",
        *(f"task.rows.{split}" for split in cfg.task.rows),
    ]
    fractions = ["optim.beta1", "optim.beta2", "task.classifier_dropout"]
    not_negative = [
        "seed",
        "optim.warmup_steps",
        "optim.weight_decay",
        "train.num_workers",
        "cost.warmup_steps",
        *fractions,
    ]
    not_negative += ["task.stride", "task.min_target_length", "task.no_repeat_ngram_size"]
    _check_numbers(cfg, positive, not_negative, fractions)
    for name, value in cfg.backbone.architecture.items():
        where = f"backbone.architecture.{name}"
        if name in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
            if not isinstance(value, int) or not 1 <= value <= MOST_LAYERS:  # the plan builds every layer
                raise InputError(f"{where} must be a number of layers from 1 to {MOST_LAYERS}, not {value}")
        elif isinstance(value, int) and abs(value) > MOST_WIDTH:
            raise InputError(f"{where} must be below 2^31, not {value}")
    choices = {
        "train.precision": ("fp32", "bf16"),
        "train.padding": ("longest", "max_length"),
        "train.attention": ("eager", "cropped"),
        "train.compile": ("none", "inductor", "aot_eager"),
        "train.device": ("auto", "cpu", "cuda"),
        "method.schedule": ("absolute", "scaled"),
        "protocol.name": ("paper", "released"),
        "budget.match": ("label", "params"),
        "launch": LAUNCHES,
        "measure": ("score", "cost"),
        "backbone.source": ("hub", "package", "random"),
        "backbone.tokenizer": ("hub", "package", "bytes"),
        "backbone.weights": ("pretrained", "random"),
    }
    for name, valid in choices.items():
        if OmegaConf.select(cfg, name) not in valid:
            raise one_of(name, OmegaConf.select(cfg, name), valid)
    backbone = cfg.backbone
    where = "package" if backbone.source == "package" else "hub"
    nowhere = backbone[where] is None and backbone.path is None
    if nowhere and (backbone.source, backbone.tokenizer) != ("random", "bytes"):
        raise InputError(
            f"backbone.{where} is not set, which backbone.source={backbone.source} with "
            f"backbone.tokenizer={backbone.tokenizer} needs; or backbone.path=DIR"
        )
    if cfg.measure == "score" and cfg.backbone.weights == "random":
        raise InputError("backbone.weights=random has no score worth a record: it is for measure=cost")
    if cfg.train.grad_accumulation > cfg.train.batch_size:
        raise InputError(
            f"train.grad_accumulation={cfg.train.grad_accumulation} splits the {cfg.train.batch_size} examples of a "
            "step (train.batch_size) into more parts than there are"
        )
    if cfg.train.group_by_length and cfg.train.padding == "max_length":
        raise InputError(
            "train.group_by_length=true saves the padding that train.padding=max_length asks for: one of both"
        )
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise InputError(f"{missing[0]} is not set")
    if cfg.task.primary_metric not in measured(cfg):
        raise one_of("task.primary_metric", cfg.task.primary_metric, measured(cfg))


def _check_numbers(
    cfg: DictConfig, positive: Sequence[str], not_negative: Sequence[str], fractions: Sequence[str] = ()
) -> None:
    for name in (*positive, *not_negative):
        value = OmegaConf.select(cfg, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
            raise InputError(f"{name} must be {'positive' if name in positive else '0 or more'}, not {value}")
        if name in fractions and value >= 1:
            raise InputError(f"{name} must be below 1, not {value}")
        if name == "seed" and value >= 2**32:  # what NumPy's generators take
            raise InputError(f"seed must be below 2^32, not {value}")


def _apply_budget(cfg: DictConfig, budget_typed: bool) -> str:
    """Takes the method's size from the budget where it is not given; returns the budget's name in keys and tables.

    A size of one's own is no longer that budget, nor are fewer matrices than all: such a run is named by its size, so
    that it never enters the budget's cell.
    """
    sizes = cfg.method.get("sizes")
    if cfg.method.get("rank_pattern") is not None or ("rank_pattern" in cfg.method and sizes is None):
        return _take_ranks(cfg, budget_typed)
    if cfg.budget.params is not None:
        _check_params(cfg, budget_typed)
    elif sizes is None and not budget_typed:
        return str(cfg.method.name)
    elif cfg.budget.family not in (families := [cfg.task.budgets, *cfg.task.more_budgets]):
        valid = [name for name, family in budget_families().items() if family in families]
        raise InputError(
            f"budget '{cfg.budget.label}' does not exist for task '{cfg.task.name}'; valid: {', '.join(valid)}"
        )
    if sizes is None:
        return str(cfg.method.name)
    if not isinstance(sizes, DictConfig):
        raise InputError(f"method.sizes must hold sizes per budget, not {sizes}")
    if equal_counts.matched(cfg):
        return _matched_name(cfg)
    label = cfg.budget.label
    if label not in sizes:
        raise one_of(f"budget for method '{cfg.method.name}'", label, sizes)
    for name, size in sizes[label].items():
        if cfg.method[name] is None:
            cfg.method[name] = size
    narrowed = _narrowed(cfg, sizes[label])
    if not narrowed and all(cfg.method[name] == size for name, size in sizes[label].items()):
        return str(label)
    own = [f"{name}{cfg.method[name]}" for name in sizes[label] if name not in PLACES]
    return "-".join(own + narrowed)


def _take_ranks(cfg: DictConfig, budget_typed: bool) -> str:
    """Puts the ranks of another run in the place of its path, which is no part of what this run is.

    Returns their budget, the name of this run's: as it is for a method that has no sizes of its own, else with "-ranks"
    behind it, so that such a run never enters the budget's cell.
    """
    where, sizes = cfg.method.rank_pattern, cfg.method.get("sizes")
    if cfg.budget.params is not None:
        _check_params(cfg, budget_typed)
    if equal_counts.matched(cfg):
        raise InputError("method.rank_pattern and budget.match=params both choose the ranks; leave one out")
    if sizes is not None and any(PLACES & size.keys() for size in sizes.values()):
        raise InputError(f"method.rank_pattern is for all matrices, method '{cfg.method.name}' is about some of them")
    if not isinstance(where, str) or not where:
        raise InputError(f"method.rank_pattern must be the folder or the record of a finished run, not '{where}'")
    try:
        cfg.method.rank_pattern, budget = run_record.ranks(Path(where).expanduser())
    except run_record.RecordError as error:
        raise InputError(f"method.rank_pattern: {error}") from None
    if budget_typed and cfg.budget.label != budget:
        raise InputError(
            f"method.rank_pattern: the ranks of {where} are of budget '{budget}', not '{cfg.budget.label}'"
        )
    cfg.budget.label = None  # whichever was composed: the ranks say all
    return budget if sizes is None else f"{budget}-ranks"


def _narrowed(cfg: DictConfig, size: Mapping[str, Any]) -> list[str]:
    """What the choice of fewer matrices than the size itself may name adds to the budget's name.

    Raises:
        InputError: the choice is no list, or has something twice.
    """
    for name in PLACES:
        chosen = cfg.method.get(name)
        if chosen is not None and not isinstance(chosen, ListConfig):
            raise InputError(f"method.{name}: must be a list, [{chosen}], not {chosen}")
        if chosen is not None and len(set(chosen)) < len(chosen):
            raise InputError(f"method.{name}: {list(chosen)} names something twice")
        known: Sequence[Any] = MATRIX_ROLES if name == "targets" else range(2**16)
        if chosen is not None and all(each in known for each in chosen):
            cfg.method[name] = sorted(chosen, key=known.index)  # in any other order it is the same run
    return [
        ".".join(map(str, cfg.method[name]))
        for name in sorted(PLACES, reverse=True)
        if cfg.method.get(name) and cfg.method[name] != size.get(name)
    ]


def _check_params(cfg: DictConfig, budget_typed: bool) -> None:
    """A number of parameters is said in the place of a label, and only where sizes are to match it."""
    if cfg.budget.match != "params":
        raise InputError(f"budget.params={cfg.budget.params} needs budget.match=params")
    if cfg.budget.params >= 2**40:  # torch counts in 64 bits
        raise InputError(f"budget.params must be below 2^40, not {cfg.budget.params}")
    if budget_typed:
        raise InputError(
            f"budget={cfg.budget.label} and budget.params={cfg.budget.params} both say a size; leave one out"
        )


def _matched_name(cfg: DictConfig) -> str:
    """Of a size that fills a number of parameters: 0.3M-params, params300000, and what else was chosen of the size."""
    number = cfg.budget.params
    name = f"{cfg.budget.label}-params" if number is None else f"params{number}"
    own = cfg.method.sizes.get(cfg.budget.label, {})
    for which in PLACES & own.keys():  # which matrices a method is about is not its size
        cfg.method[which] = cfg.method[which] or own[which]
    names = dict.fromkeys(size for sizes in cfg.method.sizes.values() for size in sizes if size not in PLACES)
    given = {size: cfg.method[size] for size in names if cfg.method[size] is not None}
    for size, value in given.items():
        if value == 0:  # to the method's options the same as not given
            raise InputError(f"method.{size} must be positive, not 0")
    return "-".join([name, *(f"{size}{value}" for size, value in given.items()), *_narrowed(cfg, own)])


def _matched_by(cfg: DictConfig) -> tuple[str, ...]:
    """The budget's settings that a size which fills a number of parameters follows from; none for other sizes."""
    if not equal_counts.matched(cfg):
        return ()
    return ("budget.match", "budget.label" if cfg.budget.params is None else "budget.params")


#: step counts that ``method.schedule=scaled`` scales, and the least they become
SCALED = {"method.t_i": 0, "method.t_f": 2, "method.delta_t": 1, "optim.warmup_steps": 0}


def _scale_steps(cfg: DictConfig, total_steps: int, how: dict[str, str]) -> None:
    """Step counts at the paper's T of the task -> at this run's T; a phase that exists keeps at least one step."""
    if cfg.method.schedule != "scaled":
        return
    paper = cfg.task.total_steps
    for name, least in SCALED.items():
        value = OmegaConf.select(cfg, name)
        if isinstance(value, int) and value > 0:  # the method refuses others
            scaled = max(min(least, value), round(value * total_steps / paper))
            OmegaConf.update(cfg, name, scaled)
            how[name] = f"{value} x {total_steps}/{paper}, scaled"


def _counts(cfg: DictConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Step counts as the run uses them, those among ``asked``."""
    return {name: OmegaConf.select(cfg, name) for name in SCALED if name in asked}


def result_settings(cfg: DictConfig) -> dict[str, Any]:
    """Flat ``group.setting`` -> value of all that changes the result."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            path = f"{prefix}{name}"
            if path in NOT_RESULT or (path in LATER and value == LATER[path]):
                continue
            if isinstance(value, dict) and value and not any("." in str(key) for key in value):  # no settings then
                walk(value, f"{path}.")
            else:
                flat[path] = value

    walk(OmegaConf.to_container(cfg, resolve=True), "")
    if cfg.train.padding == "max_length":  # such runs never grouped, before there was the setting or since
        flat.pop("train.group_by_length", None)
    if cfg.data.holdout is None:
        flat.pop("task.holdout_by", None)
    if not equal_counts.matched(cfg):  # of a rank that is given
        flat.pop("method.initial_rank", None)
    return flat


_weights: dict[Path, tuple[Stamp, str]] = {}


def weights_fingerprint(folder: Path) -> str:
    """``backbone_files.fingerprint``; the files are read again only if they changed.

    Raises:
        InputError: the folder does not hold a model whose files are complete.
    """
    stamp = _stamp(folder)
    if _weights.get(folder.absolute(), ((), ""))[0] != stamp or not stamp:
        _weights[folder.absolute()] = stamp, backbone_files.fingerprint(folder)
    return _weights[folder.absolute()][1]


def digest(settings: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that identify settings; 32 and 32.0 are the same setting."""

    def plain(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return [plain(item) for item in value] if isinstance(value, list) else value

    content = json.dumps({name: plain(value) for name, value in settings.items()}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


# -- where a value comes from --------------------------------------------------------------------------------------


def _shown(cfg: DictConfig) -> list[str]:
    """The settings the dry run explains."""
    common = [
        "optim.lr",
        "optim.warmup_steps",
        "optim.weight_decay",
        "optim.max_grad_norm",
        "train.epochs",
        "train.max_steps",
        "train.batch_size",
        "train.eval_steps",
        "train.precision",
        "train.padding",
        "train.group_by_length",
        "task.max_length",
        "task.classifier_dropout",
    ]
    own = [f"method.{name}" for name in cfg.method if name not in ("name", "label", "role", "module", "sizes")]
    return [name for name in common + own if OmegaConf.select(cfg, name) is not None]


#: groups of the defaults list (conf/config.yaml), the one that wins first
LAST_FIRST = ("script", "tuned/lr@_global_", "tuned/lr", *reversed(GROUPS))
#: any other group is the user's, in the folder of ``--config-dir``; Hydra puts it last
KNOWN_GROUPS = {group.partition("@")[0] for group in LAST_FIRST}
#: those below ``recipe``, likewise
RECIPE = ("script@recipe", "tuned/lr@recipe", "tuned@recipe")


def _origin(key: str, choices: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The last place that sets ``key``: the command line, or a YAML file with line and the comment on that line."""
    if any(override.lstrip("+").split("=")[0] == key for override in overrides):
        return "command line"
    own = [group for group in choices if group.partition("@")[0] not in KNOWN_GROUPS and "/" not in group]
    found = _last_file((*reversed(own), *LAST_FIRST), key, choices)
    if found is not None and "${oc.select:recipe." in found[1]:
        found = _last_file(RECIPE, key, choices) or found
    if found is not None and (other := re.fullmatch(r"\$\{([\w.]+)\}", found[1])):
        return _origin(other[1], choices, overrides)
    return found[0] if found is not None else "default (config.py)"


def _last_file(groups: Sequence[str], key: str, choices: Mapping[str, Any]) -> tuple[str, str] | None:
    """Where the last of the chosen files that set ``key`` does so, and to what as written there."""
    for group in groups:
        choice, folder = choices.get(group), group.partition("@")[0]
        for path in base_files(folder, choice) if choice else ():
            if found := _find_in_yaml(path, folder, key):
                return found
    return None


def _find_in_yaml(path: Path, group: str, key: str) -> tuple[str, str] | None:
    text = path.read_text(encoding="utf-8")
    parts = key.split(".")
    if "@package _global_" not in text.partition("\n")[0] and parts.pop(0) != group:
        return None
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = 0
    for part in parts:
        children = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((k, v) for k, v in children if k.value == part), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line, match[1]
    written = node.value if isinstance(node, yaml.ScalarNode) else ""
    comment = text.splitlines()[line].partition("#")[2].strip()
    conf = resource("conf")
    where = f"{Path('conf') / path.relative_to(conf) if path.is_relative_to(conf) else path}:{line + 1}"
    if group == "method" and written == "null":
        return f"budget ({where})" if "budget" in comment else where, written
    return f"{where} ({comment})" if comment else where, written


def finished(plan: Plan) -> str | None:
    """The score of a finished run in the plan's folder, or None.

    Raises:
        InputError: there is a record that cannot be read; it is not overwritten.
    """
    try:
        record = run_record.read(plan.folder / run_record.RECORD_NAME)
    except FileNotFoundError:
        return None
    except run_record.RecordError as error:
        raise InputError(f"{error}; move it away, or force=true keeps it beside the new one") from None
    if record.key["hash"] != plan.key["hash"]:
        raise InputError(f"{plan.folder} holds the record of another run ({record.key['hash']}); move it away")
    if record.status != "ok" or record.final is None:
        return None
    return f"{record.primary_metric} {record.final['metrics'][record.primary_metric]:.4f}"


def failed_since(plan: Plan, moment: float) -> bool:
    """Whether the run failed after ``moment`` (Unix time)."""
    try:
        record = run_record.read(plan.folder / run_record.RECORD_NAME)
    except (FileNotFoundError, run_record.RecordError):
        return False
    return record.status == "failed" and record.progress.get("updated", 0.0) > moment


def already_done(plan: Plan, score: str) -> str:
    """The one line about a finished run."""
    return f"already done: {plan.folder} ({score}); force=true runs it again"


# -- counting ------------------------------------------------------------------------------------------------------


def count(plan: Plan) -> Plan:
    """Fills ``method`` and ``params`` from the model on the meta device, with the method injected.

    Raises:
        InputError: an option of the method is wrong, the backbone lacks its sites, T is too short for its schedule.
    """
    import torch

    from adalora_repro import methods
    from adalora_repro.models.backbones import find_sites, meta_model
    from adalora_repro.models.inject import count as count_parameters
    from adalora_repro.models.inject import count_trained
    from adalora_repro.models.meta_models import Unfilled
    from adalora_repro.models.speedups import store_frozen

    with Unfilled():
        model = meta_model(plan.cfg)
    backbone = count_parameters(model.base_model.parameters())
    matched = equal_counts.matched(plan.cfg)
    if matched and plan.cfg.budget.params is None:
        plan.cfg.budget.params = equal_counts.label_params(plan.cfg.budget.label, backbone)
    method = methods.load(plan.cfg)
    with Unfilled():
        method.inject(model, find_sites(model))
    trained = count_trained(model)
    if plan.cfg.train.precision == "bf16":
        store_frozen(model, torch.bfloat16)
    plan.memory = sum(p.numel() * p.element_size() for p in model.parameters()) + 12 * sum(trained.values())
    plan.method = method.plan(plan.total_steps)
    final = plan.method.pop("params_final", trained["method"])
    plan.params = {
        "method": final,
        "head": trained["head"],
        "total": final + trained["head"],
        "at_init": trained["method"],
        "backbone": backbone,
    }
    if matched:
        plan.method["params"] = plan.cfg.budget.params
    return plan


def describe(plan: Plan) -> str:
    """The plan as text: what the dry run prints."""
    key, params, method = plan.key, plan.params, plan.method
    share = f"{params['method'] / params['backbone']:.3%} of the backbone's {params['backbone']:,}"
    lines = [
        f"plan: task={key['task']} method={key['method']} budget={key['budget']} backbone={key['backbone']} "
        f"protocol={key['protocol']} data={key['data']} seed={key['seed']}",
        "",
        "trained parameters",
    ]
    rows = []
    if params["at_init"] != params["method"]:
        rows.append(("method, initial budget", f"{params['at_init']:,}", "what the optimizer trains until pruned"))
        rows.append(
            ("method, final budget", f"{params['method']:,}", f"{share}; mean, the exact count follows from the ranks")
        )
    else:
        rows.append(("method", f"{params['method']:,}", share))
    if "params" in method:
        rows.append(("matched to", f"{method['params']:,}", _matched_text(plan)))
    rows.append(("head", f"{params['head']:,}", "trained by every method, not part of the budget"))
    rows.append(("total", f"{params['total']:,}", ""))
    gib = plan.memory / 2**30
    rows.append(("memory", f"{gib:.2f} GiB", "weights, gradients and AdamW's averages; activations come on top"))
    lines += [*_table(rows), "", "steps"]
    epochs = plan.total_steps / plan.steps_per_epoch
    rows = [("T", f"{plan.total_steps:,}", f"{epochs:g} epochs of {plan.steps_per_epoch:,} optimizer steps")]
    if plan.cfg.data.holdout is not None:
        text = f"rows of the train split, evaluated and never trained on; {plan.train_rows:,} remain for training"
        rows.append(("held out", f"{plan.cfg.data.holdout:,}", text))
    names = {
        "n": "adapted matrices",
        "r": "rank of every matrix",
        "d": "width of every adapter",
        "wider": "of them have one more",
        "b_0": "initial budget, triplets",
        "b_T": "final budget, triplets",
        "alpha_over_r": "scaling alpha/r, r the rank at the start",
        "gamma": "weight of the orthogonality penalty R",
        "mask_events": "masks until the set is fixed at T - t_f",
    }
    if "t_f" in method:
        t_i, final = method["t_i"], plan.total_steps - method["t_f"]
        rows += [
            ("warm-up", f"0 … {t_i - 1:,}" if t_i else "none", f"t_i = {t_i:,}, all b_0 triplets"),
            ("pruning", f"{t_i:,} … {final - 1:,}", f"a mask every delta_t = {method['delta_t']} steps"),
            ("final phase", f"{final:,} … {plan.total_steps - 1:,}", f"t_f = {method['t_f']:,}, b_T triplets"),
        ]
    rows += [(name, f"{round(method[name], 2):,g}", text) for name, text in names.items() if name in method]
    if plan.cfg.measure == "score":
        every = (
            f"every {plan.eval_steps:,} steps, {plan.steps_per_epoch / plan.eval_steps:.2g} an epoch, and at the end"
        )
        rows.append(("evaluations", f"{math.ceil(plan.total_steps / plan.eval_steps):,}", every))
    lines += [*_table(rows), "", "settings and where they come from"]
    rows = [(name, _short(OmegaConf.select(plan.cfg, name)), origin) for name, origin in plan.origins.items()]
    lines += [*_table(rows), "", f"folder: {plan.folder}"]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _matched_text(plan: Plan) -> str:
    """How near the count is to the number it was matched to."""
    method, slack = plan.method, plan.method["params"] - plan.params["method"]
    text = f"never above; slack {slack:,} ({slack / method['params']:.2%})"
    if "params_min" not in method:
        return text
    low, high = method["params_min"], method["params_max"]
    return f"{text} in the mean; the last masks count parameters: {low:,} to {high:,} stay"


def describe_beside(plan: Plan, cost: DictConfig) -> str:
    """What ``measure=cost`` adds to the dry run of the method measured: the one beside it."""
    return (
        f"beside: {plan.key['method']} {plan.key['budget']}, {plan.params['at_init']:,} parameters; "
        f"{cost.warmup_steps} + {cost.steps} steps of each on the same batches"
    )


def _short(value: Any) -> str:
    """Ranks of a hundred matrices are not for a line."""
    return f"of {len(value)} matrices" if isinstance(value, DictConfig) else str(value)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {text}".rstrip() for name, value, text in rows]
