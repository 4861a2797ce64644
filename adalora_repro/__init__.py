"""adalora-repro: reproduces the tables of AdaLoRA (ICLR 2023, arXiv 2303.10512).

``run``, ``load`` and ``frame`` are the Python API (docs/python.md); ``lowrank`` is the method itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora_repro.cli.python import run as run
    from adalora_repro.reports.frame import frame as frame
    from adalora_repro.training.kept import load as load

__version__ = "0.1.0"
__all__ = ["frame", "load", "run"]
#: name -> module; imported when it is first asked for: ``import adalora_repro`` loads nothing else
_API = {
    "run": "adalora_repro.cli.python",
    "load": "adalora_repro.training.kept",
    "frame": "adalora_repro.reports.frame",
}


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_API[name]), name)
