"""Task families: one module each, with a class ``Task`` (the protocol is in ``base.py``)."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from adalora_repro.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from adalora_repro.tasks.base import Task


def load_family(cfg: DictConfig) -> Task:
    """The task of a composed configuration: class ``Task`` of ``tasks/<family>.py``, imported only now.

    Raises:
        InputError: the family has no such module (yet); plans need none.
    """
    name, family = cfg.task.name, cfg.task.family
    module = f"{__name__}.{family}"
    if not family.isidentifier() or importlib.util.find_spec(module) is None:
        raise InputError(
            f"task={name}: its family '{family}' cannot be trained yet, the code comes with a later release; "
            "dry_run=true prints its plan"
        )
    return importlib.import_module(module).Task(cfg)
