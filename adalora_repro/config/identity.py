"""What makes two runs the same run: the settings that change the result, their hash, the folder that follows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.schema import Config
from adalora_repro.errors import InputError, expanded
from adalora_repro.methods import equal_counts
from adalora_repro.records import cost_record, digests, run_record
from adalora_repro.settings import Setting, settings_of

LABELS = ("num_labels", "problem_type")  # in task.head, where they follow from the task's other settings


def result_settings(cfg: DictConfig) -> dict[str, Any]:
    """Flat ``group.setting`` -> value of all that changes the result, as the schema's metadata say."""
    facts, flat = settings_of(Config), {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            path = f"{prefix}{name}"
            setting = facts.get(path, Setting())
            if not setting.identity or value == setting.later:
                continue
            if isinstance(value, dict) and value and not any("." in str(key) for key in value):  # no settings then
                walk(value, f"{path}.")
            else:
                flat[path] = value

    walk(OmegaConf.to_container(cfg, resolve=True), "")  # type: ignore[arg-type]
    if cfg.train.padding == "max_length":  # such runs never group, and did not before there was the setting
        flat.pop("train.group_by_length", None)
    if cfg.task.hub is None:  # whose labels are names
        flat["task.class_names"] = list(cfg.task.class_names)
    flat |= {f"task.head.{name}": value for name, value in cfg.task.head.items() if name not in LABELS}
    if cfg.data.holdout is None:
        flat.pop("task.holdout_by", None)
    if not equal_counts.matched(cfg):  # of a rank that is given
        flat.pop("method.initial_rank", None)
    return flat


def digest(settings: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that identify settings; 32 and 32.0 are the same setting."""

    def plain(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return [plain(item) for item in value] if isinstance(value, list) else value

    return digests.of_values({name: plain(value) for name, value in settings.items()}, 10)


def variant(asked: Mapping[str, Any]) -> str:
    """The hash of all settings but learning rate and seed: runs of one variant are compared with each other."""
    return digest({name: value for name, value in asked.items() if name not in ("optim.lr", "seed")})


def has_variant(cfg: DictConfig, key: Mapping[str, Any], variant: str) -> bool:
    """Whether the cell of ``key`` has a record of this variant.

    Local data used to be identified by the bytes of their files. If there are records from then, runs on the same bytes
    keep that identity: finished runs are recognised, and new seeds join the same setting.
    """
    parts = [str(key[name]) for name in ("backbone", "task", "method", "budget")]
    with suppress(run_record.RecordError, OSError):
        cell = run_record.folder_below(expanded(cfg.results.dir), "runs", parts)
        for path in cell.glob(f"*/{run_record.RECORD_NAME}"):
            with suppress(run_record.RecordError, OSError):  # of one that cannot be read, reports say so
                if f'"{variant}"'.encode() in run_record.content_of(path):
                    return True
    return False


def folder_of(cfg: DictConfig, key: Mapping[str, Any]) -> Path:
    """Where the record of a run, or of a measurement of cost, goes.

    Raises:
        InputError: a name in the key cannot be a folder's.
    """
    results = expanded(cfg.results.dir)
    try:
        if cfg.measure == "cost":
            return cost_record.folder(results, cost_key(cfg, key))
        return run_record.run_folder(results, dict(key))
    except run_record.RecordError as error:
        raise InputError(str(error)) from None


def reference(cfg: DictConfig) -> str | None:
    """The method that ``measure=cost`` measures beside the chosen one; None where that is alone."""
    return None if cfg.cost.against == cfg.method.name else cfg.cost.against


def cost_key(cfg: DictConfig, key: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a measurement of cost before it is made, as in ``cost_record.KEY``.

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
