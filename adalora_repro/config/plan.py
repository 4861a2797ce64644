"""The plan of one run: all that is determined before training.

``resolve`` makes it; ``named``, ``count`` and ``settle`` derive another from it, and no plan is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Plan:
    """One run before it starts.

    ``method``, ``params``, ``memory`` and ``keeps`` come from building the model without weights, which takes seconds:
    they are empty in the plan that ``resolve`` makes and there in the one that ``count`` makes of it.

    Attributes:
        cfg: the configuration with sizes and step counts filled in; read-only.
        key, settings: as in ``records.RunRecord``.
        folder: results/runs/…, the same for the same configuration.
        total_steps: T; ``steps_per_epoch`` likewise in optimizer steps.
        train_rows: rows of the train split to train on, without those that ``data.holdout`` holds out.
        provisional: the number of examples follows only from tokenization: a row may give several windows, bad rows
            are left out. Until ``settle``, T and ``steps_per_epoch`` take one example for each row.
        asked: the settings as asked for, of which the run's hash is made; where provisional, with the step counts
            before they were scaled by T.
        choices, overrides: group -> chosen file, and the words of the command line: what ``origins`` follow from.
        scaled: setting -> how ``method.schedule=scaled`` made it.
        notes: what the user should know before training, a line each.
        method: the method's own plan (``BaseMethod.plan``).
        params: ``method`` (at the final budget), ``at_init``, ``head``, ``total``, ``backbone``.
        memory: bytes of weights, of gradients and of AdamW's two averages of what trains.
        keeps: the model that the finished run keeps: ``adapter``, ``merged`` or ``none``.
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
    scaled: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    method: dict[str, Any] = field(default_factory=dict)
    params: dict[str, int] = field(default_factory=dict)
    memory: int = 0
    keeps: str = "none"

    @property
    def measured(self) -> list[str]:
        """Names of the metrics that the task is about; a record may hold more."""
        return measured(self.cfg)

    @property
    def eval_steps(self) -> int:
        """Optimizer steps from one evaluation to the next; the last step is evaluated too."""
        asked: int | None = self.cfg.train.eval_steps
        return asked or self.steps_per_epoch


def measured(cfg: DictConfig) -> list[str]:
    """``<metric><suffix>`` of every metric on every validation split."""
    return [f"{metric}{suffix}" for suffix in cfg.task.validation for metric in cfg.task.metrics]
