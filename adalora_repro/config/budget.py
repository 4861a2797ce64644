"""The size of a method: from the budget's label, from a number of parameters, or from another run's ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

from adalora_repro.config.catalog import budget_families
from adalora_repro.errors import InputError, expanded
from adalora_repro.methods import equal_counts
from adalora_repro.models.sites import MATRIX_ROLES
from adalora_repro.records import run_record

MATRICES = ("targets", "layers")  # the settings of a method that say which matrices it adapts


def apply_budget(cfg: DictConfig, budget_typed: bool) -> str:
    """Takes the method's size from the budget where it is not given; returns the budget's name in keys and tables.

    A size that is typed is not that budget, nor is a choice of fewer matrices: such a run is named by its size, so that
    it never enters the budget's cell.

    Args:
        cfg: changed in place.

    Raises:
        InputError: the budget is not one of the task's; two settings both choose the size.
    """
    sizes, families = cfg.method.get("sizes"), [cfg.task.budgets, *cfg.task.more_budgets]
    if not budget_typed and cfg.budget.params is None and cfg.budget.family not in families:
        # the default budget is GLUE's; a task of another family takes the smallest of its own
        own = [label for label, family in budget_families().items() if family == cfg.task.budgets]
        if own:
            cfg.budget.label, cfg.budget.family = own[0], cfg.task.budgets
    if (number := cfg.budget.params) is not None:  # it replaces a label, and only where sizes are to match it
        if cfg.budget.match != "params":
            raise InputError(f"budget.params={number} needs budget.match=params")
        if budget_typed:
            raise InputError(f"budget={cfg.budget.label} and budget.params={number} both say a size; leave one out")
    if cfg.method.get("rank_pattern") is not None or ("rank_pattern" in cfg.method and sizes is None):
        return _take_ranks(cfg, budget_typed)
    valid = [name for name, family in budget_families().items() if family in families]
    if number is None and (sizes is not None or budget_typed) and cfg.budget.family not in families:
        raise InputError(
            f"budget '{cfg.budget.label}' does not exist for task '{cfg.task.name}'; valid: {', '.join(valid)}"
        )
    if sizes is None:
        return str(cfg.method.name)
    if not isinstance(sizes, DictConfig) or not all(isinstance(size, DictConfig) for size in sizes.values()):
        raise InputError(f"method.sizes must hold options per budget, {{0.3M: {{r: 2}}}}, not {sizes}")
    if equal_counts.matched(cfg):
        return _matched_name(cfg)
    label = cfg.budget.label
    if label not in sizes:
        valid = [name for name in valid if name in sizes]
        raise InputError(
            f"method '{cfg.method.name}' has no size for budget {label}; valid: {', '.join(valid) or 'none'}"
        )
    for name, size in sizes[label].items():
        if cfg.method[name] is None:
            cfg.method[name] = size
    narrowed = _narrowed(cfg, sizes[label])
    if not narrowed and all(cfg.method[name] == size for name, size in sizes[label].items()):
        return str(label)
    own = [f"{name}{cfg.method[name]}" for name in sizes[label] if name not in MATRICES]
    return "-".join(own + narrowed)


def size_option(cfg: DictConfig) -> str:
    """The one option that is the size of a method which does not fill a number of parameters by itself.

    Raises:
        InputError: the method has no such option, or several.
    """
    names = sorted({name for sizes in cfg.method.sizes.values() for name in sizes if name not in MATRICES})
    if len(names) != 1:
        raise InputError(
            f"budget.match=params: method '{cfg.method.name}' has no single size ({', '.join(names) or 'none'}); "
            "its Options need a field `params`"
        )
    return names[0]


def _take_ranks(cfg: DictConfig, budget_typed: bool) -> str:
    """Replaces the path of another run by its ranks: where they were read from is not part of this run's identity.

    Returns their budget, the name of this run's: as it is for a method that has no sizes of its own, else with "-ranks"
    behind it, so that such a run never enters the budget's cell. Ranks of a plain file: "ranks" and their sum.
    """
    where, sizes = cfg.method.rank_pattern, cfg.method.get("sizes")
    if equal_counts.matched(cfg):
        raise InputError("method.rank_pattern and budget.match=params both choose the ranks; leave one out")
    if sizes is not None and any(name in size for size in sizes.values() for name in MATRICES):
        raise InputError(f"method.rank_pattern is for all matrices, method '{cfg.method.name}' is about some of them")
    if not isinstance(where, str) or not where:
        raise InputError(
            f"method.rank_pattern must be the folder or the record of a finished run, or a JSON file, not '{where}'"
        )
    try:
        cfg.method.rank_pattern, budget = run_record.ranks(expanded(where))
    except run_record.RecordError as error:
        raise InputError(f"method.rank_pattern: {error}") from None
    if budget is None:
        budget, sizes = f"ranks{sum(cfg.method.rank_pattern.values())}", None
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
    for name in MATRICES:
        chosen = cfg.method.get(name)
        if chosen is not None and not isinstance(chosen, ListConfig):
            raise InputError(f"method.{name}: must be a list, [{chosen}], not {chosen}")
        if chosen is not None and len(set(chosen)) < len(chosen):
            raise InputError(f"method.{name}: {list(chosen)} names something twice")
        order: Sequence[Any] = MATRIX_ROLES if name == "targets" else range(2**16)
        if chosen is not None and all(each in order for each in chosen):
            cfg.method[name] = sorted(chosen, key=order.index)  # in any other order it is the same run
    return [
        ".".join(map(str, cfg.method[name]))
        for name in MATRICES
        if cfg.method.get(name) and cfg.method[name] != size.get(name)
    ]


def _matched_name(cfg: DictConfig) -> str:
    """Of a size that fills a number of parameters: 0.3M-params, params300000, and what else was chosen of the size."""
    number = cfg.budget.params
    name = f"{cfg.budget.label}-params" if number is None else f"params{number}"
    own = cfg.method.sizes.get(cfg.budget.label, {})
    for which in MATRICES:  # which matrices a method is about is not its size
        if which in own:
            cfg.method[which] = cfg.method[which] or own[which]
    names = dict.fromkeys(size for sizes in cfg.method.sizes.values() for size in sizes if size not in MATRICES)
    given = [f"{size}{cfg.method[size]}" for size in names if cfg.method[size] is not None]
    return "-".join([name, *given, *_narrowed(cfg, own)])
