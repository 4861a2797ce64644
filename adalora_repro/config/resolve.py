"""Words of the command line and a composed configuration -> the plan of a run.

``resolve`` needs no torch: it checks the configuration, fills in what follows from others (sizes from the budget, step
counts from T) and identifies the run, so that a finished run is recognized at once. ``count`` builds the model on the
meta device: no weights, no network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from adalora_repro.config import budget, checks, identity
from adalora_repro.config.plan import Plan
from adalora_repro.config.schema import MOST_STEPS, Config
from adalora_repro.errors import InputError, expanded
from adalora_repro.methods import equal_counts
from adalora_repro.models import backbone_files, backbones, own_backbone, sites
from adalora_repro.records import digests, revisions, run_record
from adalora_repro.settings import settings_of
from adalora_repro.tasks import held_out, load_family, own_files, sources

if TYPE_CHECKING:
    from adalora_repro.methods.base import BaseMethod

#: step counts that ``method.schedule=scaled`` scales, and the least they become
SCALED = {"method.t_i": 0, "method.t_f": 2, "method.delta_t": 1, "optim.warmup_steps": 0}
#: their shares of T where a task has no T of the paper: 100 masks between t_i and T - t_f; warm-up as in RoBERTa's and
#: LoRA's recipes for GLUE
SHARES = {"method.t_i": 0.1, "method.t_f": 0.3, "method.delta_t": 0.006, "optim.warmup_steps": 0.06}


def resolve(cfg: DictConfig, choices: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Composed configuration -> plan without counts.

    Args:
        cfg: as Hydra composed it; not changed.
        choices: group -> chosen file, and ``overrides`` as typed: only for the origins shown.

    Raises:
        InputError: a value out of range, a budget of another task family, missing data.
        OmegaConfBaseException: an unknown setting, or ``${…}`` that leads nowhere.
    """
    checks.check_words(cfg, overrides, choices or {})
    composed, cfg = cfg, own_backbone.described(cfg)
    own = cfg is not composed
    if own and OmegaConf.is_missing(composed.backbone, "name"):
        checks.check_own_name(cfg.backbone.name)
    cfg, filled = own_files.filled(cfg)
    checks.check_values(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[assignment]
    if not sites.has_relative_positions(cfg.backbone.architecture):  # nothing to crop: the same run
        cfg.train.attention = "eager"
    label = budget.apply_budget(cfg, any(word.startswith("budget=") for word in overrides))
    task = load_family(cfg)
    checks.check_backbone(cfg, task.architectures)
    sources.check(cfg, task)
    rows = sources.train_rows(cfg)
    if cfg.data.holdout is not None:
        cfg.data.holdout = held_out.size(cfg.data.holdout, rows)  # a fraction and its number of rows are the same run
        rows -= cfg.data.holdout
    total_steps, steps_per_epoch = _steps(cfg, rows)
    provisional = cfg.task.stride is not None or cfg.data.skip_invalid
    # T is no part of the run's identity where it is provisional, but follows from it: nor are the counts scaled by it
    asked = identity.result_settings(cfg)
    scaled = _scale_steps(cfg, total_steps)
    if not provisional:
        asked = identity.result_settings(cfg)
    asked |= revisions.present(cfg.method.module)
    asked["data.fingerprint"] = sources.fingerprint(cfg)
    if own:  # it follows from the files, and transformers may come to state more of it
        asked = {name: value for name, value in asked.items() if not name.startswith("backbone.architecture.")}
    if matrices := sites.added_content(cfg.backbone.architecture.model_type):  # a corrected file is another run
        asked["backbone.sites"] = digests.of_values(matrices)
    if cfg.backbone.path is not None:
        backbones.check_published(cfg)
        asked["backbone.path"] = backbone_files.fingerprint(expanded(cfg.backbone.path))
    if label != cfg.budget.label:  # a size that is not the budget's: every budget is the same run
        size = "budget.label" if cfg.budget.params is None else "budget.params"
        kept = ("budget.match", size) if equal_counts.matched(cfg) else ()
        asked = {name: value for name, value in asked.items() if name in kept or not name.startswith("budget.")}
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
        "variant": identity.variant(asked),
        "hash": None,
    }
    if cfg.data.source == "local":
        before = asked | {"data.fingerprint": sources.byte_fingerprint(cfg)}
        if identity.has_variant(cfg, key, variant := identity.variant(before)):
            asked, key["variant"] = before, variant
    OmegaConf.set_readonly(cfg, True)
    return named(
        Plan(
            cfg,
            key,
            asked | _step_counts(cfg, asked),
            Path(),
            total_steps,
            steps_per_epoch,
            train_rows=rows,
            provisional=provisional,
            asked=asked,
            choices=dict(choices or {}),
            overrides=overrides,
            scaled=scaled,
            notes=(*filled, *_notes(cfg, total_steps, provisional), *_backbone_notes(cfg, own)),
        ),
        cfg,
    )


