"""Checkpoints of a run: one file with all that continuing needs; a kill at any moment leaves a good one.

The file before the last is kept: a checkpoint that cannot be read (a torn disk, a truncated copy) falls back to it.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from adalora_repro.errors import InputError
from adalora_repro.records import write_atomic

NAMES = ("checkpoint.pt", "checkpoint.previous.pt")


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` (tensors and plain values) as the newest checkpoint of ``folder``.

    Raises:
        OSError: no space; the checkpoints that were there survive.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    newest, previous = (folder / name for name in NAMES)
    written = folder / "checkpoint.new.pt"
    write_atomic(written, buffer.getbuffer())
    if newest.exists():
        os.replace(newest, previous)
    os.replace(written, newest)


def load(folder: Path, run_hash: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint (None: there is none) and a line for each file that could not be read.

    Raises:
        InputError: a checkpoint belongs to another configuration.
    """
    problems = []
    for name in ("checkpoint.new.pt", *NAMES):
        path = folder / name
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch does not look at the sums that it writes
                    raise zipfile.BadZipFile(damaged)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            found = state["hash"]
        except Exception as error:  # torch.load raises anything on a damaged file
            problems.append(f"{path} cannot be read ({type(error).__name__}), trying the one before")
            continue
        if found != run_hash:
            raise InputError(
                f"{path} is from another configuration ({found}, this one is {run_hash}); move it away to start over"
            )
        return state, problems
    return None, problems


def remove(folder: Path) -> None:
    """A finished run needs none."""
    for name in ("checkpoint.new.pt", *NAMES):
        (folder / name).unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """torch's generators of this process and its device; nothing else in a run draws random numbers."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
