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
        InputError: as ``kept.load``; or a row cannot be encoded.
    """
    with stage("loading the model"):
        model, tokenizer = kept.load(run, backbone)
    model.to(device)
    task = load_family(kept.configuration(kept.folder_of(run), backbone))
    task.use(tokenizer)
    rows = iter(rows)
    while batch := list(islice(rows, batch_size)):
        with torch.inference_mode():
            yield from task.answers(model, batch)


def columns_of(run: Path) -> list[str]:
    """Names of the texts that a row of the run's task has."""
    return list(kept.configuration(kept.folder_of(run)).task.text_columns)


def rows_of(texts: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """Texts as typed, as many for each row as the task reads.

    Raises:
        InputError: one is missing or empty.
    """
    if len(texts) % len(columns):
        raise InputError(f"{len(texts)} texts, but each row has {len(columns)}: {', '.join(columns)}")
    rows = [dict(zip(columns, texts[i : i + len(columns)], strict=True)) for i in range(0, len(texts), len(columns))]
    return [checked(row, columns, f"text {number}") for number, row in enumerate(rows, 1)]


def read_rows(name: str, content: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a file: CSV with a line of names (by the file's ending), otherwise JSON Lines; a line that is no JSON
    object is the one text of its row.

    Raises:
        InputError: names the line.
    """
    if name.endswith((".csv", ".tsv")):
        reader = csv.DictReader(io.StringIO(content), delimiter="\t" if name.endswith(".tsv") else ",")
        return [checked(row, columns, f"{name}:{number}") for number, row in enumerate(reader, 2)]
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line) if line.lstrip().startswith("{") else {columns[0]: line}
        except ValueError as error:
            raise InputError(f"{name}:{number}: no JSON: {first_line(error)}") from None
        rows.append(checked(row, columns, f"{name}:{number}"))
    return rows


def checked(row: dict[str, Any], columns: Sequence[str], where: str) -> dict[str, str]:
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise InputError(f"{where}: no text '{column}'; each row has {', '.join(columns)}")
    return {column: row[column] for column in columns}
