"""``--out``: the form that the name of the file asks for, what may be written over, and the writing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from adalora_repro.errors import InputError, one_of
from adalora_repro.records import cost_record, run_record

ENDINGS = {
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
    ".txt": "text",
    ".svg": "svg",
    ".png": "png",
    ".pdf": "pdf",
}
RECORD_NAMES = (run_record.RECORD_NAME, cost_record.RECORD_NAME)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--overwrite", action="store_true", help="--out may replace a file that is there already")


def add_format(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    parser.add_argument("--format", choices=forms, help=f"default: by the ending of --out, else {forms[0]}")


def form_of(form: str | None, out: str | None, forms: Sequence[str]) -> str:
    """``form`` (``--format``), or the one of ``forms`` that the ending of ``out`` names; without an ending the first.

    Raises:
        InputError: the ending names none of them, or another one than ``form``.
    """
    suffix = "" if out is None or is_device(out) else Path(out).suffix.lower()
    if out is None or not suffix:
        return form or forms[0]
    named = ENDINGS.get(suffix)
    if form is None and named not in forms:
        raise one_of("ending of --out (or say --format)", suffix, endings(forms))
    if form is not None and named not in (None, form):
        raise InputError(f"--out: '{out}' is no name for {form}; valid endings: {', '.join(endings([form]))}")
    return form or str(named)


def endings(forms: Sequence[str]) -> list[str]:
    return [suffix for suffix, form in ENDINGS.items() if form in forms]


def is_device(out: str) -> bool:
    """What is written into and never replaced: a device, a pipe."""
    return os.path.exists(out) and not os.path.isfile(out) and not os.path.isdir(out)


def checked(args: argparse.Namespace) -> str | None:
    """``--out``, None for the terminal.

    Raises:
        InputError: see ``check``.
    """
    out: str | None = args.out
    if out is not None:
        check(out, args.overwrite)
    return out


def check(out: str, overwrite: bool, own: bytes | None = None) -> None:
    """Asked before a report is made: whether ``write`` may and can write there.

    Args:
        overwrite: a file that is there may be replaced.
        own: what the first 1000 bytes of a file have that may be replaced anyway.

    Raises:
        InputError: a file is there, or a folder, or no folder for it; or it would be taken for a record.
    """
    path = Path(os.path.realpath(out))
    if {Path(out).name, path.name} & set(RECORD_NAMES):
        raise InputError(f"--out: '{out}' is the name of a record: name another file")
    try:
        if path.is_dir():
            raise InputError(f"--out: '{out}' is a folder")
        if is_device(out) or (overwrite and path.exists()):
            return
        with open(out, "rb") as file:
            start = file.read(1000)
            if start and (own is None or own not in start):  # an empty file has nothing to lose
                raise InputError(f"--out: '{out}' is there already; --overwrite replaces it")
    except FileNotFoundError:
        if not path.parent.parent.is_dir():
            raise InputError(f"--out: cannot write '{out}': no folder '{path.parent.parent}'") from None
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}': {error.strerror}") from None


def write(content: str | bytes, out: str) -> None:
    """Whole or not at all, in the folder that is made for it; the target of a link is written, the link stays.

    Raises:
        InputError: it cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode()
    path = Path(os.path.realpath(out))
    try:
        if is_device(out):
            Path(out).write_bytes(data)
        else:
            path.parent.mkdir(exist_ok=True)
            run_record.write_atomic(path, data)
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}': {error.strerror}") from None
