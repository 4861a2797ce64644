"""The selection rule: which finished runs a report shows, and at which learning rate.

Pure functions that print nothing. Tables, figures, ``choose``, ``status``, the page and the stages of a sweep all call
``select``; no other code compares learning rates. ``RULE`` says the same in words and is printed under every table.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_repro.records.run_record import GPU_MEMORY, RunRecord

PERCENTAGES = ("squad", "summarization")  # families of tasks whose records hold percentages
HOLDOUT = "data.holdout"  # the setting that holds out rows of the training split
RULE = (
    "Selection rule: a cell shows finished runs of one setting, which differ only in learning rate and seed and ran on "
    "the same kind of device, CPU or GPU. "
    "It shows the setting with the most seeds at one learning rate; ties: more training steps, then a held-out split, "
    "then more learning rates, then the first by name. A setting that was evaluated on only part of the examples is "
    "shown only if there is no other. Settings never compete by score; a note names those not shown. Of the setting's "
    "learning rates, those with the most seeds are compared, and the one with the best mean over seeds of the task's "
    "primary metric is shown: on the held-out split, or, if a run of the setting has none, on the reported split, "
    "which makes the choice optimistic. Ties: the smaller learning rate."
)


@dataclass(frozen=True)
class Run:
    """A record with its file.

    ``scores`` are the metrics of the checkpoint that a report shows, ``held_out`` those of the same checkpoint on the
    held-out split (empty without one), both in percent.
    """

    path: Path
    record: RunRecord
    scores: Mapping[str, float] = field(default_factory=dict)
    held_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, Any]:
        return self.record.key

    def primary(self, held_out: bool) -> float:
        """The task's primary metric on the held-out or on the reported split."""
        return (self.held_out if held_out else self.scores)[self.record.primary_metric]


def run_of(path: Path, record: RunRecord, checkpoint: str = "final") -> Run:
    """The run with its metrics at ``checkpoint`` (``final`` or ``best``), in percent."""
    scale = percent(record)
    parts = (metrics_of(record, checkpoint, part) for part in ("metrics", "holdout"))
    scores, held_out = ({name: scale * value for name, value in metrics.items()} for metrics in parts)
    return Run(path, record, scores, held_out)


def percent(record: RunRecord) -> float:
    """The factor that turns the record's metrics into percent: 100 for fractions of 1 (GLUE), 1 for SQuAD and ROUGE.

    Older records do not name the family of their task; they are of shipped tasks, whose primary metric shows it.
    """
    family = record.settings.get("task.family")
    if family is None:
        return 1.0 if record.primary_metric.startswith(("f1", "rouge")) else 100.0
    return 1.0 if family in PERCENTAGES else 100.0


def metrics_of(record: RunRecord, checkpoint: str, part: str = "metrics") -> Mapping[str, float]:
    """The metrics at a checkpoint, in the unit of the task; empty if the run has no such checkpoint.

    ``part`` is ``metrics``, of the reported split, or ``holdout``, of the held-out split.
    """
    evaluation = (record.final if checkpoint == "final" else record.best) or {}
    metrics: Mapping[str, float] = evaluation.get(part, {})
    return metrics


Setting = tuple[bool, int, str, str]
ByLr = dict[float, tuple[Run, ...]]


@dataclass(frozen=True)
class Selection:
    """The choice of the rule.

    Attributes:
        lr: the learning rate shown.
        by_lr: every learning rate tried with the setting shown, ascending -> its runs, one for each seed, by seed.
        held_out: learning rates were compared on the held-out split, not on the reported one.
        others: one run of every other setting.
        repeated: how many runs repeat the seed of another and are not counted.
    """

    lr: float
    by_lr: Mapping[float, tuple[Run, ...]]
    held_out: bool
    others: tuple[Run, ...]
    repeated: int

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.by_lr[self.lr]


def select(runs: Iterable[Run]) -> Selection:
    """Applies ``RULE``, for any order of ``runs``: finished runs of one backbone, task, method and budget.

    Raises:
        ValueError: there is no run.
    """
    runs = list(runs)
    settings = by_setting(runs)
    if not settings:
        raise ValueError("no finished run to choose from")
    shown = max(settings, key=lambda setting: setting_rank(settings[setting]))  # of equal settings the first by name
    by_lr = settings[shown]
    held_out = has_held_out(by_lr)
    most = max(map(len, by_lr.values()))
    complete = [lr for lr, tried in by_lr.items() if len(tried) == most]
    counted = sum(len(tried) for setting in settings.values() for tried in setting.values())
    return Selection(
        lr=min(complete, key=lambda lr: (-primary_mean(by_lr[lr], held_out), lr)),
        by_lr=by_lr,
        held_out=held_out,
        others=tuple(next(iter(other.values()))[0] for name, other in settings.items() if name != shown),
        repeated=len(runs) - counted,
    )


def by_setting(runs: Iterable[Run]) -> dict[Setting, ByLr]:
    """Groups runs by (all examples evaluated, training steps, variant, device), then learning rate; each seed once."""
    groups: dict[Setting, dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda run: str(run.path)):
        setting = (run.key["max_examples"] is None, run.key["total_steps"], run.key["variant"], device_kind(run.record))
        groups[setting][float(run.key["lr"])].setdefault(run.key["seed"], run)
    return {
        setting: {lr: tuple(run for _, run in sorted(seeds.items())) for lr, seeds in sorted(by_lr.items())}
        for setting, by_lr in sorted(groups.items(), key=lambda group: group[0][2:])
    }


def device_kind(record: RunRecord) -> str:
    """CPU or GPU, by the source of the peak memory. The two round differently, so no mean covers both."""
    return "GPU" if record.memory.get("of") == GPU_MEMORY else "CPU"


def device_text(environment: Mapping[str, Any], memory_of: str | None) -> str:
    """What a time was measured on: "NVIDIA H100", "AMD EPYC (2 threads)", with several processes "4 x NVIDIA H100"."""
    processes, threads = environment.get("processes", 1), environment.get("threads")
    text = f"{processes} x " * (processes > 1) + str(environment.get("device", "device not recorded"))
    return text if memory_of == GPU_MEMORY or threads is None else f"{text} ({threads} thread{'s' * (threads != 1)})"


def device_of(record: RunRecord) -> str:
    return device_text(record.environment, record.memory.get("of"))


def setting_rank(by_lr: ByLr) -> tuple[bool, int, int, bool, int]:
    """The order of settings. It uses no score: choosing the better of two settings would bias the estimate."""
    key = next(iter(by_lr.values()))[0].key
    seeds = max(map(len, by_lr.values()))
    return key["max_examples"] is None, seeds, key["total_steps"], has_held_out(by_lr), len(by_lr)


def has_held_out(by_lr: Mapping[float, Sequence[Run]]) -> bool:
    """Whether every run recorded its primary metric on a held-out split."""
    return all(run.record.primary_metric in run.held_out for tried in by_lr.values() for run in tried)


def primary_mean(runs: Sequence[Run], held_out: bool = False) -> float:
    """Mean over runs of the task's primary metric, on the held-out or on the reported split."""
    return statistics.fmean(run.primary(held_out) for run in runs)


def at_edge(lr: float, grid: Sequence[float]) -> bool:
    """Whether ``lr`` is the smallest or the largest of several: a better one may lie outside."""
    return len(grid) > 1 and lr in (min(grid), max(grid))
