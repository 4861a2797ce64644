"""Texts -> what a finished run's model says of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from adalora_repro.errors import InputError, first_line
from adalora_repro.tasks import load_family, row_files
from adalora_repro.training import kept
from adalora_repro.training.progress import stage


def answers(
    run: Path, rows: Iterable[dict[str, str]], batch_size: int = 32, backbone: str | None = None, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """One answer for each row, in their order; the model is loaded when the first one is asked for.

    Args:
        rows: the task's text columns -> texts (``columns_of``).

    Raises:
        InputError: as ``kept.load``; there is no such device; or a row cannot be encoded.
    """
    with stage("loading the model"):
        model, tokenizer = kept.load(run, backbone)
        model.to(checked_device(device))
    task = load_family(kept.configuration(kept.folder_of(run), backbone))
    task.use(tokenizer)
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        with torch.inference_mode():
            yield from task.answers(model, batch)


def checked_device(name: str) -> torch.device:
    """Raises InputError if there is no such device here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # not on "meta", which holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} cannot be used here: {first_line(error)}") from None
    return device


def columns_of(run: Path) -> list[str]:
    """Names of the texts that a row of the run's task has."""
    return list(kept.configuration(kept.folder_of(run)).task.text_columns)


def rows_of(texts: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """Texts as typed, as many for each row as the task reads.

    Raises:
        InputError: one is missing or empty.
    """
    if len(texts) % len(columns):
        raise InputError(
            f"{len(texts)} text{'s' * (len(texts) != 1)}, but each row has {len(columns)}: {', '.join(columns)}"
        )
    rows = [dict(zip(columns, texts[i : i + len(columns)], strict=True)) for i in range(0, len(texts), len(columns))]
    return [checked(row, columns, f"text {number}") for number, row in enumerate(rows, 1)]


def read_rows(name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a file that ``row_files`` reads by its ending; in any other, and in standard input (``-``), each line
    is a JSON object or the one text of its row.

    Raises:
        InputError: the file cannot be read; names the line; or there is no row.
    """
    by_ending = name.lower().endswith((*row_files.SUFFIXES, ".json"))
    entries = row_files.rows(Path(name)) if by_ending else _lines(name, columns[0])
    rows = [checked(row, columns, where) for where, row in entries]
    if not rows:
        raise InputError(f"--file: no rows in '{name}'")
    return rows


def _lines(name: str, column: str) -> Iterator[tuple[str, Any]]:
    if name == "-" and sys.stdin is None:
        raise InputError("--file -: standard input is closed")
    for where, line in row_files.numbered(sys.stdin.buffer, name) if name == "-" else row_files.lines(Path(name)):
        text = line.decode("utf-8-sig", "surrogateescape")
        yield where, row_files.row_of(text) if text.startswith("{") else {column: text}


def checked(row: Any, columns: Sequence[str], where: str) -> dict[str, str]:
    if not isinstance(row, dict):
        problem = row if isinstance(row, row_files.BrokenLine) else "not a JSON object"
        raise InputError(f"{where}: {problem}; each row has {', '.join(columns)}")
    for column in columns:
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: no text '{column}'; each row has {', '.join(columns)}")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: '{column}' is not valid UTF-8")
    return {column: row[column] for column in columns}
