"""Task families: one module each, with a class ``Task`` (the protocol is in ``base.py``)."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from adalora_repro.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from adalora_repro.tasks.base import BaseTask


def load_family(cfg: DictConfig) -> BaseTask:
    """The task of a composed configuration: class ``Task`` of ``tasks/<family>.py``, imported only now.

    Raises:
        InputError: there is no such module; or what the class itself refuses.
    """
    from adalora_repro.tasks.base import BaseTask

    name, family = cfg.task.name, cfg.task.family
    module = f"{__name__}.{family}"
    if family.isidentifier() and importlib.util.find_spec(module) is not None:
        task = getattr(importlib.import_module(module), "Task", None)
        if isinstance(task, type) and issubclass(task, BaseTask):
            return task(cfg)
    raise InputError(f"task={name}: no family '{family}', which would be class Task in tasks/{family}.py")
