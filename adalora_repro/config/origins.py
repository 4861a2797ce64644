"""Where the values of a plan come from: the command line, or a file of the configuration with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from adalora_repro.config import catalog
from adalora_repro.config.catalog import GROUPS, base_files, resource
from adalora_repro.config.plan import Plan
from adalora_repro.methods import DESCRIPTION

#: groups of the defaults list (conf/config.yaml), the one that wins first
LAST_FIRST = ("script", "tuned/lr@_global_", "tuned/lr", *reversed(GROUPS))
#: any other group is the user's, in the folder of ``--config-dir``; Hydra puts it last
SHIPPED_GROUPS = {group.partition("@")[0] for group in LAST_FIRST}
#: those below ``recipe``, likewise
RECIPE = ("script@recipe", "tuned/lr@recipe", "tuned@recipe")
SHOWN = (
    *("optim.lr", "optim.warmup_steps", "optim.weight_decay", "optim.max_grad_norm"),
    *("train.epochs", "train.max_steps", "train.batch_size", "train.eval_steps", "train.precision", "train.padding"),
    *("train.group_by_length", "task.max_length", "task.classifier_dropout"),
)


def origins(plan: Plan) -> dict[str, str]:
    """Setting -> where its value comes from, for the settings that a dry run shows."""
    origin = {key: _origin(key, plan.choices, plan.overrides) for key in _shown(plan.cfg)}
    return origin | {key: f"{how}; {origin.get(key, '')}".rstrip("; ") for key, how in plan.scaled.items()}


def _shown(cfg: DictConfig) -> list[str]:
    own = [f"method.{name}" for name in cfg.method if name not in ("name", "module", *DESCRIPTION)]
    return [name for name in (*SHOWN, *own) if OmegaConf.select(cfg, name) is not None]


def _origin(key: str, choices: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """What sets ``key`` last: the command line, or a YAML file with its line and the comment there."""
    if any(override.lstrip("+").split("=")[0] == key for override in overrides):
        return "command line"
    own = [group for group in choices if group.partition("@")[0] not in SHIPPED_GROUPS | {"sweep"}]
    own = [group for group in own if not group.startswith("hydra/") and group not in RECIPE]
    last = _last_file((*reversed(own), *LAST_FIRST), key, choices)
    if last is not None and "${oc.select:recipe." in last[1]:
        last = _last_file(RECIPE, key, choices) or last
    if last is not None and (other := re.fullmatch(r"\$\{([\w.]+)\}", last[1])):
        return _origin(other[1], choices, overrides)
    return last[0] if last is not None else "default"


def _last_file(groups: Sequence[str], key: str, choices: Mapping[str, Any]) -> tuple[str, str] | None:
    """Where the last of the chosen files that set ``key`` does so, and to what as written there."""
    for group in groups:
        chosen, folder = choices.get(group) or (), group.partition("@")[0]
        for choice in (chosen,) if isinstance(chosen, str) else reversed(chosen):
            for path in base_files(folder, choice):
                if line := _line_in_yaml(path, folder, key):
                    return line
    return None


def _line_in_yaml(path: Path, group: str, key: str) -> tuple[str, str] | None:
    """Where a file sets ``key``, and to what."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    parents = {"_global_": [], "_group_": group.split("/")}.get(package[1], package[1].split(".")) if package else None
    parents = group.split("/") if parents is None else parents
    parts = key.split(".")
    if parts[: len(parents)] != parents:
        return None
    node = yaml.compose(text, Loader=catalog.LOADER)
    line = 0
    for part in parts[len(parents) :]:
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
