"""Experiment trackers beside ``log.jsonl``, through those of accelerate: ``track=[tensorboard,wandb]``.

A tracker that fails is reported once and switched off: it never ends a run, and no record depends on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from adalora_repro.config.plan import Plan
from adalora_repro.errors import InputError, one_line
from adalora_repro.training.progress import say

PROJECT = "adalora-repro"


def check(names: list[str]) -> None:
    """Raises InputError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"track={name}: the package is not installed: pip install 'adalora-repro[{name}]'")


def start(plan: Plan, step: int) -> Trackers:
    """The trackers of a run that begins, or goes on, at this step; needs accelerate's process state."""
    folder, name = str(plan.folder), plan.folder.name
    makers: dict[str, tuple[str, dict[str, Any]]] = {
        "tensorboard": ("TensorBoardTracker", {"run_name": "tensorboard", "logging_dir": folder, "purge_step": step}),
        "wandb": (
            "WandBTracker",
            {"run_name": PROJECT, "dir": folder, "name": name, "id": plan.key["hash"], "resume": "allow"},
        ),
        "trackio": ("TrackioTracker", {"run_name": PROJECT, "name": name}),
        "mlflow": ("MLflowTracker", {"experiment_name": PROJECT, "logging_dir": f"{folder}/mlruns", "run_name": name}),
    }
    trackers = Trackers()
    for tracker in plan.cfg.track:
        os.environ.setdefault("WANDB_MODE", "offline")
        kind, options = makers[tracker]
        trackers.add(tracker, kind, options, hyper_parameters(plan))
    return trackers


class Trackers:
    """The trackers that still work, by name."""

    def __init__(self) -> None:
        self._trackers: dict[str, Any] = {}

    def add(self, name: str, kind: str, options: Mapping[str, Any], settings: dict[str, Any]) -> None:
        from accelerate import tracking

        try:
            tracker = getattr(tracking, kind)(**options)
            tracker.start()
            tracker.store_init_configuration(settings)
            self._trackers[name] = tracker
        except Exception as error:
            self._switch_off(name, error)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of ``log.jsonl``; its numbers, those of evaluations as ``evaluation/NAME``."""
        values = scalars(line)
        self._each(lambda tracker: tracker.log(values, step=line["t"]))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, call: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                self._switch_off(name, error)

    def _switch_off(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        say(f"adalora-run: note: track={name} is switched off: {one_line(error)}")


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by their paths; lists, one value a matrix, are not for a tracker."""
    values: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            values |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "t":
            values[f"{prefix}{name}"] = float(value)
    return values


def hyper_parameters(plan: Plan) -> dict[str, Any]:
    """The plan: settings, counts and T; what is neither a number nor a text as text."""
    values = {**plan.settings, "total_steps": plan.total_steps}
    values |= {f"params.{name}": count for name, count in plan.params.items()}
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
    }
