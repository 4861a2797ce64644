"""adalora-repro: reproduces the tables of AdaLoRA (ICLR 2023, arXiv 2303.10512)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora_repro.reports.frame import frame as frame

__version__ = "0.1.0"
__all__ = ["frame"]


def __getattr__(name: str) -> Any:
    """``adalora_repro.frame`` is imported when it is first asked for: ``import adalora_repro`` loads nothing else."""
    if name != "frame":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from adalora_repro.reports.frame import frame

    return frame
