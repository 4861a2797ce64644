"""What the golden files say of configurations: choices, budgets, settings and identities."""

import copy
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.catalog import budget_families, resource
from adalora_repro.config.resolve import resolve

CONF, SWEEPS = resource("conf"), resource("sweeps")
ROOT = Path(__file__).parents[2]


def names(group: str) -> list[str]:
    """The shipped choices of a group of conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def budgets_of(task: str) -> list[str]:
    """The labels of the budgets that a task may have, as the program orders them."""
    options = OmegaConf.load(CONF / "task" / f"{task}.yaml").task
    families = (options.budgets, *options.get("more_budgets", ()))
    return [label for label, family in budget_families().items() if family in families]


def settings_of(*words: str) -> dict[str, Any]:
    """Every setting of which the identity of the run with these words is made."""
    return json.loads(json.dumps(resolve(compose("config", overrides=list(words))).asked))


def identity_of(*words: str) -> str:
    """Backbone, variant and folder of the run with these words; see ``identities``."""
    return _identity(compose("config", overrides=list(words)))


def identities(budgets: Iterable[str], *words: str) -> Iterator[str]:
    """``identity_of`` for each budget: composed once, for a label changes nothing but the group of that name.

    (conf/tuned/lr may have a learning rate for one budget; nothing is shipped there.)
    """
    first: DictConfig | None = None
    for label in budgets:
        if first is None:
            first = compose("config", overrides=[*words, f"budget={label}"])
        cfg = copy.deepcopy(first)
        cfg.budget = OmegaConf.merge(cfg.budget, OmegaConf.load(CONF / "budget" / f"{label}.yaml"))
        yield _identity(cfg)


def _identity(cfg: DictConfig) -> str:
    """``variant folder``: the folder below results, which ends with the hash of all settings."""
    plan = resolve(cfg)
    folder = plan.folder.relative_to(cfg.results.dir)
    if cfg.measure == "score" and not folder.name.endswith(f"-{plan.key['hash']}"):
        raise AssertionError(f"{folder} does not end with the hash {plan.key['hash']}")
    return f"{plan.key['variant']} {folder.as_posix()}"


def sweep(name: str) -> Mapping[str, Any]:
    """The settings of one file of sweeps/ (``params``, ``cells``, ``stages``)."""
    text = (SWEEPS / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["hydra"]["sweeper"]
