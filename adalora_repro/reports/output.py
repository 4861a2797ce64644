"""``--out``: the format that the name of the file asks for, what may be replaced, and the writing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from adalora_repro.errors import InputError
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
GENERATOR = '<meta name="generator" content="adalora-report">'  # of the page, which replaces an earlier one


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--overwrite", action="store_true", help="--out may replace an existing file")


def add_format(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    parser.add_argument("--format", choices=forms, help=f"default: by the ending of --out, else {forms[0]}")


def form_of(form: str | None, out: str | None, forms: Sequence[str]) -> str:
    """``form`` (``--format``), or the one of ``forms`` that the ending of ``out`` names; without an ending the first.

    Raises:
        InputError: the ending names none of them, or another one than ``form``.
    """
    suffix = Path(out or "").suffix.lower()
    named = ENDINGS.get(suffix)
    if suffix and named not in ((form, None) if form else forms):
        valid = [ending for ending, name in ENDINGS.items() if name in ([form] if form else forms)]
        raise InputError(f"unknown ending '{suffix}' of --out '{out}'; valid: {', '.join(valid)} (or say --format)")
    return form or named or forms[0]


def write(content: str | bytes, out: str | Path, overwrite: bool) -> None:
    """Whole or not at all, in the folder that is made for it; the target of a link is written, the link stays.

    Raises:
        InputError: a file is there, unless it may be replaced; it has the name of a record; it cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode()
    path = Path(os.path.realpath(out))
    if {Path(out).name, path.name} & set(RECORD_NAMES):
        raise InputError(f"--out: '{out}' is the name of a record: name another file")
    if path.exists() and not path.is_file():
        raise InputError(f"--out: '{out}' is not a regular file")
    try:
        marker = GENERATOR.encode()
        page = marker in data and path.exists() and marker in path.read_bytes()[:1000]
        if path.exists() and not overwrite and not page:
            raise InputError(f"--out: '{out}' already exists; --overwrite replaces it")
        path.parent.mkdir(parents=True, exist_ok=True)
        run_record.write_atomic(path, data)
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}': {error.strerror}") from None
