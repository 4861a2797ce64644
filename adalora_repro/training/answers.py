"""Texts -> what a finished run's model says of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from adalora_repro.errors import InputError, first_line
from adalora_repro.tasks import load_family
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
    """
    Raises:
        InputError: there is no such device here.
    """
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


def read_rows(name: str, content: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a file: by its ending CSV with a line of names, or JSON Lines; otherwise lines, each a JSON object or the
    one text of its row.

    Raises:
        InputError: names the line; or there is no row.
    """
    content, ending = content.removeprefix("\ufeff"), Path(name).suffix.lower()
    if ending in (".csv", ".tsv"):
        rows = read_table(name, content, columns, "\t" if ending == ".tsv" else ",")
    else:
        rows = []
        # splitlines() would split at U+2028, which JSON may hold
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                row = parsed(line, columns, f"{name}:{number}", only_json=ending in (".jsonl", ".json"))
                rows.append(checked(row, columns, f"{name}:{number}"))
    if not rows:
        raise InputError(f"--file: no rows in '{name}'")
    return rows


def read_table(name: str, content: str, columns: Sequence[str], delimiter: str) -> list[dict[str, str]]:
    before = csv.field_size_limit(max(len(content), 1))
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        return [checked(row, columns, f"{name}:{reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: {first_line(error)}") from None
    finally:
        csv.field_size_limit(before)


def parsed(line: str, columns: Sequence[str], where: str, only_json: bool) -> dict[str, Any]:
    if not (only_json or line.lstrip().startswith("{")):
        return {columns[0]: line.strip()}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object; each line is one, with {', '.join(columns)}")
    return row


def checked(row: dict[str, Any], columns: Sequence[str], where: str) -> dict[str, str]:
    for column in columns:
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: no text '{column}'; each row has {', '.join(columns)}")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: '{column}' is not valid UTF-8")
    return {column: row[column] for column in columns}
