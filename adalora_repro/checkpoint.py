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
FILES = ("checkpoint.new.pt", *NAMES)  # the newest first


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
    """The newest checkpoint that is whole (None: there is none) and a line for each damaged file.

    Raises:
        InputError: a checkpoint belongs to another configuration, or the disk does not give it: it may be whole.
        MemoryError, RuntimeError: no memory for it.
    """
    problems: list[str] = []
    for name in FILES:
        path = folder / name
        try:
            content = path.read_bytes()  # all of it first: what goes wrong from here on is the file's own
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}) and stays as it is: repeat the command when it can be, or "
                "force=true starts over beside it"
            ) from None
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if damaged := archive.testzip():  # torch does not look at the sums that it writes
                    raise zipfile.BadZipFile(damaged)
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            found = state["hash"]
        except Exception as error:  # torch.load raises anything on a damaged file
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's is a RuntimeError
                raise
            problems.append(f"{path} cannot be read ({type(error).__name__})")
            continue
        if found != run_hash:
            raise InputError(
                f"{path} is from another configuration ({found}, this one is {run_hash}); move it away to start over"
            )
        return state, [f"{problem}, trying the one before" for problem in problems]
    return None, problems


def remove(folder: Path) -> None:
    """A finished run needs none of its own; those of a run that was started over stay, under numbered names."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """torch's generators of this process and its device; nothing else in a run draws random numbers."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