def named(plan: Plan, cfg: DictConfig) -> Plan:
    """The plan with the learning rate and the seed of ``cfg`` in its key, settings and folder.

    All else is taken from ``plan``, its ``cfg`` too. That is enough to see whether a run that differs in these two is
    finished, and takes a hundredth of the time of ``resolve``.

    Raises:
        InputError: the value of one of the two is wrong.
    """
    own = {"optim.lr": cfg.optim.lr, "seed": cfg.seed}
    for name, value in own.items():
        settings_of(Config)[name].check(name, value)
    asked = {**plan.asked, **own}
    key = {**plan.key, "lr": float(cfg.optim.lr), "seed": cfg.seed, "hash": identity.digest(asked)}
    folder = identity.folder_of(plan.cfg, key)
    return replace(plan, key=key, asked=asked, settings={**plan.settings, **own}, folder=folder)


def settle(plan: Plan, examples: int) -> Plan:
    """The plan, counted, for the number of training examples that tokenization gave.

    Raises:
        InputError: the plan computed T from another number; T is too short for the method's schedule.
    """
    total_steps, steps_per_epoch = _steps(plan.cfg, examples)
    if (total_steps, steps_per_epoch) == (plan.total_steps, plan.steps_per_epoch):
        return plan
    if not plan.provisional:
        raise InputError(f"the train split has {examples:,} rows, but the plan computed T from another number")
    cfg = changed(plan.cfg, unscaled(plan))
    OmegaConf.set_readonly(cfg, False)
    _scale_steps(cfg, total_steps)
    OmegaConf.set_readonly(cfg, True)
    return count(
        replace(
            plan,
            cfg=cfg,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            key={**plan.key, "total_steps": total_steps},
            settings={**plan.settings, **_step_counts(cfg, plan.asked)},
        )
    )


def unscaled(plan: Plan) -> dict[str, Any]:
    """The step counts as they were asked for."""
    return {name: plan.asked[name] for name in SCALED if name in plan.asked}


