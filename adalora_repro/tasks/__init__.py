"""Task families: one module each, with a class ``Task`` (the protocol is in ``base.py``) and its ``Options``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import one_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from adalora_repro.tasks.base import BaseTask


@functools.cache
def families() -> dict[str, Any]:
    """Name -> module of every family: the modules here that define ``Task`` and ``Options``."""
    from adalora_repro.tasks.base import BaseTask

    modules = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        task = getattr(module, "Task", None)
        if isinstance(task, type) and issubclass(task, BaseTask) and hasattr(module, "Options"):
            modules[info.name] = module
    return modules


def load_family(cfg: DictConfig) -> BaseTask:
    """The task of a composed configuration.

    Raises:
        InputError: there is no such family; or what the class itself refuses.
    """
    if cfg.task.family not in families():
        raise one_of(f"task.family of '{cfg.task.name}'", cfg.task.family, families())
    task: BaseTask = families()[cfg.task.family].Task(cfg)
    return task
