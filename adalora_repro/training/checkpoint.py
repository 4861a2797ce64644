"""Checkpoints of a run: one file with all that resuming needs; a kill at any moment leaves a complete one.

The previous file is kept as well: it is read if the newest is damaged (a failing disk, a truncated copy).
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adalora_repro.errors import InputError
from adalora_repro.records.run_record import write_atomic

NAMES = ("checkpoint.pt", "checkpoint.previous.pt")
FILES = ("checkpoint.new.pt", *NAMES)  # the newest first
VERSION = 1  # of the content: the entry ``format``, which the first checkpoints do not have


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


def load(
    folder: Path, run_hash: str, take: Callable[[dict[str, Any]], object] = lambda state: None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is intact and fits (None: there is none), and a line for each file passed over.

    Args:
        take: is given the state to resume from; raises ``ValueError`` if it does not fit.

    Raises:
        InputError: a checkpoint belongs to another configuration; or one cannot be read from disk and may be intact; or
            the only intact ones are from another version of this program.
        MemoryError, RuntimeError: no memory for it.
    """
    problems: list[str] = []
    foreign: list[str] = []
    for name in FILES:
        path = folder / name
        try:
            content = path.read_bytes()  # whole: any later error is the file's, not the disk's
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}) and stays as it is: repeat the command when it can be, or "
                "force=true starts over beside it"
            ) from None
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if damaged := archive.testzip():  # torch writes checksums, but does not verify them
                    raise zipfile.BadZipFile(damaged)
        except Exception as error:  # zipfile raises anything on a damaged file
            if isinstance(error, MemoryError):
                raise
            problems.append(f"{path} cannot be read ({type(error).__name__})")
            continue
        try:
            state = _state(content, run_hash, path)
            take(state)
        except ValueError as error:
            foreign.append(f"{path} is intact, but from another version of adalora-repro ({error})")
            problems.append(foreign[-1])
            continue
        return state, [f"{problem}, trying the one before" for problem in problems]
    if foreign:
        raise InputError(
            f"{foreign[0]}: finish the run with the version that wrote it, or start over with force=true, which keeps "
            "the checkpoint under another name"
        )
    return None, problems


def _state(content: bytes, run_hash: str, path: Path) -> dict[str, Any]:
    """The state in the bytes of an intact file.

    Raises:
        InputError: it belongs to another configuration.
        ValueError: it is from another version.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything on a file that is not its own
        if no_memory(error):
            raise
        raise ValueError(f"torch cannot read it: {type(error).__name__}") from None
    if not isinstance(state, dict) or state.pop("format", VERSION) != VERSION or "hash" not in state:
        raise ValueError(f"it is not of format {VERSION}")
    if state["hash"] != run_hash:
        raise InputError(
            f"{path} is from another configuration ({state['hash']}, this one is {run_hash}); move it away to start "
            "over"
        )
    return state


def no_memory(error: Exception) -> bool:
    """Whether memory ran out, on the host or a device; torch may raise a plain RuntimeError for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def remove(folder: Path) -> None:
    """Removes the checkpoints of a finished run; those that ``folder.set_aside`` renamed stay."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """torch's generators of this process and its device; nothing else in a run draws random numbers."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