def changed(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A read-only copy of a configuration with other values."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    for name, value in values.items():
        OmegaConf.update(cfg, name, value)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def _steps(cfg: DictConfig, examples: int) -> tuple[int, int]:
    """T and the optimizer steps of one epoch."""
    steps_per_epoch = math.ceil(examples / cfg.train.batch_size)
    total_steps = cfg.train.max_steps or math.ceil(cfg.train.epochs * steps_per_epoch)
    if total_steps >= MOST_STEPS:
        raise InputError(f"train.max_steps or train.epochs: T={total_steps} steps are 2^40 or more")
    return total_steps, steps_per_epoch


def _scale_steps(cfg: DictConfig, total_steps: int) -> dict[str, str]:
    """Step counts at the paper's T of the task -> at this run's T; a phase that exists keeps at least one step. Without
    such a T those that are not set become ``SHARES`` of this run's.

    Returns:
        Setting -> how it was made.
    """
    how: dict[str, str] = {}
    paper = cfg.task.total_steps
    if paper is None:
        for name, share in SHARES.items():
            if OmegaConf.select(cfg, name, default=0) is None:
                OmegaConf.update(cfg, name, max(SCALED[name], round(share * total_steps)))
                how[name] = f"{100 * share:g}% of T = {total_steps}"
    if cfg.optim.warmup_steps is None:
        raise InputError("optim.warmup_steps is not set")
    if cfg.method.schedule != "scaled":
        return how
    if paper is None:
        raise InputError(
            f"method.schedule=scaled needs task.total_steps, which {cfg.task.name} does not set; without "
            "method.schedule=scaled, omitted step counts become shares of T"
        )
    for name, least in SCALED.items():
        value = OmegaConf.select(cfg, name)
        if isinstance(value, int) and value > 0:  # the method refuses others
            scaled = max(min(least, value), round(value * total_steps / paper))
            OmegaConf.update(cfg, name, scaled)
            how[name] = f"{value} x {total_steps}/{paper}, scaled"
    return how


def _step_counts(cfg: DictConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Step counts as the run uses them, those among ``asked``."""
    return {name: OmegaConf.select(cfg, name) for name in SCALED if name in asked}


def _notes(cfg: DictConfig, total_steps: int, provisional: bool) -> tuple[str, ...]:
    notes = []
    if cfg.budget.match == "params" and not equal_counts.matched(cfg):
        notes.append(f"budget.match=params has no effect: method '{cfg.method.name}' has one size")
    if provisional and cfg.train.max_steps is None:
        several = "contexts longer than a window give several examples"
        paper = "" if cfg.task.total_steps is None else f" (paper: about {cfg.task.total_steps:,})"
        why = several if cfg.task.stride is not None else "bad rows are left out"
        notes.append(
            f"T = {total_steps:,} counts one example for each row; {why}, so the run itself settles T after "
            f"tokenization{paper}"
        )
    if cfg.optim.warmup_steps >= total_steps:
        notes.append(
            f"warm-up takes {cfg.optim.warmup_steps} of T = {total_steps} steps, so the learning rate never reaches "
            "optim.lr; method.schedule=scaled keeps the paper's fraction"
        )
    return tuple(notes)


def _backbone_notes(cfg: DictConfig, own: bool) -> list[str]:
    backbone, notes = cfg.backbone, []
    if backbone.path is not None and backbone.source == "hub" and not own:
        notes.append(
            f"backbone.path={backbone.path} is assumed to be {backbone.hub}: the architecture is checked, the weights "
            "are not; for another model use backbone=auto"
        )
    model_type = backbone.architecture.model_type
    if cfg.task.classifier_dropout and sites.architecture(model_type).classifier_dropout is None:
        notes.append(f"task.classifier_dropout has no effect: {model_type} has no dropout of its own there")
    return notes


# -- finished? -----------------------------------------------------------------------------------------------------


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
    score = f"{record.primary_metric} {record.final['metrics'][record.primary_metric]:.4f}"
    return f"{score}, degenerate" if record.degenerate else score


def ended_since(plan: Plan, moment: float) -> str | None:
    """The status of the run's record if it was written after ``moment`` (Unix time)."""
    record = record_in(plan.folder)
    return record.status if record is not None and record.progress.get("updated", 0.0) > moment else None


def record_in(folder: Path) -> run_record.RunRecord | None:
    """The record of a run's folder; None where there is none, or none that can be read."""
    try:
        return run_record.read(folder / run_record.RECORD_NAME)
    except (FileNotFoundError, run_record.RecordError):
        return None


def already_done(plan: Plan, score: str) -> str:
    """The one line about a finished run."""
    return f"already done: {plan.folder} ({score}); force=true runs it again"


# -- counting ------------------------------------------------------------------------------------------------------


def count(plan: Plan) -> Plan:
    """The plan with exact parameter counts, memory and the method's own plan, from the model without weights.

    Raises:
        InputError: an option that the method does not have, a size that trains nothing, a schedule too long for T.
    """
    import torch

    from adalora_repro.methods import load
    from adalora_repro.models.backbones import meta_model
    from adalora_repro.models.inject import count as count_parameters
    from adalora_repro.models.inject import count_trained
    from adalora_repro.models.meta_models import Unfilled
    from adalora_repro.models.speedups import store_frozen

    cfg = plan.cfg
    with Unfilled():
        model = meta_model(cfg)
    if cfg.backbone.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        raise InputError(f"backbone.gradient_checkpointing=true: transformers has none for {type(model).__name__}")
    backbone = count_parameters(model.base_model.parameters())
    matched = equal_counts.matched(cfg)
    if matched and cfg.budget.params is None:
        cfg = changed(cfg, {"budget.params": equal_counts.label_params(cfg.budget.label, backbone)})
    if matched:
        cfg = _filled(cfg, plan.asked)
    method = load(cfg)
    _inject(method, model)
    trained = count_trained(model)
    if cfg.method.get("sizes") is not None and not trained["method"]:  # OFT in blocks of one
        raise InputError(f"method '{cfg.method.name}' trains nothing of the backbone at this size; take a larger one")
    if cfg.train.precision == "bf16":
        store_frozen(model, torch.bfloat16)
    memory = sum(p.numel() * p.element_size() for p in model.parameters()) + 12 * sum(trained.values())
    own = method.plan(plan.total_steps)
    final = own.pop("params_final", trained["method"])
    params = {
        "method": final,
        "head": trained["head"],
        "total": final + trained["head"],
        "at_init": trained["method"],
        "backbone": backbone,
    }
    if matched:
        own["params"] = cfg.budget.params
    everything = all(parameter.requires_grad for parameter in model.parameters())
    keeps = checks.kept_form(cfg.save, everything, method.mergeable)
    return replace(plan, cfg=cfg, memory=memory, method=own, params=params, keeps=keeps)


def _inject(method: BaseMethod, model: Any) -> None:
    from adalora_repro.models.meta_models import Unfilled
    from adalora_repro.models.sites import find_sites

    with Unfilled():
        method.inject(model, find_sites(model))


def _filled(cfg: DictConfig, asked: Mapping[str, Any]) -> DictConfig:
    """For a method that cannot fill a number of parameters by itself: the configuration with the largest size at which
    it has no more of them.

    Raises:
        InputError: a size is asked for as well; or size 1 has more already.
    """
    from adalora_repro.methods import fills_parameters, load, module_of
    from adalora_repro.methods.base import require_size
    from adalora_repro.models.backbones import meta_model
    from adalora_repro.models.inject import count_trained

    if fills_parameters(module_of(cfg.method.module)):
        return cfg
    name = budget.size_option(cfg)
    if asked.get(f"method.{name}") is not None:
        require_size(cfg.method, cfg.budget.params, name)
    if cfg.method[name] is not None:  # by an earlier count
        return cfg

    def parameters(size: int) -> int:
        model = meta_model(cfg)
        _inject(load(changed(cfg, {f"method.{name}": size})), model)
        return count_trained(model)["method"]

    equal_counts.require_at_least(parameters(1), cfg.budget.params)
    low, high = 1, 2
    while high < 2**16 and parameters(high) <= cfg.budget.params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= cfg.budget.params else (low, middle)
    return changed(cfg, {f"method.{name}": low})
